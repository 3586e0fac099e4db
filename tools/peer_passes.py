"""One peer of the loader benchmark in a process of its own: `python -m tools.peer_passes --peer NAME ...`, started by tools/bench_peers.py.

Runs in the peers' environment and imports nothing of pipeline. Its first line on stdout is {"ready": ...}, or {"missing": ...} where the library is
not installed; then each line `pass N` on stdin is answered by one line {"images", "seconds", "cpu_seconds", "labels_ok", "distinct"}.

What a pass measures: N batches from a loader that runs. Before the clock starts, more batches than it holds ready are taken and not counted, so
that neither the filling of its queues nor what it prepared in a pause is given away; the clock ends when the last batch is in hand. After it the
process waits until its workers have filled their queues, so that they do not work on while another row is measured. A pass lies within one epoch
where an epoch is long enough. CPU-seconds are those of the whole process tree.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from tools.peer_formats import decoded
from tools.peer_loaders import LOADERS, Batch, Loader, Setup
from tools.peer_samples import Samples

LIBRARIES = ("torch", "torchvision", "pillow", "webdataset", "ffcv", "numba", "spdl", "litdata", "mosaicml-streaming")
MISSING = 3  # exit code
WINDOW_ERROR = 6.0  # grey levels, mean over a window: above what decoders differ by, far below another picture or another order of colours


def cpu_seconds(root: int) -> float:
    """User and system time of process `root` and all below it, those that ended included."""
    parents, times = {}, {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path("/proc", entry, "stat").read_text().rsplit(") ", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has just ended; its parent has its time
            parents[int(entry)], times[int(entry)] = int(fields[1]), sum(map(int, fields[11:15]))
    tree = {root}
    while grown := {child for child, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(times[process] for process in tree) / os.sysconf("SC_CLK_TCK")


def settle(limit: float = 10) -> None:
    """Wait until the process tree does nothing more, at most `limit` seconds."""
    before, end = cpu_seconds(os.getpid()), time.monotonic() + limit
    while time.monotonic() < end:
        time.sleep(0.15)
        now = cpu_seconds(os.getpid())
        if now - before <= 0.02:
            return
        before = now


def window_error(window: np.ndarray, picture: np.ndarray) -> float:
    """Mean difference, in grey levels, of a (c, c, 3) window to the place in the (h, w, 3) picture that it fits best, flipped or not."""
    size, step = len(window), 8
    rows = [side[::step].astype(np.int16) for side in (window, window[:, ::-1])]
    return min(
        float(np.abs(row - picture[y : y + size : step, x : x + size]).mean())
        for row in rows
        for y in range(picture.shape[0] - size + 1)
        for x in range(picture.shape[1] - size + 1)
    )


class Passes:
    """Passes through a loader, each within an epoch where it fits into one."""

    def __init__(self, loader: Loader, setup: Setup) -> None:
        self._loader, self._setup = loader, setup
        self._batches: Iterator[Batch] = iter(())
        self._left = 0  # batches of the epoch that are still to come
        self._warm_up = 3 + 2 * setup.threads  # DataLoader holds 2 batches a worker ready, FFCV 3, SPDL 2

    def _next(self) -> Batch:
        if not self._left:
            self._batches, self._left = self._loader.epoch(), self._loader.length or sys.maxsize
        self._left -= 1
        return next(self._batches)

    def error(self) -> float:
        """Largest window_error of two pictures of a batch that is not measured."""
        images, _, ids = self._next()
        pictures = images[:2].numpy() + (np.array(self._setup.mean) if images.is_floating_point() else 0)
        return max(window_error(picture, decoded(self._setup.samples.jpeg(int(i)))) for picture, i in zip(pictures, ids, strict=False))

    def run(self, batches: int) -> dict[str, Any]:
        """Measure `batches` batches: the answer to `pass`."""
        if self._left < self._warm_up + batches:
            self._left = 0  # the next batch begins an epoch
        for _ in range(self._warm_up):
            self._next()
        counted: list[tuple[torch.Tensor, torch.Tensor]] = []
        wall, cpu = time.perf_counter(), cpu_seconds(os.getpid())
        for _ in range(batches):
            images, labels, ids = self._next()
            assert images.shape == (self._setup.batch, self._setup.crop, self._setup.crop, 3), f"a batch of shape {tuple(images.shape)}"
            counted.append((labels.clone(), ids.clone()))
        wall, cpu = time.perf_counter() - wall, cpu_seconds(os.getpid()) - cpu
        settle()
        return {"images": sum(len(labels) for labels, _ in counted), "seconds": wall, "cpu_seconds": cpu, **self._checked(counted)}

    def _checked(self, counted: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, Any]:
        """labels_ok: each label is the one that the shards have for its id; distinct: different ids."""
        labels, ids = (torch.cat(part).tolist() for part in zip(*counted, strict=True))
        truth = self._setup.samples.labels
        return {"labels_ok": labels == [truth[sample] for sample in ids], "distinct": len(set(ids))}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _stdout_to_ourselves() -> TextIO:
    """What was stdout, for our lines alone; whatever else a library prints goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return ours


def _setup(given: argparse.Namespace) -> Setup:
    samples = Samples(given.shards)
    mean = json.loads((given.shards / "pca.json").read_text())["mean"]
    given.work.mkdir(parents=True, exist_ok=True)
    return Setup(samples, given.work, given.batch, given.threads, given.crop, (mean[0] * 255, mean[1] * 255, mean[2] * 255))


def main() -> int:
    parser = argparse.ArgumentParser(description="Passes through one peer of the loader benchmark; started by tools/bench_peers.py.")
    parser.add_argument("--peer", choices=LOADERS, required=True)
    parser.add_argument("--shards", type=Path, required=True, help="folder made by make_shards, with colour statistics")
    parser.add_argument("--work", type=Path, required=True, help="folder for the peers' formats")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="workers or threads, whichever is the peer's way")
    parser.add_argument("--crop", type=int, default=227)
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the benchmark
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    out, setup = _stdout_to_ourselves(), _setup(given)
    try:
        loader = LOADERS[given.peer](setup)
    except ImportError as error:
        print(json.dumps({"missing": " ".join(str(error).split())}), file=out)
        return MISSING
    passes = Passes(loader, setup)
    off = passes.error()
    if off > WINDOW_ERROR:
        raise ValueError(f"its pictures are no windows of ours: {off:.1f} grey levels off")
    settle()
    print(json.dumps({"ready": True, "note": loader.note, "window_error": round(off, 2), "versions": _versions()}), file=out)
    for line in sys.stdin:
        print(json.dumps(passes.run(int(line.split()[1]))), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
