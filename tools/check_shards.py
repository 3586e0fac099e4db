"""Whether every byte of a folder of shards is what its manifest says and, with --decode, every picture what the format says.

python tools/check_shards.py [--shards shards/] [--decode]

Reads only. Exit code 0: all is right; 1: faults, a line each; 2: it could not be run.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.bounded import open_regular
from pipeline.colour import MEAN_NAME, STATISTICS_NAME, read_colour_stats
from pipeline.errors import InputError, one_line_errors
from pipeline.jpeg_header import format_fault
from pipeline.manifest import NAME, Manifest, Settings, Shard, read_manifest
from pipeline.tarshard import Index, read_index, read_sample
from pipeline.verify import check_shards
from tools import pixel_sums
from tools.workers import start_worker

CHUNK = 256  # samples a decoding task
NOTED = 5  # stray files named in the note; the others are counted


def check_sums(folder: Path, shards: Sequence[Shard], workers: int) -> list[str | None]:
    """Per shard the fault of its bytes, one line, or None; with a progress bar, and the speed at the end."""
    size, begun = sum(shard.bytes for shard in shards), time.perf_counter()
    with tqdm(total=size, unit="B", unit_scale=True, desc="sums", mininterval=_interval()) as bar:
        faults = check_shards(folder, shards, workers, bar.update)
    seconds = time.perf_counter() - begun
    samples = sum(shard.samples for shard in shards)
    speed = f"{size / 1e6:,.1f} MB in {seconds:.1f} s, {size / seconds / 1e9:.2f} GB/s on {workers} thread{'s' * (workers != 1)}"
    print(f"  {len(shards):,} shard{'s' * (len(shards) != 1)}, {samples:,} samples: {speed}")
    return faults


def check_pictures(folder: Path, shards: Sequence[Shard], manifest: Manifest, workers: int) -> list[str]:
    """A line for every sample whose picture or label is not as the format says, on `workers` processes. Raises InputError."""
    settings, classes = manifest.settings, len(manifest.classes)
    tasks = [(folder / shard.name, shard.samples, start, settings, classes) for shard in shards for start in range(0, shard.samples, CHUNK)]
    context = multiprocessing.get_context("spawn")
    stopped = context.Value("b", 0, lock=False)
    with (
        tqdm(total=sum(shard.samples for shard in shards), unit=" pictures", desc="pictures", mininterval=_interval()) as bar,
        ProcessPoolExecutor(max(1, min(workers, len(tasks))), context, _start, (stopped, os.getpid())) as pool,
    ):
        try:
            with _ctrl_c_later():  # the workers start here, and keep it so
                futures = [pool.submit(check_samples, *task) for task in tasks]
            for future in as_completed(futures):
                bar.update(future.result()[0])
            return [fault for future in futures for fault in future.result()[1]]
        except BrokenProcessPool:
            raise InputError("a worker process died (out of memory?); run the same command again, with fewer --workers") from None
        except BaseException:
            stopped.value = 1  # workers that were killed would break the pool, whose threads may print what they then meet
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, and never comes to processes begun in it: half started, each would print a traceback."""
    pressed: list[int] = []
    resource_tracker.ensure_running()  # the helper of multiprocessing, which would unblock the signal when it starts
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))  # any thread may get it
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # what the processes begin with
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _interval() -> float:
    return 0.5 if sys.stderr.isatty() else 30  # seconds between two states of a bar


_stopped: Any = None


def _start(stopped: Any, parent: int) -> None:
    """In a worker. stopped: shared with all, not 0 when there is nothing more to do."""
    global _stopped
    _stopped = stopped
    start_worker(None, parent)


@lru_cache(maxsize=2)
def _index_of(path: Path, samples: int) -> Index:
    return read_index(path.with_suffix(".idx"), samples)


def check_samples(path: Path, samples: int, start: int, settings: Settings, classes: int) -> tuple[int, list[str]]:
    """In a worker: up to CHUNK samples of a shard from row `start` on; how many, and a line for each that is not right."""
    rows = range(start, min(start + CHUNK, samples))
    try:
        index = _index_of(path, samples)
        with open_regular(path) as file:
            found = [_sample_fault(file.fileno(), path, index, row, settings, classes) for row in rows if not _stopped.value]
    except OSError as error:
        return len(rows), [f"{path}: {error.strerror}; check the disk, then copy or make this shard again"]
    return len(rows), [fault for fault in found if fault is not None]


def _sample_fault(descriptor: int, path: Path, index: Index, row: int, settings: Settings, classes: int) -> str | None:
    try:
        jpeg, label = read_sample(descriptor, path, index, row)
    except InputError as error:
        return str(error)
    least = -1 if path.name.startswith("test-") else 0  # labels of a test split may not be known
    wrong_label = f"label {label}, but the manifest has {classes} classes" if not least <= label < classes else None
    whys = [picture_fault(jpeg, settings), wrong_label]
    if not any(whys):
        return None
    why = ", and ".join(filter(None, whys))
    return f"{path}: sample {index.keys[row]} at offset {index.jpeg_offset[row]}: {why}; make this shard again"


def picture_fault(jpeg: np.ndarray, settings: Settings) -> str | None:
    """Why an encoded picture, (bytes,) uint8, is not one that the format allows and Pillow decodes; None when it is.

    The header comes first: what it claims would be allocated. libjpeg goes on after a wrong code in the picture's data
    with a warning that Pillow does not pass on: such a picture, damaged before its sums were taken, is not found.
    """
    square = settings.shape == "square"
    why = format_fault(jpeg, settings.size, square, settings.subsampling)
    if why:
        return why
    try:
        picture = Image.open(io.BytesIO(jpeg.tobytes()), formats=("JPEG",))
        picture.load()
    except (OSError, ValueError, SyntaxError, IndexError) as error:
        return f"it cannot be decoded ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    if picture.mode != "RGB":
        return f"it decodes to {picture.mode}, not RGB"
    return "it has EXIF data" if "exif" in picture.info else None


def stray_files(folder: Path, manifest: Manifest) -> list[str]:
    """What lies in the folder and belongs to no part of the format, sorted."""
    known = {NAME, STATISTICS_NAME, MEAN_NAME, pixel_sums.NAME, "README.md", ".gitignore"}
    for split in manifest.splits.values():
        for shard in split.shards:
            known |= {shard.name, Path(shard.name).with_suffix(".idx").name}
    return sorted(set(os.listdir(folder)) - known)


def _colour_fault(folder: Path, digest: str, size: int) -> str | None:
    """What is wrong with the colour statistics, if there are any."""
    if not (folder / STATISTICS_NAME).exists() and not (folder / MEAN_NAME).exists():
        print("  note: no colour statistics yet (tools/compute_pca.py makes them)")
        return None
    try:
        read_colour_stats(folder, digest, size)
    except InputError as error:
        return str(error)
    return None


def check(folder: Path, workers: int, decode: bool) -> list[str]:
    """All that is wrong with a folder of shards, one line each. Raises InputError when its manifest cannot be used."""
    manifest, digest = read_manifest(folder)
    shards = [shard for split in manifest.splits.values() for shard in split.shards]
    found = check_sums(folder, shards, workers)
    faults = [fault for fault in (*found, _colour_fault(folder, digest, manifest.settings.size)) if fault is not None]
    if decode:
        whole = [shard for shard, fault in zip(shards, found, strict=True) if fault is None]
        faults += check_pictures(folder, whole, manifest, workers)
    if stray := stray_files(folder, manifest):
        more = f" and {len(stray) - NOTED:,} more" if len(stray) > NOTED else ""
        print(f"  note: in {folder}, but not in the manifest, and read by nobody: {', '.join(map(repr, stray[:NOTED]))}{more}")
    return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check a folder of shards against the SHA-256 sums in its manifest; reads only.")
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards (default: shards/)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="threads, and processes of --decode (default: all cores)")
    parser.add_argument("--decode", action="store_true", help="also decode every picture: right size, RGB, baseline 4:2:0, a label of the manifest")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if not 1 <= given.workers <= 4096:
            raise InputError(f"--workers must be from 1 to 4096, not {given.workers}")
        faults = check(given.shards, given.workers, given.decode)
        for fault in faults:
            print(f"  fault: {fault}", file=sys.stderr)
        if faults:
            print(f"error: {len(faults):,} fault{'s' * (len(faults) != 1)} in {given.shards}; each is named above", file=sys.stderr)
            return 1
        print(f"  {given.shards} is what its manifest says{', and every picture decodes' * given.decode}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
