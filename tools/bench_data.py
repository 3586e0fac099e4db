"""The material of a benchmark: real pictures, repeated under other names to any number of samples, as shards with their statistics.

    python tools/bench_data.py --pictures TAR_OR_FOLDER --out DIR --samples 10000 [--classes 10] [--quality 90]

DIR/pictures holds each picture once, DIR/train/CLASS/ its repetitions (links to it), DIR/shards what make_shards and compute_pca make
of them. The pictures, sorted by name, go to the classes in turn, so a picture's class depends on nothing else.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError, one_line_errors

ENDINGS = (".jpg", ".jpeg")


def bench_data(pictures: Path, out: Path, samples: int, classes: int) -> int:
    """Lay DIR/pictures and DIR/train/CLASS/; how many different pictures there are. Raises InputError, and leaves nothing then."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; choose another --out, or delete it to make it anew")
    (out / "pictures").mkdir(parents=True)
    try:
        count = sum(1 for _ in _copies(pictures, out / "pictures"))
        if not classes <= count <= samples:
            raise InputError(f"{pictures} has {count} JPEGs: --classes must be at most as many, and --samples at least")
    except InputError:
        shutil.rmtree(out)
        raise
    for number in range(classes):
        (out / "train" / _class(number)).mkdir(parents=True)
    for sample in range(samples):
        repetition, picture = divmod(sample, count)
        link = out / "train" / _class(picture % classes) / f"picture_{picture:05d}_{repetition:05d}.jpg"
        link.symlink_to(Path("..", "..", "pictures", _picture(picture)))
    return count


def _class(number: int) -> str:
    return f"class_{number:03d}"


def _picture(number: int) -> str:
    return f"{number:05d}.jpg"


def _copies(pictures: Path, to: Path) -> Iterator[Path]:
    """Copy the JPEGs of a tar or folder into `to`, numbered in the order of their names. No name of the source is used to write."""
    if pictures.is_dir():
        found = sorted(path for path in pictures.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        for number, path in enumerate(found):
            yield Path(shutil.copyfile(path, to / _picture(number)))
        return
    try:
        with tarfile.open(pictures) as tar:
            members = sorted((m for m in tar if m.isfile() and m.name.lower().endswith(ENDINGS)), key=lambda member: member.name)
            for number, member in enumerate(members):
                file = tar.extractfile(member)
                assert file is not None, f"{member.name} is a file"
                with open(to / _picture(number), "wb") as copy:
                    shutil.copyfileobj(file, copy)
                yield to / _picture(number)
    except (tarfile.TarError, EOFError, FileNotFoundError) as error:
        raise InputError(f"{pictures} is neither a folder nor a whole tar ({error}); give one that holds JPEGs") from None


def _run(tool: str, *arguments: object) -> None:
    """Run another tool of this folder; where it fails, it has said why, and we end with its exit code."""
    code = subprocess.run([sys.executable, str(Path(__file__).with_name(tool)), *map(str, arguments)], check=False).returncode
    if code:
        sys.exit(code)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Benchmark shards from a few real pictures.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="tar or folder of JPEGs")
    parser.add_argument("--out", type=Path, required=True, help="new folder; the shards go to its shards/")
    parser.add_argument("--samples", type=int, default=10000, help="samples in the shards")
    parser.add_argument("--classes", type=int, default=10, help="class folders")
    parser.add_argument("--size", type=int, default=256, help="pixels a side, for make_shards")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality, for make_shards")
    parser.add_argument("--shard-size", type=int, default=2000, help="samples a shard, for make_shards")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    given = parser.parse_args(arguments)
    for name in ("samples", "classes", "workers"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(given, name)}")
    return given


def main(arguments: list[str] | None = None) -> int:
    with one_line_errors():
        given = _arguments(arguments)
        count = bench_data(given.pictures, given.out, given.samples, given.classes)
        print(f"{given.out}: {given.samples:,} samples of {count} pictures in {given.classes} classes", flush=True)
        shards = given.out / "shards"
        settings = ("--size", given.size, "--quality", given.quality, "--shard-size", given.shard_size, "--workers", given.workers)
        _run("make_shards.py", "--source", given.out, "--out", shards, *settings)
        _run("compute_pca.py", "--shards", shards, "--workers", given.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
