#!/usr/bin/env python3
"""Draw a small, seeded look-alike of ILSVRC2012 in the official archive layout.

Classes differ by structure only; colour, light and contrast come from one distribution. Odd pictures, as the real set
has them: walk the training pictures in rounds (the first of every class by ILSVRC2012_ID, then the second of every
class, ...); the first six are ODDITIES, in that order (fewer where fewer fit). The first validation picture is grey.
"""

import argparse
import gzip
import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import scipy.io
from PIL import Image
from tqdm import tqdm

from pipeline.errors import InputError
from tools.drawings import KINDS, Rng, paint

Job = tuple[int, int, int, int, str, int, str]  # seed, split, class, index, words, side, oddity
VERSION = 1  # raise when the drawing changes, so that old archives are not taken for new
DEVKIT, RECORD = "ILSVRC2012_devkit_t12", "lookalike.json"
ARCHIVES = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", f"{DEVKIT}.tar.gz")
ODDITIES = ("png", "cmyk", "grey", "turned", "huge", "progressive")
TRAIN, VAL, NUMBERS, PLAN = range(4)  # second word of every seed


def draw_size(rng: Rng, side: int) -> tuple[int, int]:
    """Width and height: mostly landscape, some portrait or square, few small or large."""
    scale = rng.choice((1, rng.uniform(0.32, 0.7), rng.uniform(1.1, 1.6)), p=(0.87, 0.06, 0.07))
    ratio = rng.choice((0.75, 0.75, 0.67, 0.8, 1.0), p=(0.4, 0.2, 0.2, 0.1, 0.1))
    long, short = max(24, round(side * scale)), max(24, round(side * scale * ratio))
    return (short, long) if rng.random() < 0.22 else (long, short)


def draw_job(job: Job) -> bytes:
    """One picture's file; its seed is its own, so the order of work does not matter."""
    seed, split, class_id, index, words, side, oddity = job
    rng, data, exif = np.random.default_rng((seed, split, class_id, index)), io.BytesIO(), Image.Exif()
    picture = paint(rng, words, *((side, side * 3 // 4) if oddity == "huge" else draw_size(rng, side)))
    if oddity == "huge":
        picture = picture.resize((4000, 3000))
    elif oddity == "turned":  # stored lying; a viewer that heeds the tag turns it upright
        picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
    picture = picture.convert({"png": "RGBA", "cmyk": "CMYK", "grey": "L"}.get(oddity, "RGB"))
    picture.save(
        data,
        "PNG" if oddity == "png" else "JPEG",
        quality=int(rng.integers(75, 96)),
        subsampling=int(rng.choice((0, 2))),
        progressive=oddity == "progressive",
        exif=exif.tobytes() if exif else b"",
    )
    return data.getvalue()


def draw_all(jobs: list[Job], workers: int) -> Iterator[bytes]:
    """Every job's file in order, from a pool that leaves Ctrl-C to this process."""
    with multiprocessing.get_context("spawn").Pool(workers, signal.signal, (signal.SIGINT, signal.SIG_IGN)) as pool:
        yield from pool.imap(draw_job, jobs, chunksize=8)


def meta_mat(wnids: list[str], words: list[str], train: int) -> bytes:
    """meta.mat: struct array `synsets` (N, 1), the leaves first, then two groups and the root."""
    fields, count = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images", len(wnids)
    halves = [half.tolist() for half in np.array_split(np.arange(1, count + 1), min(2, count))]
    children: list[list[int]] = [[]] * count + halves + [[*range(count + 1, count + 1 + len(halves))]]
    synsets = np.empty((len(children), 1), [(name, object) for name in fields.split()])
    for i, below in enumerate(children):
        name, word = (wnids[i], words[i]) if i < count else (f"n8{i:07d}", f"group {i}")
        rank = (i >= count) + (i == len(children) - 1)  # 0 for a leaf, 1 for a group, 2 for the root
        synsets[i, 0] = (
            np.int32(i + 1),
            name,
            word,
            f"a drawing of {word}",
            np.int32(len(below)),
            np.array([below], np.int32),
            np.int32(rank),
            np.int32(0 if rank else train),
        )
    data = io.BytesIO()
    scipy.io.savemat(data, {"synsets": synsets}, do_compression=True)
    return b"MATLAB 5.0 MAT-file, ILSVRC2012 look-alike".ljust(116) + data.getvalue()[116:]  # no date


def write_tar(file: IO[bytes], members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)  # owner 0, mode 644
            info.size, info.mtime = len(data), 1_340_000_000
            tar.addfile(info, io.BytesIO(data))


def class_tars(files: Iterator[bytes], wnids: list[str], train: int, seed: int) -> Iterator[tuple[str, bytes]]:
    for class_id, wnid in sorted(enumerate(wnids, 1), key=lambda pair: pair[1]):
        numbers, inner = np.random.default_rng((seed, NUMBERS, class_id)).integers(1, 40, train).cumsum(), io.BytesIO()
        write_tar(inner, ((f"{wnid}_{number}.JPEG", next(files)) for number in numbers))
        yield f"{wnid}.tar", inner.getvalue()


def write_devkit(file: IO[bytes], meta: bytes, truth: list[int]) -> None:
    inner, lines = io.BytesIO(), "".join(f"{class_id}\n" for class_id in truth).encode()
    write_tar(inner, [(f"{DEVKIT}/data/meta.mat", meta), (f"{DEVKIT}/data/ILSVRC2012_validation_ground_truth.txt", lines)])
    file.write(gzip.compress(inner.getvalue(), mtime=0))


def record_of(settings: dict[str, int], sizes: dict[str, int]) -> bytes:
    return json.dumps({"settings": settings, "sizes": sizes}, indent=1).encode()


def already_made(out: Path, settings: dict[str, int]) -> bool:
    """Whether these very archives are there; other files of their names are an error."""
    sizes = {name: (out / name).lstat().st_size for name in ARCHIVES if os.path.lexists(out / name)}
    record = (out / RECORD).read_bytes() if (out / RECORD).is_file() else b""
    if sizes and (len(sizes) < len(ARCHIVES) or record != record_of(settings, sizes)):
        raise InputError(f"{out} already holds {', '.join(sizes)}, not made with these settings; nothing changed: choose another --out")
    return bool(sizes)


def write_all(out: Path, settings: dict[str, int], writers: list[Callable[[IO[bytes]], object]]) -> None:
    """Write the archives and the record under temporary names, then rename all, the record last."""
    parts = {name: out / f".{name}.{os.getpid()}.part" for name in (*ARCHIVES, RECORD)}
    writers = [*writers, lambda file: file.write(record_of(settings, {n: parts[n].stat().st_size for n in ARCHIVES}))]
    try:
        for part, write in zip(parts.values(), writers, strict=True):
            with part.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        already_made(out, {})  # refuses whatever came there during the drawing
        for name, part in parts.items():
            part.replace(out / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def make_lookalike(out: Path, classes: int, train: int, val: int, seed: int, side: int, workers: int) -> None:
    """Draw the archives into `out`, unless they are there; train, val: pictures a class; side: usual long side, pixels."""
    settings = {"version": VERSION, "classes": classes, "train": train, "val": val, "seed": seed, "side": side}
    if not 1 <= classes <= len(KINDS) or min(train, val, workers) < 1 or seed < 0 or side < 32:
        raise InputError(f"classes must be 1 to {len(KINDS)}; train, val and workers 1 or more; seed 0 or more; side 32 or more")
    if already_made(out, settings):
        print(f"{out} already holds this look-alike; nothing to do")
        return
    rng = np.random.default_rng((seed, PLAN))
    wnids, words = [f"n9{n:07d}" for n in rng.choice(10**7, classes, replace=False)], list(KINDS)[:classes]
    rng.shuffle(words)
    while classes > 1 and wnids == sorted(wnids):  # IDs must not follow the sorted wnids
        rng.shuffle(wnids)
    truth = rng.permutation(np.repeat(np.arange(1, classes + 1), val)).tolist()
    plan = [(TRAIN, i, k) for i in (np.argsort(wnids) + 1).tolist() for k in range(train)] + [(VAL, i, k) for k, i in enumerate(truth)]
    odd = {(TRAIN, j % classes + 1, j // classes): name for j, name in enumerate(ODDITIES)} | {(VAL, truth[0], 0): "grey"}
    jobs = [(seed, split, i, k, words[i - 1], side, odd.get((split, i, k), "")) for split, i, k in plan]
    out.mkdir(parents=True, exist_ok=True)
    drawn = draw_all(jobs, workers) if workers > 1 else map(draw_job, jobs)
    files = iter(tqdm(drawn, "drawing", len(jobs), unit=" pictures"))
    write_all(
        out,
        settings,
        [
            lambda file: write_tar(file, class_tars(files, wnids, train, seed)),
            lambda file: write_tar(file, ((f"ILSVRC2012_val_{n:08d}.JPEG", data) for n, data in enumerate(files, 1))),
            lambda file: write_devkit(file, meta_mat(wnids, words, train), truth),
        ],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a look-alike of ILSVRC2012.", usage=argparse.SUPPRESS)  # one-line errors
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder of the archives")
    for name, usual, meaning in (
        ("classes", 10, f"how many, up to {len(KINDS)}"),
        ("train", 160, "pictures a class"),
        ("val", 20, "pictures a class"),
        ("seed", 0, "another seed, other pictures"),
        ("side", 500, "usual long side in pixels"),
        ("workers", os.cpu_count() or 1, "processes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=usual, help=f"{meaning} (%(default)s)")
    try:
        make_lookalike(**vars(parser.parse_args()))
    except (InputError, OSError, KeyboardInterrupt) as error:
        print(f"error: {str(error) or 'stopped; nothing was kept'}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
