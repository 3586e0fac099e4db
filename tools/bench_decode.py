"""What decoding a picture of a shard costs, and what each way of making it cheaper is worth: CPU-time of one thread, side by side in one run.

    python tools/bench_decode.py --pictures FOLDER [--count 512] [--rounds 7] [--out docs/benchmarks/decode.json]

The pictures are made as make_shards makes them, in four forms of JPEG. Rounds go through all rows in turn, so that a noisy machine hits all alike.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.augment import Augmentation
from pipeline.draws import Draws, draw
from pipeline.errors import InputError, one_line_errors
from pipeline.graph import Decoder, Fed
from pipeline.manifest import Settings
from pipeline.pixels import CpuPixels
from pipeline.planes import cut_planes
from pipeline.turbojpeg_planes import decode_planes
from pipeline.windows import cut_windows
from tools.bench_where import where
from tools.picture import plain_pixels

SIZE, CROP, BATCH = 256, 227, 128
SETTINGS = Settings(size=SIZE, quality=90, shard_size=1, seed=0)
THREADS = len(os.sched_getaffinity(0))


@dataclass
class Row:
    """One line: what is done to `count` pictures by one call of `work`."""

    name: str
    note: str
    count: int
    work: Callable[[], Any]
    us: list[float] = field(default_factory=list)  # CPU-microseconds a picture, of each round


def encoded(pictures: list[Image.Image], quality: int, optimise: bool) -> list[np.ndarray]:
    jpegs = []
    for picture in pictures:
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=quality, subsampling="4:2:0", optimize=optimise)
        jpegs.append(np.frombuffer(out.getvalue(), np.uint8))
    return jpegs


def decoded(jpeg: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def psnr(pictures: list[Image.Image], jpegs: list[np.ndarray]) -> float:
    """Mean over the pictures, dB, of the JPEG against the picture it was made from."""
    errors = [np.square(np.asarray(picture, float) - decoded(jpeg)).mean() for picture, jpeg in zip(pictures, jpegs, strict=True)]
    return float(np.mean([10 * np.log10(255**2 / error) for error in errors]))


class Material:
    """The same pictures as four kinds of JPEG, and draws for them."""

    def __init__(self, source: Path, count: int) -> None:
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
        if not files:
            raise InputError(f"{source} holds no JPEGs; give a folder of some, such as the pictures/ that tools/bench_data.py makes")
        squares = [Image.fromarray(plain_pixels(path.read_bytes(), SETTINGS)) for path in files]
        self.pictures = [squares[k % len(squares)] for k in range(count)]
        self.standard, self.optimised = encoded(self.pictures, 90, False), encoded(self.pictures, 90, True)
        self.q80 = encoded(self.pictures, 80, True)
        self.draws = draw(0, 0, np.arange(count), SIZE - CROP + 1)

    def batches(self, jpegs: list[np.ndarray], batch: int) -> list[Fed]:
        feds = []
        for start in range(0, len(jpegs), batch):
            rows = np.arange(start, min(start + batch, len(jpegs)))
            feds.append(Fed([jpegs[k] for k in rows], self.draws.rows(rows), np.zeros((len(rows), 3), np.float32)))
        return feds


def dali(
    material: Material, jpegs: list[np.ndarray], out: Any, batch: int = BATCH, then: Callable[[torch.Tensor, Draws], Any] | None = None, **more: Any
) -> Callable[[], None]:
    settings: dict[str, Any] = {"augmentation": Augmentation(crop=CROP), "mean_image": np.zeros((SIZE, SIZE, 3), np.float32), "threads": 1}
    decoder = Decoder(out, batch=batch, device=torch.device("cpu"), **{**settings, **more})
    feds = material.batches(jpegs, batch)

    def work() -> None:
        for fed in feds:
            decoder.schedule(fed)
            decoded = decoder.take()
            if then is not None:
                then(decoded, fed.draws)

    return work


def make_rows(m: Material) -> list[Row]:
    count = len(m.pictures)
    pixels = CpuPixels(Augmentation(crop=CROP), np.zeros((SIZE, SIZE, 3), np.float32), "windows", 1)
    planes = np.empty((BATCH, SIZE * SIZE * 3 // 2), np.uint8)
    windows = np.empty((BATCH, CROP, CROP, 3), np.uint8)

    def mirror(decoded: torch.Tensor, draws: Draws) -> None:
        pixels.finish(decoded.flatten(1), draws, np.zeros((len(draws.x), 3), np.float32), "uint8")

    def cut(decoded: torch.Tensor, draws: Draws) -> None:
        rows = np.arange(len(decoded))
        cut_windows(windows[: len(rows)], rows, decoded.flatten(1).numpy(), SIZE, rows, draws.y, draws.x, draws.flip)

    def finish(decoded: torch.Tensor, draws: Draws) -> None:
        pixels.finish(decoded.flatten(1), draws, np.zeros((len(draws.x), 3), np.float32), "float32")

    def to_planes(cut: bool) -> Callable[[], None]:
        def work() -> None:
            for fed in m.batches(m.optimised, BATCH):
                for jpeg, out in zip(fed.jpegs, planes, strict=False):
                    decode_planes(jpeg, out, SIZE)
                if cut:
                    n = len(fed.jpegs)
                    cut_planes(planes, np.arange(n), fed.draws.y, fed.draws.x, fed.draws.flip, windows[:n])

        return work

    return [
        Row(
            "Pillow", "libjpeg-turbo to RGB, one picture after the other; optimised Huffman tables", count, lambda: [decoded(j) for j in m.optimised]
        ),
        Row("DALI, standard Huffman tables", "whole pictures, quality 90, batches of 128", count, dali(m, m.standard, "pictures")),
        Row("DALI, optimised Huffman tables", "what make_shards writes; the base of what follows", count, dali(m, m.optimised, "pictures")),
        Row("DALI, quality 80", "optimised tables", count, dali(m, m.q80, "pictures")),
        Row("DALI, batches of 8", "output stays in the processor's cache", count, dali(m, m.optimised, "pictures", 8)),
        Row("DALI, only the window", f"image_crop {CROP}: rows below it are not decoded", count, dali(m, m.optimised, "windows")),
        Row("DALI, whole, cut by us", "our kernel copies the window, mirrored or not", count, dali(m, m.optimised, "pictures", then=cut)),
        Row("DALI, window, mirrored by us", "image_crop, then our kernel", count, dali(m, m.optimised, "windows", then=mirror)),
        Row(
            "DALI, window, finished by us",
            "image_crop, then mirror, mean image, colour shift, float32 in one pass",
            count,
            dali(m, m.optimised, "windows", then=finish),
        ),
        Row("DALI does all, float32", "mean image by an operator, then crop_mirror_normalize (form B)", count, dali(m, m.optimised, "float32")),
        Row("TurboJPEG, planes", "YUV 4:2:0, neither upsampled nor converted", count, to_planes(cut=False)),
        Row("TurboJPEG, planes, window by us", "and upsampled, converted, cropped and mirrored by our kernel: uint8 RGB", count, to_planes(cut=True)),
    ]


def placement(material: Material, rounds: int) -> dict[str, float]:
    """Pictures a second of wall time with a thread a core, left to the system and each pinned to a core: medians of alternating rounds."""
    works = {
        kind: dali(material, material.optimised, "pictures", threads=THREADS, pinned=kind == "pinned") for kind in ("left to the system", "pinned")
    }
    rates: dict[str, list[float]] = {kind: [] for kind in works}
    for number in range(rounds + 1):
        for kind, work in works.items():
            began = time.perf_counter()
            work()
            if number:
                rates[kind].append(len(material.pictures) / (time.perf_counter() - began))
    return {kind: round(median(values), 1) for kind, values in rates.items()}


def measure(rows: list[Row], rounds: int) -> None:
    for number in tqdm(range(rounds + 1), desc="decode", unit=" rounds"):  # the first warms up and is not counted
        for row in rows:
            began = time.process_time()
            row.work()
            if number:
                row.us.append(1e6 * (time.process_time() - began) / row.count)


def table(rows: list[Row], result: dict[str, Any]) -> str:
    lines = [f"{'row':<34} {'us/picture':>10} {'min':>6} {'max':>6}  what"]
    lines += [f"{row.name:<34} {median(row.us):>10.0f} {min(row.us):>6.0f} {max(row.us):>6.0f}  {row.note}" for row in rows]
    lines += [
        f"{kind:<34} {value['bytes']:>10,.0f} bytes, {value['psnr_db']:.1f} dB against the picture it was made from"
        for kind, value in result["jpeg"].items()
    ]
    placed = ", ".join(f"{kind} {value:,.0f}" for kind, value in result["threads"]["pictures_per_s"].items())
    lines.append(f"DALI, {result['threads']['count']} threads, pictures/s of wall time: {placed}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="CPU-time of decoding.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of JPEGs of any size")
    parser.add_argument("--count", type=int, default=512, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/decode.json"), help="JSON to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if given.count < 1 or given.rounds < 1:
            raise InputError("--count and --rounds must be at least 1")
        torch.set_num_threads(1)
        material = Material(given.pictures, given.count)
        rows = make_rows(material)
        measure(rows, given.rounds)
        kinds = {
            "quality 90, standard tables": material.standard,
            "quality 90, optimised tables": material.optimised,
            "quality 80, optimised": material.q80,
        }
        result = {
            **where(torch.device("cpu")),
            "settings": {"pictures": given.count, "rounds": given.rounds, "size": SIZE, "crop": CROP, "batch": BATCH},
            "jpeg": {
                kind: {"bytes": float(np.mean([len(j) for j in jpegs])), "psnr_db": psnr(material.pictures, jpegs)} for kind, jpegs in kinds.items()
            },
            "threads": {"count": THREADS, "pictures_per_s": placement(material, given.rounds)},
            "rows": [{"row": r.name, "what": r.note, "cpu_us": {"median": median(r.us), "min": min(r.us), "max": max(r.us)}} for r in rows],
        }
        with atomic_file(given.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
        print(table(rows, result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
