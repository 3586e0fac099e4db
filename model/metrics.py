"""What a run says: lines on the screen, metrics.jsonl and TensorBoard, with units in the names."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline import InputError, line_of_place


class Metrics:
    """Writes for the first rank of a run; on the other ranks `folder` is None and nothing is written."""

    def __init__(self, folder: Path | None, resume_at: tuple[int, int] | None = None, pending: str = "") -> None:
        """resume_at: (bytes of metrics.jsonl, step) of the checkpoint gone on from; what was written after it is dropped.

        pending: lines that were not in the file when the checkpoint was saved.
        """
        self._file, self._board, self._pending = None, None, pending.encode()
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept, step = resume_at or (0, 0)
        self._file = open(folder / "metrics.jsonl", "r+b" if (folder / "metrics.jsonl").exists() else "w+b", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however we end
        except OSError:
            raise InputError(f"{folder} is being trained by another process; wait for it, or name another --run") from None
        kept = min(kept, self._file.seek(0, os.SEEK_END))
        self._file.truncate(kept)
        self._file.seek(kept)
        self._board = _board(folder / "tensorboard", step + 1 if resume_at else None)

    def write(self, step: int, **values: float | int | str | None) -> None:
        """One line of metrics.jsonl, and the numbers among it to TensorBoard."""
        if self._file is None:
            return
        self._pending += json.dumps({"step": step, **values}).encode() + b"\n"
        self._write_pending()
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "epoch"}
        self.on_board(lambda board: [board.add_scalar(name, value, step) for name, value in numbers.items()])

    def _write_pending(self) -> None:
        """What a full disk does not take is kept for the next time."""
        if self._file is None or not self._pending:
            return
        whole = os.lseek(self._file.fileno(), 0, os.SEEK_CUR)
        try:
            if os.write(self._file.fileno(), self._pending) < len(self._pending):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._pending = b""
        except OSError as error:
            os.ftruncate(self._file.fileno(), whole)  # no half line
            os.lseek(self._file.fileno(), whole, os.SEEK_SET)
            line = line_of_place(error)
            if line is None:
                raise
            self.say(f"warning: {self._file.name} could not be written ({error.strerror}); its lines are kept in memory until it can; free space")

    def on_board(self, write: Callable[[Any], object]) -> None:
        """Let `write` add to the TensorBoard, if there is one; a disk that takes no more of it ends only the board."""
        if self._board is None:
            return
        try:
            write(self._board)
        except OSError as error:
            self.say(f"warning: TensorBoard's file could not be written ({error.strerror}); nothing more is written to it")
            self._board = None

    def say(self, text: str) -> None:
        """A line for the user, above the progress bar if there is one."""
        if self._file is not None:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def bar(self, batches: Iterable[Any], total: int, done: int, text: str) -> Iterable[Any]:
        """`batches` with a progress bar, on a terminal."""
        quiet = self._file is None or not sys.stderr.isatty()
        return tqdm(batches, desc=text, total=total, initial=done, unit=" steps", leave=False, disable=quiet)

    def pending(self) -> str:
        """Lines that a full disk has not taken yet."""
        return self._pending.decode()

    def check_written(self) -> None:
        """Raises OSError where lines are still pending."""
        self._write_pending()
        if self._pending and self._file is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._file.name)

    def bytes_written(self) -> int:
        """Length of metrics.jsonl, on disk."""
        if self._file is None:
            return 0
        self._write_pending()
        with contextlib.suppress(OSError):  # a disk that is full is told of by the checkpoint, or the next line
            os.fsync(self._file.fileno())
        return os.lseek(self._file.fileno(), 0, os.SEEK_CUR)

    def close(self) -> None:
        if self._file is not None:
            self._write_pending()
            self._file.close()
        self.on_board(lambda board: board.close())


def _board(folder: Path, purge_step: int | None) -> Any:
    """TensorBoard's writer, or None where it is not installed, which is said."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("TensorBoard is not installed, so no tensorboard/ is written; pip install tensorboard", flush=True)
        return None
    threading.excepthook = _without_boards(threading.excepthook)
    return SummaryWriter(str(folder), purge_step=purge_step)


def _without_boards(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Keep the traceback of TensorBoard's thread off the screen: what a full disk did to it is raised at the next write, and said there."""

    def quiet(ended: Any) -> None:
        if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard")):
            hook(ended)

    return quiet
