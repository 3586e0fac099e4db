"""Writing checkpoints while training goes on, by torch.distributed.checkpoint."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.tensor import DTensor

from model import checkpoint
from pipeline import InputError, fsync_folder


class Saver:
    """Saves a run's checkpoints into `folder`; every rank of `group` calls each method at the same place.

    begin() copies the tensors and returns; threads of all ranks write, and the first rank gives the folder its name when all
    are done. settle() waits, and says what went wrong. One save is under way at a time. group: of gloo, used by nothing else,
    None for one process.
    """

    def __init__(self, folder: Path, group: dist.ProcessGroup | None, first: bool, device: torch.device | None = None) -> None:
        gpu = device is not None and device.type == "cuda"
        self._stager = DefaultStager(  # kept, so that its copies go into the same memory each time; pinned, so that a GPU's are quick
            StagingOptions(use_pinned_memory=gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=gpu)
        )
        self.folder, self.saved, self.pauses = folder, -1, list[float]()
        self._group, self._first, self._attempt = group, first, 0
        self.step, self._under_way, self._temporary = -1, None, Path()
        if first:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.remove_leftovers(folder)
        if group is not None:
            dist.barrier(group)
        if not folder.is_dir():
            raise InputError(f"{folder} is not seen by all ranks; --run must be a folder that all hosts share")

    _under_way: Future[Any] | None

    def begin(self, step: int, tensors: dict[str, Any], state: dict[str, Any], best: bool) -> BaseException | None:
        """Start to save; what went wrong with the save before, if that was still under way. state: JSON's types, used by the first rank."""
        began = time.perf_counter()
        failed = self.settle()
        if step == self.saved:  # the same weights, as after a validation: only what is said of them has changed
            failed = self._change_state(step, state, best) or failed
        else:
            self._attempt += 1
            self.step, self._temporary = step, self.folder / f".step-{step:08d}.{self._attempt}.partial"
            writer = _Writer(self._temporary, lambda: self._seal(step, state, best))
            with torch.no_grad():
                self._under_way = _begin(tensors, writer, self._group, self._stager)
        self.pauses.append(time.perf_counter() - began)
        return failed

    def settle(self) -> BaseException | None:
        """Wait for the save under way, if there is one: the error that ended it, or None. Raises what says that a rank has gone."""
        if self._under_way is None:
            return None
        under_way, self._under_way = self._under_way, None
        try:
            under_way.result()
        except dcp.CheckpointException as error:
            if self._first:
                shutil.rmtree(self._temporary, ignore_errors=True)
            causes = [cause for cause, _ in error.failures.values()]
            cause = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
            if isinstance(cause, OSError) and cause.filename is None:
                cause.filename = str(self.folder)
            return cause
        self.saved = self.step
        return None

    @property
    def ready(self) -> bool:
        """Whether settle() would return at once, on this rank."""
        return self._under_way is not None and self._under_way.done()

    def table(self, seconds: float) -> list[str]:
        """Lines of the end-of-run table: how long training, `seconds` in all, stood still for checkpoints."""
        if not self.pauses or not seconds:
            return []
        total = sum(self.pauses)
        return [f"  {'checkpoints, and training paused for them':<46} {len(self.pauses)}, {total:.2f} s, {100 * total / seconds:.2f} % of the time"]

    def _seal(self, step: int, state: dict[str, Any], best: bool) -> None:
        """On the first rank, when all have written: state, digests and name."""
        checkpoint.write_state(self._temporary, state, checkpoint.digests(self._temporary))
        place = checkpoint.path_of(self.folder, step)
        if place.exists():  # of an earlier life of this run, which went on from an older one
            place.rename(place.with_name(f".{place.name}.deleted"))
        if best:  # before it is there: whoever is killed in between validates again, and links again
            checkpoint.link(self.folder, checkpoint.BEST, place)
        self._temporary.rename(place)
        fsync_folder(self.folder)
        self._tidy(place)

    def _change_state(self, step: int, state: dict[str, Any], best: bool) -> OSError | None:
        place = checkpoint.path_of(self.folder, step)
        try:
            if self._first:
                if best:
                    checkpoint.link(self.folder, checkpoint.BEST, place)
                checkpoint.write_state(place, state, checkpoint.load_files(place))
                self._tidy(place)
        except OSError as error:
            return error
        return None

    def _tidy(self, place: Path) -> None:
        """The link to the newest, and old folders. The checkpoint is there whether or not this succeeds, and the next save tries again."""
        with contextlib.suppress(OSError):
            checkpoint.link(self.folder, checkpoint.LATEST, place)
            checkpoint.prune(self.folder)
            for path in self.folder.glob(".step-*.deleted"):
                shutil.rmtree(path)


class _Writer(HuggingFaceStorageWriter):
    """Writes each rank's tensors to a safetensors file; calls `seal` on the first rank when all ranks have."""

    def __init__(self, folder: Path, seal: Callable[[], None]) -> None:
        super().__init__(path=str(folder), save_distributed=True)
        self._seal = seal

    def finish(self, metadata: Any, results: Any) -> None:
        self._seal()


def _begin(tensors: dict[str, Any], writer: _Writer, group: dist.ProcessGroup | None, stager: DefaultStager) -> Future[Any]:
    begun: Any = dcp.async_save(tensors, storage_writer=writer, process_group=group, no_dist=group is None, async_stager=stager)
    return begun


def as_part(tensor: torch.Tensor, shape: torch.Size, mesh: Any, placements: list[Any]) -> Any:
    """A parameter's part on this rank as the DTensor that it is a part of; itself where nothing is split."""
    if mesh is None:
        return tensor
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(tensor, mesh, placements, run_check=False, shape=shape, stride=stride)
