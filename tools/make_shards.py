"""ImageNet in any of its layouts -> WebDataset shards of 256x256 JPEGs, their indexes and a manifest.

python tools/make_shards.py [--source DIR] [--out shards/]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.atomic import fsync_folder
from pipeline.errors import InputError, one_line_errors
from pipeline.manifest import NAME, Manifest, Settings, read_manifest
from pipeline.remote import is_url
from tools.shard_estimate import check_space, estimate, gigabytes
from tools.shard_job import PROGRESS, SUMS, Job, claim
from tools.shard_upload import fetch, state_folder
from tools.sources import Listing, list_source, verify_sums
from tools.workers import Workers, dask_workers, local_workers


def make_shards(
    source: Path, out: Path, settings: Settings, workers: Workers, to: str | None = None, in_order: bool = False, verify: bool = False
) -> Manifest:
    """Make the shards of `source` in `out`, or say that they are there. Raises InputError for a source or folder that cannot be used.

    to: URL that they are sent to; `out` is then where they are made, and the progress is kept. in_order: read the source from its
    beginning to its end, as is done anyway where it cannot be read otherwise.
    """
    if to is not None:
        out.mkdir(parents=True, exist_ok=True)
        fetch(to, NAME, out / NAME)  # what lies here may not have been sent
        try:
            read_manifest(out)
        except InputError:  # half a manifest is none
            (out / NAME).unlink(missing_ok=True)
    finished = _finished(out, settings, source, to)
    if finished:
        return finished
    listing = list_source(source)
    _describe(source, listing)
    if verify:
        _verify(source)
    in_order = in_order or bool(listing.streamed)
    if to is not None and in_order and workers.elsewhere:
        raise InputError(
            "a source that is read in order leaves its pictures in --out on the way, which a cluster cannot do at a URL: give a shared folder"
        )
    with claim(out, settings, listing, to, in_order) as job:
        _announce(job, workers)
        return job.run(workers)


def _verify(source: Path) -> None:
    """Raises InputError for an archive that does not have its published sum."""
    for line in verify_sums(source):
        print(f"  {line}")


def _describe(source: Path, listing: Listing) -> None:
    counts = ", ".join(f"{len(entries):,} {split}" for split, entries in listing.splits.items())
    year = f" of {listing.source.year}" if listing.source.year else ""
    print(f"{source}: {listing.source.kind}, {len(listing.classes):,} class{'es' * (len(listing.classes) != 1)}{year}, {counts} pictures")
    for line in listing.checks:
        print(f"  {line}")


def _announce(job: Job, workers: Workers) -> None:
    """Say how much space and time the rest will take. Raises InputError where there is not enough space."""
    left = sum(map(len, job.listing.splits.values())) - sum(found.samples for found in job.done.values())
    if left > 0:
        print(_outlook(job.listing, job.settings, None if job.to else job.out, workers, left, job.in_order))


def _check_apart(source: Path, out: Path) -> None:
    """Raises InputError where shards would lie among the pictures; beside the archives, in a folder of their own, they may."""
    source, there = source.resolve(), out.resolve()
    if there == source or any(there.is_relative_to(source / name) for name in ("train", "val", "test", "data", "ILSVRC", "Data")):
        raise InputError(f"--out {out} lies among the pictures of --source {source}, where nothing is written; choose another --out")


def _outlook(listing: Listing, settings: Settings, out: Path | None, workers: Workers, pictures: int, in_order: bool) -> str:
    """out: None where the shards go to a URL, whose free space nobody knows. Raises InputError where there is not enough space."""
    found = estimate(listing, settings)
    needed = pictures * found.bytes_a_picture
    space = f"about {gigabytes(needed)}"
    if in_order:
        space += ", and as much again while it runs, since the source is read from its beginning to its end,"
    if out is not None:
        space += f" of the {gigabytes(check_space(out, needed * (2 if in_order else 1)))} free"
    seconds = pictures * found.seconds_a_picture / workers.count
    time_needed = f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes" if seconds > 90 else "a minute or two"
    bad = f" ({found.tried - found.sampled} of the {found.tried} tried are no pictures)" if found.tried > found.sampled else ""
    return (
        f"  {found.sampled} of them converted{bad}, {1 / found.seconds_a_picture:,.0f} a second on one core: all {pictures:,} will take {space} "
        f"and some {time_needed} on {workers.where}"
    )


def _finished(out: Path, settings: Settings, source: Path, to: str | None) -> Manifest | None:
    """The manifest of `out` if it is complete and was made the same way; InputError if it was made another way."""
    if not (out / NAME).exists():
        return None
    manifest, _ = read_manifest(out)
    for key, value in settings.model_dump().items():
        was = getattr(manifest.settings, key)
        if was != value:
            raise InputError(f"{out} is finished, with {key} {was}, not {value}; choose another --out, or delete {out} to make it anew")
    now = list_source(source).source
    if (now.kind, now.sha256) != (manifest.source.kind, manifest.source.sha256):  # shards of version 0.1.0 do not say the year
        raise InputError(f"{out} is finished, from another source than {source} is now; choose another --out, or delete {out} to make it anew")
    for leftover in (out / PROGRESS, out / SUMS, *out.glob(".*.piece")):  # of a run that was killed in its last moment
        leftover.unlink(missing_ok=True)
    print(f"{to or out} is finished already; nothing to do")
    return manifest


def _locate_source(given: str | None) -> Path:
    """--source, else $IMAGENET_DIR, else data/. Raises InputError when none is there."""
    folder = given or os.environ.get("IMAGENET_DIR")
    if folder and not Path(folder).exists():
        raise InputError(f"the source {folder} is not there; give the folder that holds ILSVRC2012_img_train.tar, train/CLASS/ or the like")
    if not folder and not Path("data").is_dir():
        raise InputError(
            "no pictures found (--source, $IMAGENET_DIR and data/ are not there): ILSVRC2012 comes from https://image-net.org after "
            "registration; to see everything run without it: make demo"
        )
    return Path(folder or "data")


def _report(manifest: Manifest, out: str, allowed: int) -> int:
    """Print what was made; the exit code."""
    for split, made in manifest.splits.items():
        size = sum(shard.bytes for shard in made.shards)
        mean = f", {size / made.samples / 1000:.1f} kB a picture" if made.samples else ""
        print(f"  {split}: {made.samples:,} pictures in {len(made.shards)} shard{'s' * (len(made.shards) != 1)}, {size / 1e6:,.1f} MB{mean}")
    for what, files in (("taken in spite of a fault", manifest.doubtful), ("rejected", manifest.rejected)):
        for found in files[:10]:
            print(f"  {what}: {found.split} {found.name}: {found.reason}", file=sys.stderr)
    if manifest.doubtful:
        print(f"{len(manifest.doubtful)} files have a fault but could be decoded, all listed in {out}/{NAME} (doubtful)", file=sys.stderr)
    if not manifest.rejected:
        return 0
    print(f"{len(manifest.rejected)} files rejected, all listed in {out}/{NAME}; the shards are complete without them", file=sys.stderr)
    if len(manifest.rejected) <= allowed:
        return 0
    count = len(manifest.rejected)
    print(f"error: {count} rejected, {allowed} allowed; mend the source, or accept them with --allow-failures {count}", file=sys.stderr)
    return 1


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Make WebDataset shards from ImageNet in any of its layouts.")
    parser.add_argument("--source", help="folder of the archives, or of another layout (default: $IMAGENET_DIR, else data/)")
    parser.add_argument("--out", default="shards", help="folder to write to, or a URL such as s3://bucket/folder (default: shards/)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the shorter side (default: 256)")
    parser.add_argument("--resize", choices=("square", "shorter"), default="square", help="the central square, or all of it (default: square)")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, 1 to 95 (default: 90)")
    parser.add_argument("--subsampling", choices=("4:2:0", "4:4:4"), default="4:2:0", help="of the JPEG's colours (default: 4:2:0)")
    parser.add_argument("--exif", choices=("ignored", "applied"), default="ignored", help="EXIF orientation (default: ignored, as in 2012)")
    parser.add_argument("--shard-size", type=int, default=2000, help="samples a shard (default: 2000, about 45 MB)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of samples (default: 0)")
    parser.add_argument("--workers", type=int, help="processes of this machine (default: all cores)")
    parser.add_argument("--dask", metavar="ADDRESS", help="run on the Dask cluster whose scheduler is at this address; see docs/cluster.md")
    parser.add_argument(
        "--in-order", action="store_true", help="read the source from its beginning to its end, for hard disks; takes as much space again"
    )
    parser.add_argument("--verify", action="store_true", help="check the archives' published MD5 first")
    parser.add_argument("--dry-run", action="store_true", help="look at the source, say what would be made, and stop")
    parser.add_argument("--allow-failures", type=int, default=0, metavar="N", help="exit 0 with up to N rejected files (default: 0)")
    parsed = parser.parse_args(arguments)
    if parsed.dask and parsed.workers is not None:
        raise InputError("--workers are of this machine, --dask of a cluster; give one of the two")
    if parsed.workers is None:
        parsed.workers = len(os.sched_getaffinity(0))
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


def _settings(given: argparse.Namespace) -> Settings:
    return Settings(
        size=given.size,
        quality=given.quality,
        subsampling=given.subsampling,
        shape=given.resize,
        decode="scaled",
        exif_orientation=given.exif,
        shard_size=given.shard_size,
        seed=given.seed,
    )


@contextmanager
def _workers(given: argparse.Namespace) -> Iterator[Workers]:
    if given.dask:
        with dask_workers(given.dask) as workers:
            yield workers
    else:
        yield local_workers(given.workers)


def _run(given: argparse.Namespace) -> int:
    source, settings = _locate_source(given.source), _settings(given)
    to = given.out if is_url(given.out) else None
    out = (Path(given.out) if to is None else state_folder(to)).absolute()  # workers may be elsewhere
    source = source.absolute() if given.dask else source
    if to is None:
        _check_apart(source, out)
    with _workers(given) as workers:
        if given.dry_run:
            listing = list_source(source)
            _describe(source, listing)
            if given.verify:
                _verify(source)
            total = sum(map(len, listing.splits.values()))
            print(_outlook(listing, settings, None if to else out, workers, total, given.in_order or bool(listing.streamed)))
            return 0
        manifest = make_shards(source, out, settings, workers, to, given.in_order, given.verify)
    fsync_folder(out)
    if to is not None:
        shutil.rmtree(out)
    print(f"in {given.out}" + ("" if to else f"; next: python tools/compute_pca.py --shards {given.out}"))
    return _report(manifest, given.out, given.allow_failures)


def main(arguments: list[str] | None = None) -> int:
    with one_line_errors():
        given = _arguments(arguments)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop is a Ctrl-C
        try:
            return _run(given)
        except KeyboardInterrupt:
            print("\nstopped; finished shards are kept: run the same command again to go on", file=sys.stderr)
            return 130
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
