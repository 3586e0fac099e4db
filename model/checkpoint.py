"""Checkpoints of a run: the whole net in canonical names, whatever layout it was trained in."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from pipeline import InputError, atomic_file

FORMAT = 1
KEEP = 2  # newest checkpoints kept beside the best one
BEST = "best.pt"
KEYS = {"step", "model", "velocity", "schedule", "loader", "unvalidated", "metrics_bytes", "recipe", "classes", "wnids"}


def save(folder: Path, step: int, content: dict[str, Any], best: bool) -> Path:
    """Write step-NNNNNNNN.pt whole or not at all, keep the newest few, and link the best as best.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}.pt"
    whole = io.BytesIO()  # written by us, so that a full disk is an OSError and not an assertion inside torch
    torch.save({"format": FORMAT, "step": step, **content}, whole)
    with atomic_file(path) as file:
        file.write(whole.getbuffer())
    if best:
        temporary = folder / f".{BEST}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        os.link(path, temporary)
        os.replace(temporary, folder / BEST)
    for old in _by_step(folder)[:-KEEP]:
        old.unlink()
    return path


def _by_step(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*.pt") if re.fullmatch(r"step-\d{8}\.pt", path.name))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    found = _by_step(folder)
    return found[-1] if found else None


def load(path: Path) -> dict[str, Any]:
    """A checkpoint on the CPU; only tensors, numbers and words are read, no code. Raises InputError."""
    try:
        damaged = zipfile.ZipFile(path).testzip()  # torch.load does not look at the sums
        if damaged is not None:
            raise InputError(f"{path} is damaged (its part {damaged} has another CRC); delete it to go on from the one before")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"there is no checkpoint {path}; give a .pt file of a run's checkpoints/ folder") from None
    except Exception as error:  # torch.load has no error of its own for a file that is not a checkpoint
        raise InputError(f"{path} is not a checkpoint that can be read ({type(error).__name__}); delete it to go on from the one before") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not set(content) >= KEYS:
        raise InputError(f"{path} is not a checkpoint of this program (format {FORMAT}); give a .pt file of a run's checkpoints/ folder")
    return content
