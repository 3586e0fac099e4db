"""Images per second that each stage of the loader gives, side by side in one run.

    python tools/bench_loader.py [--shards DIR] [--batch 128] [--threads 1,2] [--rounds 5] [--images 4000] [--out FILE] [--device cpu|cuda]

The rows are in STAGES: a to e add one stage each, f and g are what training uses, h is plain DALI over the same tars. A round takes --images
(in whole batches) through every row, so that a noisy machine hits all alike; the round before the first is short and not counted. Each pass has
the same pictures (h: any), so after the first they come from the page cache. The clock of a pass starts with empty queues and ends when the
last batch is in hand and no more is under way: neither filling nor running ahead is given away. CPU-seconds are user and system time of all threads.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache, partial
from itertools import islice
from pathlib import Path
from statistics import median
from timeit import timeit
from typing import Any

import numpy as np
import nvidia.dali
import torch
from nvidia.dali import fn, pipeline_def, types
from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.augment import Augmentation, finish
from pipeline.colour import ColourStats, read_colour_stats
from pipeline.draws import draw
from pipeline.errors import InputError, one_line_errors
from pipeline.graph import Fed, build_graph, decode, to_torch, windows
from pipeline.loader import ImageLoader
from pipeline.order import order
from pipeline.shards import ShardSet

SEED, PREFETCH, WARM_UP = 0, 2, 4  # batches: DALI works on ahead (ImageLoader's default); through each row before the first round

STAGES = {  # row: (what it covers, what one has to know to read it)
    "a": ("feed", "permuted order, read with CRC, labels, draws, colour shift; no DALI; one thread"),
    "b": ("feed -> DALI", "a, and DALI copies the encoded pictures in and hands them out; in CPU memory with --device cuda, too"),
    "c": ("... decode", "b, and whole pictures decoded to uint8"),
    "d": ("... crop, flip, uint8", "build_graph(out='uint8'): on the CPU only the window is decoded"),
    "e": ("all in DALI, float32", "build_graph(out='float32'): whole pictures decoded, mean image, crop, flip, colour shift"),
    "f": ("uint8, then finish()", "d, then mean image and colour shift by pipeline.augment: a pair of column ranks, less their exchange"),
    "g": ("ImageLoader", "e behind the loader's own thread and queue; within the clock it computes the order of each epoch (epoch_order_s)"),
    "h": ("plain DALI, uint8", "readers.webdataset (random_shuffle, initial_fill 1000), then as d with DALI's own draws; labels ignored, no CRC"),
}


@dataclass(frozen=True)
class Setup:
    """What all rows share."""

    shards: ShardSet
    stats: ColourStats
    augmentation: Augmentation
    batch: int
    device: torch.device


@dataclass
class Row:
    """One line of the result. threads: DALI's, None without DALI. results: images in each batch of the pass that the feed stands at."""

    key: str
    threads: int | None
    results: Callable[[], Iterator[int]]
    images: int = 0  # counted, all rounds
    per_s: list[float] = field(default_factory=list)  # images a second, of each round
    per_cpu_s: list[float] = field(default_factory=list)  # images a CPU-second


def schedule(batches: int, an_epoch: int) -> list[tuple[int, int]]:
    """(epoch, batch in the epoch) of a pass. It ends with an epoch, since only there does ImageLoader not run ahead."""
    skipped = -batches % an_epoch
    return [divmod(skipped + batch, an_epoch) for batch in range(batches)]


class Feed(Iterator[Fed]):
    """The batches of a pass as ImageLoader feeds them. due: (epoch, batch in the epoch) of those not yet fed."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._order = cache(lambda epoch: order(SEED, epoch, len(setup.shards)))
        self.due: Iterator[tuple[int, int]] = iter(())

    def begin(self, batches: int) -> None:
        """Stand at the start of a pass; the order of its epochs is computed here, before the clock starts."""
        due = schedule(batches, len(self._setup.shards) // self._setup.batch)
        for epoch, _ in due:
            self._order(epoch)
        self.due = iter(due)

    def __next__(self) -> Fed:
        s, (epoch, number) = self._setup, next(self.due)  # StopIteration ends DALI's pass
        ids = self._order(epoch)[number * s.batch : (number + 1) * s.batch]
        draws = draw(SEED, epoch, ids, len(s.stats.mean_image) - s.augmentation.crop + 1)
        shift = s.stats.shift(draws.normals, s.augmentation.colour, s.augmentation.sigma)
        samples = [s.shards.read(int(sample)) for sample in ids]
        np.array([label for _, label in samples], dtype=np.int64)  # as the loader does; DALI is not given them
        return Fed([jpeg for jpeg, _ in samples], draws, shift)


def encoded_or_decoded(setup: Setup, feed: Feed, threads: int, decoded: bool) -> Any:
    """Pipeline of row b (decoded False) or c."""

    @pipeline_def(batch_size=setup.batch, num_threads=threads, device_id=setup.device.index if decoded else None, prefetch_queue_depth=PREFETCH)
    def graph() -> Any:
        jpeg = fn.external_source(lambda: next(feed).jpegs, batch=True, dtype=types.UINT8, ndim=1)
        return decode(jpeg, setup.device.type) if decoded else jpeg

    return graph()


def plain_dali(setup: Setup, feed: Feed, threads: int) -> Any:
    """Pipeline of row h. A reader has no end, so a second input, two numbers a picture, ends the pass after its batches."""
    paths = [setup.shards.folder / shard.name for shard in setup.shards.manifest.splits["train"].shards]
    files: dict[str, Any] = {"paths": [str(path) for path in paths], "index_paths": [str(path.with_suffix(".idx")) for path in paths]}

    @pipeline_def(batch_size=setup.batch, num_threads=threads, device_id=setup.device.index, prefetch_queue_depth=PREFETCH, seed=SEED)
    def graph() -> Any:
        jpeg = fn.readers.webdataset(**files, ext=["jpg"], random_shuffle=True, initial_fill=1000)
        window = {"crop": [setup.augmentation.crop] * 2, "crop_pos_x": fn.random.uniform(range=(0, 1)), "crop_pos_y": fn.random.uniform(range=(0, 1))}
        flipped = windows(jpeg, window, fn.random.coin_flip(dtype=types.INT32), setup.device.type)
        return flipped, fn.external_source(lambda: np.array([next(feed.due)] * setup.batch), batch=True)

    return graph()


def through(pipe: Any, use: Callable[[Any], Any] = lambda output: output) -> Iterator[int]:
    """Rows b to f and h: images in each result, in hand and put to `use`, until the source ends; nothing is under way in DALI then."""
    with suppress(StopIteration):
        while True:
            yield len(use(pipe.run()[0]))  # run() waits until the batch is there, on the GPU too
    pipe.reset()


def finished(setup: Setup, feed: Feed, graph: Callable[..., Any]) -> Callable[[], Iterator[int]]:
    """Row f: DALI's uint8 windows, finished on the loader's device."""
    ahead: deque[Fed] = deque()  # fed, but without a result yet
    mean = torch.from_numpy(setup.stats.mean_image).to(setup.device)

    def feed_and_keep() -> Fed:
        ahead.append(next(feed))
        return ahead[-1]

    def use(output: Any) -> torch.Tensor:
        fed = ahead.popleft()
        return finish(to_torch(output, setup.device), fed.draws, torch.from_numpy(fed.shift).to(setup.device), mean, setup.augmentation)

    return partial(through, graph(feed_and_keep), use)


def loaded(feed: Feed, loader: ImageLoader) -> Iterator[int]:
    """Row g: from the first batch that is due to the end of the last epoch."""
    due = list(feed.due)
    (epoch, number), (last, _) = due[0], due[-1]
    loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "position": number * loader.batch})
    while loader.epoch <= last:
        for batch in loader:
            yield len(batch.images)


def make_rows(s: Setup, feed: Feed, threads: list[int]) -> list[Row]:
    """All rows in the order of STAGES. Raises InputError where ImageLoader does, before anything is measured."""
    rows = [Row("a", None, lambda: (len(fed.jpegs) for fed in feed))]
    both: dict[str, Any] = {"augmentation": s.augmentation, "batch": s.batch, "prefetch": PREFETCH}
    graph: Callable[..., Any] = partial(build_graph, mean_image=s.stats.mean_image, device=s.device.type, device_id=s.device.index, **both)
    for n in threads:
        loader = ImageLoader(s.shards.folder, "train", seed=SEED, device=s.device, threads=n, **both)
        rows += [
            Row("b", n, partial(through, encoded_or_decoded(s, feed, n, decoded=False))),
            Row("c", n, partial(through, encoded_or_decoded(s, feed, n, decoded=True))),
            Row("d", n, partial(through, graph(feed.__next__, threads=n, out="uint8"))),
            Row("e", n, partial(through, graph(feed.__next__, threads=n, out="float32"))),
            Row("f", n, finished(s, feed, partial(graph, threads=n, out="uint8"))),
            Row("g", n, partial(loaded, feed, loader)),
            Row("h", n, partial(through, plain_dali(s, feed, n))),
        ]
    return sorted(rows, key=lambda row: row.key)


def clocked(row: Row, feed: Feed, batches: int) -> tuple[int, float, float]:
    """Images, seconds and CPU-seconds of one pass of one row."""
    feed.begin(batches)
    results = row.results()
    wall, cpu = time.perf_counter(), sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    images = sum(islice(results, batches))
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, sum(resource.getrusage(resource.RUSAGE_SELF)[:2]) - cpu
    assert sum(results) == 0, f"row {row.key} gave more than {batches} batches"  # after the clock, it cleans up
    return images, wall, max(cpu, 1e-6)  # getrusage counts microseconds


def measure(rows: list[Row], feed: Feed, batches: int, rounds: int) -> None:
    """Round by round over all rows; the first, short round is not counted."""
    passes = [(number, row) for number in range(rounds + 1) for row in rows]
    for number, row in tqdm(passes, unit=" passes", desc="loader", mininterval=0.5 if sys.stderr.isatty() else 30):
        images, wall, cpu = clocked(row, feed, batches if number else min(batches, WARM_UP))
        if number:
            row.images += images
            row.per_s.append(round(images / wall, 1))
            row.per_cpu_s.append(round(images / cpu, 1))


def _summary(row: Row) -> dict[str, Any]:
    """A row of the JSON; images: counted over all rounds."""
    stage, note = STAGES[row.key]
    rates = {"images_per_s": {"median": median(row.per_s), "min": min(row.per_s), "max": max(row.per_s)}, "images_per_cpu_s": median(row.per_cpu_s)}
    return {"row": row.key, "stage": stage, "threads": row.threads, "images": row.images, **rates, "note": note}


def _where(device: torch.device) -> dict[str, Any]:
    """Machine and versions; no names of hosts or folders."""
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    libraries = {"numpy": np.__version__, "torch": str(torch.__version__), "dali": nvidia.dali.__version__}
    return {
        "machine": {"cpu": names[0] if names else platform.machine(), "cores": len(os.sched_getaffinity(0)), "gpu": gpu},
        "versions": {"python": platform.python_version(), **libraries, "commit": commit},
    }


def benchmark(setup: Setup, threads: list[int], rounds: int, images: int) -> dict[str, Any]:
    """The whole result, as it is written to the JSON."""
    feed, batches, split = Feed(setup), -(-images // setup.batch), setup.shards.manifest.splits["train"]
    rows = make_rows(setup, feed, threads)
    measure(rows, feed, batches, rounds)
    settings = {"batch": setup.batch, "threads": threads, "rounds": rounds, "images_a_round": batches * setup.batch, "prefetch": PREFETCH}
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **_where(setup.device),
        "settings": {**settings, "device": setup.device.type, "augmentation": vars(setup.augmentation)},
        "shards": {"samples": split.samples, "size": len(setup.stats.mean_image), "tar_bytes": sum(shard.bytes for shard in split.shards)},
        "epoch_order_s": round(timeit(partial(order, SEED, 0, split.samples), number=1), 4),
        "rows": [_summary(row) for row in rows],
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"row  {'stage':<22} {'DALI threads':>12} {'images/s':>9} {'min':>8} {'max':>8} {'images/CPU-s':>13} {'images':>8}"]
    for row in result["rows"]:
        rates = " ".join(f"{row['images_per_s'][name]:>{width},.0f}" for name, width in (("median", 9), ("min", 8), ("max", 8)))
        lines.append(f"{row['row']:<4} {row['stage']:<22} {row['threads'] or '-':>12} {rates} {row['images_per_cpu_s']:>13,.0f} {row['images']:>8,}")
    return "\n".join(lines)


def _check(given: argparse.Namespace) -> None:
    for name in ("batch", "rounds", "images"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(given, name)}")
    threads = given.threads.split(",")
    if not all(part.isdecimal() and int(part) for part in threads) or len(set(threads)) < len(threads):
        raise InputError(f"--threads must be different numbers from 1 up with commas between, such as 1,2, not {given.threads!r}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    if given.out.is_dir() or not given.out.absolute().parent.is_dir():
        raise InputError(f"--out {given.out} cannot be written: it is a folder, or its folder does not exist; give the path of a JSON file")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Speed of each stage of the loader.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards, with colour statistics")
    parser.add_argument("--batch", type=int, default=128, help="images a batch")
    parser.add_argument("--threads", default="1,2", help="DALI's threads: a set of rows for each number")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each row that count")
    parser.add_argument("--images", type=int, default=4000, help="images a pass, rounded up to whole batches")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/loader.json"), help="JSON to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where rows c to h decode")
    given = parser.parse_args(arguments)
    with one_line_errors():
        _check(given)
        shards = ShardSet(given.shards, "train")
        stats = read_colour_stats(given.shards, shards.digest, shards.manifest.settings.size)
        setup = Setup(shards, stats, Augmentation(), given.batch, torch.device("cuda:0" if given.device == "cuda" else "cpu"))
        result = benchmark(setup, [int(count) for count in given.threads.split(",")], given.rounds, given.images)
        with atomic_file(given.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
        print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
