"""RUN/run.json: what a run is made of, and each time that it was started."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch

from pipeline import atomic_file

NAME = "run.json"
KEYS = {"recipe", "layout", "world", "shards", "machine", "versions", "starts"}
PACKAGES = ("torch", "numpy", "nvidia-dali-cuda120", "nvidia-dali-cuda130", "webdataset", "safetensors", "pillow")


def write_record(
    folder: Path,
    *,
    recipe: dict[str, Any],
    layout: str,
    world: int,
    shards: str,
    digest: str,
    names: list[str],
    pictures: dict[str, int],
    step: int,
    restart: int = 0,
) -> None:
    """Write run.json, or add this start to it. digest: SHA-256 of the shards' manifest; names: of the
    classes; pictures: by split; step: where it begins; restart: how often the launcher had to start it again, without progress in between.

    Neither host nor user is named, and of a URL what may be a secret is left out. Raises OSError.
    """
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    start = {"time": now, "step": step, "layout": layout, "world": world, "restart": restart}
    before = read_record(folder).get("starts", []) if step > 0 or restart > 0 else []  # a run begun anew has only this one
    content = {
        "recipe": recipe,
        "layout": layout,
        "world": world,
        "shards": {
            "folder": without_secrets(shards),
            "manifest_sha256": digest,
            "classes": len(names),
            "names": names,
            "pictures": pictures,
        },
        "machine": machine(),
        "versions": versions(),
        "starts": [*before, start],
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / NAME, "w") as file:
        json.dump(content, file, indent=1)


def without_secrets(address: str) -> str:
    """A URL without the user, password and signature that it may have; a folder as it is."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read_record(folder: Path) -> dict[str, Any]:
    """What run.json says; nothing where there is none that can be read: it is written anew at each start."""
    path = folder / NAME
    try:
        found = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) and set(found) >= KEYS else {}


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory in GiB, GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0)), "memory_gib": round(memory, 1), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
