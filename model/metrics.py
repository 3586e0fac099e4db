"""What a run says: lines on the screen, metrics.jsonl and TensorBoard, with units in the names."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pipeline import InputError


class Metrics:
    """Writes for the first rank of a run; on the other ranks `folder` is None and nothing is written."""

    def __init__(self, folder: Path | None, resume_at: tuple[int, int] | None = None) -> None:
        """resume_at: (bytes of metrics.jsonl, step) of the checkpoint gone on from; what was written after it is dropped."""
        self._file, self._board = None, None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept, step = resume_at or (0, 0)
        self._file = open(folder / "metrics.jsonl", "r+b" if (folder / "metrics.jsonl").exists() else "w+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however we end
        except OSError:
            raise InputError(f"{folder} is being trained by another process; wait for it, or name another --run") from None
        kept = min(kept, self._file.seek(0, os.SEEK_END))
        self._file.truncate(kept)
        self._file.seek(kept)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if resume_at else None)

    def write(self, step: int, **values: float | int | str | None) -> None:
        """One line of metrics.jsonl, and the numbers among it to TensorBoard."""
        if self._file is None or self._board is None:
            return
        self._file.write(json.dumps({"step": step, **values}).encode() + b"\n")
        self._file.flush()
        for name, value in values.items():
            if isinstance(value, int | float) and name != "epoch":
                self._board.add_scalar(name, value, step)

    def say(self, text: str) -> None:
        """A line for the user, above the progress bar if there is one."""
        if self._file is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def bar(self, batches: Iterable[Any], total: int, done: int, text: str) -> Iterable[Any]:
        """`batches` with a progress bar, on a terminal."""
        quiet = self._file is None or not sys.stderr.isatty()
        return tqdm(batches, desc=text, total=total, initial=done, unit=" steps", leave=False, disable=quiet)

    def bytes_written(self) -> int:
        """Length of metrics.jsonl, on disk."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        if self._file is not None and self._board is not None:
            self._file.close()
            self._board.close()
