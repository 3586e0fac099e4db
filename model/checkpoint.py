"""Checkpoints on disk: a folder a step, readable under any layout, whole or not there.

    checkpoints/step-00000500/shard-00001-model-00001-of-00001.safetensors ...   tensors, as torch.distributed.checkpoint wrote them
    checkpoints/step-00000500/state.json                                         everything else, and the digest of each file
    checkpoints/latest, best                                                     links to two of them

A folder is given its name after all of its files are on disk, so whatever is named step-NNNNNNNN is complete. Tensors are the
parameters by canonical name and their velocities as velocity.NAME. Nothing in it is read through pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

from pipeline import InputError, atomic_file

warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # a rank reads for itself, and means to

FORMAT = 2
KEEP = 2  # newest checkpoints kept beside the best one
BEST, LATEST, STATE = "best", "latest", "state.json"
VELOCITY = "velocity."
KEYS = {"step", "schedule", "loader", "unvalidated", "metrics_bytes", "recipe", "classes", "wnids"}


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def by_step(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{8}", path.name))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = by_step(folder)
    return found[-1] if found else None


def link(folder: Path, name: str, path: Path) -> None:
    """Point folder/name (latest, best) at a checkpoint, in one step."""
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(path.name)
    os.replace(temporary, folder / name)


def prune(folder: Path) -> None:
    """Delete all but the newest few, the best, and that of the beginning, which holds the weights of --init-from."""
    best = (folder / BEST).resolve() if (folder / BEST).exists() else None
    for old in by_step(folder)[:-KEEP]:
        if old.resolve() != best and old != path_of(folder, 0):
            doomed = old.rename(old.with_name(f".{old.name}.deleted"))  # a folder half deleted must not look like a checkpoint
            shutil.rmtree(doomed)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process had not finished writing or deleting."""
    for pattern in (".step-*.partial", ".step-*.deleted", ".*.tmp"):
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def digests(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of tensors."""
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest_of(path)} for path in sorted(folder.glob("*.safetensors"))}


def write_state(folder: Path, state: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
    """state.json of a checkpoint, whole or not at all."""
    content = {"format": FORMAT, **state, "files": files}
    with atomic_file(folder / STATE, "w") as file:
        json.dump({**content, "sha256": _digest(content)}, file, indent=1)


def load_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The digests that a checkpoint of this process says it has."""
    found: dict[str, dict[str, Any]] = json.loads((folder / STATE).read_text("utf-8"))["files"]
    return found


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_state(path: Path, files: bool = True) -> dict[str, Any]:
    """What a checkpoint holds beside its tensors; files: compare each with its digest. Raises InputError."""
    if not (path / STATE).is_file():
        if path.is_dir() and path.name.startswith("step-"):
            raise InputError(f"{path} has no {STATE}, so it is no checkpoint; delete it to go on from the one before")
        what = "there is no checkpoint" if not path.exists() else "this is not a checkpoint:"
        raise InputError(f"{what} {path}; give a step-NNNNNNNN folder of a run's checkpoints/, or its links latest and best")
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
        sum_there = state.pop("sha256")
        right = _digest(state) == sum_there
    except (ValueError, KeyError, AttributeError, TypeError):
        right, state = False, {}
    if not right:
        raise InputError(f"{path / STATE} is damaged (its own digest does not fit); delete {path} to go on from the one before")
    if state["format"] != FORMAT or not set(state) >= KEYS:
        raise InputError(f"{path} is not a checkpoint of this program (format {FORMAT}); give one that it wrote")
    for name, file in state["files"].items() if files else ():
        if not (path / name).is_file():
            raise InputError(f"{path} lacks its file {name}; delete the folder to go on from the one before")
        if (path / name).stat().st_size != file["bytes"] or digest_of(path / name) != file["sha256"]:
            raise InputError(
                f"{path / name} is damaged (it has another size or SHA-256 than when it was written); delete {path} to go on from the one before"
            )
    return state


def fill(path: Path, tensors: dict[str, Any]) -> None:
    """Read tensors by name into those given, in place: whole ones, or the parts that DTensors hold here. Raises InputError."""
    try:
        dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except (RuntimeError, ValueError, dcp.CheckpointException) as error:
        raise InputError(f"{path} does not hold this net ({' '.join(str(error).split())[:200]})") from None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's state with the whole net as "model" and its velocities as "velocity", on the CPU. Raises InputError."""
    state = load_state(path)
    metadata = HuggingFaceStorageReader(str(path)).read_metadata()
    shapes: Any = metadata.state_dict_metadata
    tensors = {name: torch.empty(shape.size, dtype=shape.properties.dtype) for name, shape in shapes.items()}
    fill(path, tensors)
    names = [name for name in tensors if not name.startswith(VELOCITY)]
    return {**state, "model": {name: tensors[name] for name in names}, "velocity": {name: tensors[VELOCITY + name] for name in names}}
