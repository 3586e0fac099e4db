"""ILSVRC archives or class folders -> WebDataset shards of 256x256 JPEGs, their indexes and a manifest.

python tools/make_shards.py [--source DIR] [--out shards/]
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO

from tqdm import tqdm

from pipeline.atomic import fsync_folder
from pipeline.errors import InputError, one_line_errors
from pipeline.manifest import (
    FORMAT_VERSION,
    NAME,
    Manifest,
    Rejected,
    Settings,
    Shard,
    Split,
    classes_digest,
    read_manifest,
    write_manifest,
)
from pipeline.order import order
from tools.shard_worker import Done, Task, make_shard, start_worker
from tools.sources import Listing, list_source

PROGRESS = ".progress.jsonl"  # one line per finished shard; gone when the manifest is there
WRITE_EPOCH = 2**32 - 1  # the order of samples in the shards: an epoch number that no training reaches


def make_shards(source: Path, out: Path, settings: Settings, workers: int) -> Manifest:
    """Make the shards of `source` in `out`, or say that they are there. Raises InputError for a source or folder that cannot be used."""
    finished = _finished(out, settings, source)
    if finished:
        return finished
    listing = list_source(source)
    counts = ", ".join(f"{len(entries):,} {split}" for split, entries in listing.splits.items())
    print(f"{source}: {listing.source.kind}, {len(listing.classes)} classes, {counts} pictures")
    out.mkdir(parents=True, exist_ok=True)
    with _claim(out, settings, listing) as progress:
        tasks = list(_plan(listing, out, settings))
        done = _already_done(progress, out)
        _convert_all([task for task in tasks if task.path.name not in done], done, progress, workers, sum(len(task.entries) for task in tasks))
        manifest = _manifest(listing, settings, [done[task.path.name] for task in tasks])
        write_manifest(out, manifest)
        (out / PROGRESS).unlink()
    return manifest


def _plan(listing: Listing, out: Path, settings: Settings) -> Iterator[Task]:
    """Cut each split, in one seeded permutation of all of it, into shards."""
    for split, entries in listing.splits.items():
        shuffled = [entries[i] for i in order(settings.seed, WRITE_EPOCH, len(entries))]
        for number, start in enumerate(range(0, len(shuffled), settings.shard_size)):
            yield Task(split, out / f"{split}-{number:06d}.tar", shuffled[start : start + settings.shard_size], settings)


def _finished(out: Path, settings: Settings, source: Path) -> Manifest | None:
    """The manifest of `out` if it is complete and was made the same way; InputError if it was made another way."""
    if not (out / NAME).exists():
        return None
    manifest, _ = read_manifest(out)
    for key, value in settings.model_dump().items():
        was = getattr(manifest.settings, key)
        if was != value:
            raise InputError(f"{out} is finished, with {key} {was}, not {value}; choose another --out, or delete {out} to make it anew")
    if list_source(source).source != manifest.source:
        raise InputError(f"{out} is finished, from another source than {source} is now; choose another --out, or delete {out} to make it anew")
    print(f"{out} is finished already; nothing to do")
    return manifest


@contextmanager
def _claim(out: Path, settings: Settings, listing: Listing) -> Iterator[IO[str]]:
    """The progress file, locked; begun if it is not there. A folder begun with other settings, or in use, is an InputError."""
    mark = json.dumps({"settings": settings.model_dump(), "source": listing.source.model_dump()})
    if not (out / PROGRESS).exists() and any(out.glob("*.tar")):
        raise InputError(f"{out} holds tars that this program did not begin; choose another --out")
    with open(out / PROGRESS, "a+", encoding="utf-8") as progress:
        try:
            fcntl.flock(progress, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the system lets go of it however we end
        except OSError:
            raise InputError(f"another make_shards is writing to {out}; wait for it or choose another --out") from None
        progress.seek(0)
        first = progress.readline()
        if first.endswith("\n") and first != f"{mark}\n":
            raise InputError(f"{out} was begun with other settings or another source; choose another --out, or delete {out} to begin anew")
        if not first.endswith("\n"):
            progress.truncate(0)
            _record(progress, mark)
        for leftover in out.glob(".*.tmp"):
            leftover.unlink()
        yield progress


def _record(progress: IO[str], line: str) -> None:
    progress.write(line + "\n")
    progress.flush()
    os.fsync(progress.fileno())


def _already_done(progress: IO[str], out: Path) -> dict[str, Done]:
    """Shards that an earlier run recorded and whose bytes are still those it wrote, by name."""
    progress.seek(0)
    content = progress.read()
    whole = content[: content.rfind("\n") + 1]
    if whole != content:  # a kill cut the last line off in writing; the next one must not be glued to it
        progress.truncate(len(whole.encode()))
    done: dict[str, Done] = {}
    for line in whole.splitlines()[1:]:
        try:
            found = Done(**json.loads(line))
        except (ValueError, TypeError):
            continue  # no record: the shard is made again
        path = out / found.name
        if found.samples == 0 or (path.exists() and path.with_suffix(".idx").exists() and _sha256(path) == found.sha256):
            done[found.name] = found
    return done


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _convert_all(tasks: list[Task], done: dict[str, Done], progress: IO[str], workers: int, total: int) -> None:
    """Make every task's shard on `workers` processes, recording each in `done` and in the progress file."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    before = total - sum(len(task.entries) for task in tasks)
    with (
        tqdm(total=total, initial=before, unit=" pictures", desc="shards", mininterval=0.5 if sys.stderr.isatty() else 30) as bar,
        ProcessPoolExecutor(workers, context, start_worker, (counter,)) as pool,
    ):
        waiting: set[Future[Done]] = {pool.submit(make_shard, task) for task in tasks}
        try:
            while waiting:
                finished, waiting = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in finished:
                    made = future.result()
                    done[made.name] = made
                    _record(progress, json.dumps(asdict(made)))
                bar.update(before + counter.value - bar.n)
        except BrokenProcessPool:
            raise InputError("a worker process died (out of memory?); run the same command again to go on, with fewer --workers") from None
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                for process in multiprocessing.active_children():
                    process.terminate()  # the shards under way are made again
            raise


def _manifest(listing: Listing, settings: Settings, done: list[Done]) -> Manifest:
    splits = {}
    for split in listing.splits:
        shards = tuple(Shard(name=d.name, samples=d.samples, bytes=d.bytes, sha256=d.sha256) for d in done if d.split == split and d.samples)
        splits[split] = Split(samples=sum(shard.samples for shard in shards), shards=shards)
    rejected = tuple(Rejected(split=d.split, name=name, reason=reason) for d in done for name, reason in d.rejected)
    return Manifest(
        format_version=FORMAT_VERSION,
        settings=settings,
        source=listing.source,
        classes=listing.classes,
        classes_sha256=classes_digest(listing.classes),
        splits=splits,
        rejected=tuple(sorted(rejected, key=lambda r: (r.split, r.name))),
    )


def _locate_source(given: str | None) -> Path:
    """--source, else $IMAGENET_DIR, else data/. Raises InputError when none is there."""
    folder = given or os.environ.get("IMAGENET_DIR")
    if folder and not Path(folder).is_dir():
        raise InputError(f"the source {folder} is not a folder; give the one that holds ILSVRC2012_img_train.tar, or train/CLASS/ folders")
    if not folder and not Path("data").is_dir():
        raise InputError(
            "no pictures found (--source, $IMAGENET_DIR and data/ are not there): ILSVRC2012 comes from https://image-net.org after "
            "registration; to see everything run without it: make demo"
        )
    return Path(folder or "data")


def _report(manifest: Manifest, out: Path, allowed: int) -> int:
    """Print what was made; the exit code."""
    for split, made in manifest.splits.items():
        size = sum(shard.bytes for shard in made.shards)
        mean = f", {size / made.samples / 1000:.1f} kB a picture" if made.samples else ""
        print(f"  {split}: {made.samples:,} pictures in {len(made.shards)} shard{'s' * (len(made.shards) != 1)}, {size / 1e6:,.1f} MB{mean}")
    if not manifest.rejected:
        return 0
    for rejected in manifest.rejected[:10]:
        print(f"  rejected {rejected.split} {rejected.name}: {rejected.reason}", file=sys.stderr)
    more = len(manifest.rejected) - allowed
    print(f"{len(manifest.rejected)} files rejected, all listed in {out / NAME}; the shards are complete without them", file=sys.stderr)
    if more > 0:
        print(
            f"error: {len(manifest.rejected)} rejected, {allowed} allowed; mend the source, "
            f"or accept them with --allow-failures {len(manifest.rejected)}",
            file=sys.stderr,
        )
    return 1 if more > 0 else 0


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make WebDataset shards from ILSVRC2012's archives or from class folders.")
    parser.add_argument("--source", help="folder of the archives, or of train/CLASS and val/CLASS (default: $IMAGENET_DIR, else data/)")
    parser.add_argument("--out", type=Path, default=Path("shards"), help="folder to write to (default: shards/)")
    parser.add_argument("--size", type=int, default=256, help="pixels a side (default: 256)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 95 (default: 90)")
    parser.add_argument("--shard-size", type=int, default=2000, help="samples a shard (default: 2000, about 45 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of samples (default: 0)")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: all cores)")
    parser.add_argument("--allow-failures", type=int, default=0, metavar="N", help="exit 0 with up to N rejected files (default: 0)")
    parsed = parser.parse_args(arguments)
    for name, low, high in (
        ("size", 16, 1024),
        ("quality", 1, 95),
        ("shard_size", 1, 10**6),
        ("seed", 0, 2**64 - 1),
        ("workers", 1, 4096),
        ("allow_failures", 0, 10**9),
    ):
        if not low <= getattr(parsed, name) <= high:
            raise InputError(f"--{name.replace('_', '-')} must be from {low} to {high}, not {getattr(parsed, name)}")
    return parsed


def main(arguments: list[str] | None = None) -> int:
    with one_line_errors():
        given = _arguments(arguments)
        settings = Settings(size=given.size, quality=given.quality, shard_size=given.shard_size, seed=given.seed)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
        try:
            manifest = make_shards(_locate_source(given.source), given.out, settings, given.workers)
        except KeyboardInterrupt:
            print("\nstopped; finished shards are kept: run the same command again to go on", file=sys.stderr)
            return 130
        fsync_folder(given.out)
        return _report(manifest, given.out, given.allow_failures)
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
