"""What a set of shards holds, how fast this machine reads it, and what to set for a training.

python -m pipeline.inspect --shards shards/ [--no-speed] [--sheet inspect.png | --no-sheet]

Reads only; writes the contact sheet and, while it measures, a temporary folder of links. Exit code 1: samples are bad.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from pipeline.cache import KEPT_FREE, Pixels, Room, free_memory, picture_bytes
from pipeline.colour import ColourStats, read_colour_stats
from pipeline.contact_sheet import choose, class_name, write_sheet
from pipeline.errors import BadSample, InputError, one_line_errors
from pipeline.inspect_advice import Needs, advise
from pipeline.inspect_shards import fetched, measured_shards
from pipeline.inspect_speed import CROP, Speeds, measure, thread_steps
from pipeline.manifest import Manifest
from pipeline.order import order
from pipeline.shards import ShardSet

MOST_LOOKED_AT, LOOKING = 20_000, 10.0  # samples read for their labels, and seconds after which no more are
_CHUNK = 1000
_SOURCES = {
    "ilsvrc2012-archives": "the ILSVRC 2012 archives",
    "ilsvrc2010-archives": "the ILSVRC 2010 archives",
    "whole-imagenet": "the whole ImageNet",
    "kaggle": "Kaggle's folders",
    "huggingface-parquet": "Hugging Face's parquet files",
    "huggingface-archives": "Hugging Face's older archives",
    "class-folders": "class folders",
    "webdataset": "a WebDataset",
}


@dataclass(frozen=True)
class Looked:
    """Samples that were read: ids, labels and bytes of the JPEG, (n,) int64; bad: those that could not be used. all: of the split."""

    ids: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    bad: list[BadSample]
    all: bool


def look(shards: ShardSet, reachable: int) -> Looked:
    """Read up to 20,000 samples, drawn evenly from the first `reachable`; fewer from a slow disk."""
    drawn, begun = order(0, 0, reachable)[:MOST_LOOKED_AT], time.perf_counter()
    rows, bad, done = list[tuple[int, int, int]](), list[BadSample](), 0
    while done < len(drawn) and time.perf_counter() - begun < LOOKING:
        for sample in np.sort(drawn[done : done + _CHUNK]).tolist():
            try:
                jpeg, label = shards.read(sample)
                rows.append((sample, label, len(jpeg)))
            except BadSample as error:
                bad.append(error)
        done += _CHUNK
    ids, labels, sizes = np.array(rows, np.int64).reshape(-1, 3).T
    return Looked(ids, labels, sizes, bad, len(rows) + len(bad) == len(shards))


def say(line: str) -> None:
    print(line, flush=True)


def row(name: str, text: str) -> None:
    say(f"  {name:<20}{text}")


def say_set(shown: str, shards: ShardSet) -> None:
    """What the manifest says."""
    m = shards.manifest
    s = m.settings
    say(shown)
    row("set", f"format {m.format_version}, manifest {shards.digest[:12]}")
    row("source", f"{_SOURCES[m.source.kind]}, listing {m.source.sha256[:12]}")
    row("pictures", f"{size_of(m)} RGB, {s.resize}; JPEG of quality {s.quality}, {s.subsampling}")
    say_rejected(m)
    say(f"\n  {'split':<8}{'samples':>12}{'shards':>8}{'bytes':>12}{'a sample':>12}   a shard: least, median, most")
    for name, split in m.splits.items():
        sizes = [shard.bytes for shard in split.shards] or [0]
        a_sample = sum(sizes) / max(split.samples, 1)
        a_shard = f"{bytes_of(min(sizes))}, {bytes_of(median(sizes))}, {bytes_of(max(sizes))}"
        say(f"  {name:<8}{split.samples:>12,}{len(split.shards):>8,}{bytes_of(sum(sizes)):>12}{bytes_of(a_sample):>12}   {a_shard}")
    say("")


def size_of(m: Manifest) -> str:
    """Of its pictures, in words."""
    s = m.settings
    return f"{s.size} x {s.size}" if s.shape == "square" else f"whole pictures with a shorter side of {s.size}"


def say_rejected(m: Manifest) -> None:
    """Source files that are in no shard."""
    names = [f"{one.split} {one.name} ({one.reason})" for one in m.rejected[:2]]
    more = "; and more, in manifest.json" if len(m.rejected) > len(names) else ""
    row("rejected files", f"{len(m.rejected):,}{': ' if names else ''}{'; '.join(names)}{more}")


def say_classes(m: Manifest, looked: Looked) -> None:
    counts = np.bincount(looked.labels, minlength=len(m.classes))
    of = "" if looked.all else f", in a sample of {len(looked.ids):,}"
    if counts.min() == counts.max():
        row("classes", f"{len(m.classes):,}, {counts[0]:,} training pictures each{of}")
        return
    row("classes", f"{len(m.classes):,}; training pictures{of}:")
    for word, index in (("fewest", int(counts.argmin())), ("most", int(counts.argmax()))):
        entry = m.classes[index]
        name = entry.wnid if class_name(entry) == entry.wnid else f"{entry.wnid} {class_name(entry)}"
        row("", f"{word:<7} {counts[index]:>6,}  {name}")
    if not looked.all:
        even = len(looked.ids) / len(m.classes)
        chance = np.sqrt(2 * np.log(max(len(m.classes), 2)) * even)  # how far the extremes of so many Poisson numbers lie, about
        row("", f"classes of one size would lie at {even:,.0f}, by chance between {max(0, even - chance):,.0f} and {even + chance:,.0f}")


def say_samples(looked: Looked, stats: ColourStats | InputError) -> None:
    """What reading has shown, and the colour statistics."""
    if len(looked.sizes):
        of = "all" if looked.all else f"a sample of {len(looked.ids):,}"
        sizes = looked.sizes
        row("JPEG", f"{bytes_of(sizes.mean())}, {bytes_of(sizes.min())} to {bytes_of(sizes.max())} (of {of})")
    if looked.bad:
        row("bad samples", f"{len(looked.bad):,} of the {len(looked.ids) + len(looked.bad):,} that were read; all: python tools/check_shards.py")
    if isinstance(stats, InputError):
        row("colour statistics", f"none that can be used: {stats}")
        return
    mean = ", ".join(f"{255 * value / stats.statistics.pixel_scale:.1f}" for value in stats.statistics.mean)
    row("colour statistics", f"of {stats.statistics.images:,} pictures; mean of R, G, B: {mean}")


def rooms(shards: ShardSet, device: torch.device) -> dict[Pixels, Room]:
    """What a cache of the whole split needs, and what is free for it; nothing for pictures that are no squares, which are not cached."""
    if shards.manifest.settings.shape != "square":
        return {}
    size, on_gpu = shards.manifest.settings.size, device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else free_memory()
    kinds: tuple[Pixels, ...] = ("rgb", "yuv420")
    where = f"{device}'s memory" if on_gpu else "main memory"
    return {kind: Room(len(shards), picture_bytes(kind, size), int(free * (1 - KEPT_FREE)), where) for kind in kinds}


def say_rooms(shards: ShardSet, devices: list[torch.device]) -> None:
    for device in devices:
        for kind, room in rooms(shards, device).items():
            fits = "all fit" if room.fit == room.pictures else f"{100 * room.fit / room.pictures:.0f} % fit"
            needed = f"{kind:<7} {room.pictures * room.each / 1e9:>9,.2f} GB"
            row("cache needs" if kind == "rgb" else "", f"{needed} of {room.where}, {room.free / 1e9:,.2f} GB free for it: {fits}")


def bytes_of(count: float) -> str:
    unit, size = next((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1)) if count >= size or size == 1)
    return f"{count / size:,.1f} {unit}" if size > 1 else f"{count:,.0f} {unit}"


def say_sheet(path: Path, shown: str, shards: ShardSet, looked: Looked) -> None:
    m = shards.manifest
    ids = choose(looked.ids, looked.labels)
    line = f"{len(shards):,} training pictures of {len(m.classes):,} classes, {size_of(m)}; here {len(ids)} of them"
    write_sheet(path, shards, ids, Path(shown).name or shown, line)
    say(f"\n  contact sheet: {path}")


def inspect(given: argparse.Namespace, shards: ShardSet, device: torch.device, fetch: float | None) -> int:
    """All that is asked for; the exit code. Raises InputError."""
    reachable = int(shards.first[measured_shards(shards)]) if shards.is_remote else len(shards)
    say_set(given.shards, shards)
    looked, stats = look(shards, reachable), _statistics(shards)
    say_classes(shards.manifest, looked)
    say_samples(looked, stats)
    say_rooms(shards, [torch.device("cpu"), *([device] if device.type == "cuda" else [])])
    if not given.no_sheet and len(looked.ids):
        say_sheet(given.sheet, given.shards, shards, looked)
    if not given.no_speed:
        s = shards.manifest.settings
        crop = min(CROP, s.size)
        speeds = Speeds(device, given.batch, crop, fetch, scale=None if s.shape == "square" else (max(crop, s.size // 2), s.size))
        say_speed(given, shards, stats, speeds)
    if looked.bad:
        print(f"error: {looked.bad[0]}", file=sys.stderr)
    return 1 if looked.bad else 0


def _statistics(shards: ShardSet) -> ColourStats | InputError:
    try:
        return read_colour_stats(shards.folder, shards.digest, shards.manifest.settings.size)
    except InputError as error:
        return error


def say_speed(given: argparse.Namespace, shards: ShardSet, stats: ColourStats | InputError, speeds: Speeds) -> None:
    """Measure, and say what it means."""
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    sizes, kept = [shard.bytes for shard in shards.shards], rooms(shards, speeds.device)
    needs = Needs(len(shards), sum(sizes), max(sizes), free_memory(), kept)
    say(f"\n{_processor()}, {cores} core{'s' * (cores != 1)}{_gpu(speeds.device)}")
    if load > cores / 2 + 0.5:
        say(f"Other programs are busy here (load {load:.1f}): the machine by itself is faster than this.")
    measure(shards, None if isinstance(stats, InputError) else stats, speeds, thread_steps(cores), given.seconds, say)
    advice = advise(speeds, needs)
    say("\nRecommendation\n")
    for sentence in advice.sentences:
        say(f"  {sentence}")
    local = [] if given.local is None else ["--local", str(given.local)]
    local += [] if given.local_gb is None else ["--local-gb", f"{given.local_gb:g}"]
    say("")
    if isinstance(stats, InputError) and not shards.is_remote:
        say(f"  {shlex.join(['python', 'tools/compute_pca.py', '--shards', given.shards])}")
    say(f"  {shlex.join(['python', '-m', 'model.train', '--shards', given.shards, *local, *advice.options()])}")


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu(device: torch.device) -> str:
    return f", {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.inspect", description="What a set of shards holds, how fast this machine reads it, and what to set."
    )
    parser.add_argument("--shards", default="shards", help="folder made by make_shards, or its URL: s3://, gs://, https:// (default: shards/)")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    parser.add_argument("--local-gb", type=float, help="of a URL: most of that folder to use, 10^9 bytes (default: half of what is free)")
    parser.add_argument("--no-speed", action="store_true", help="measure nothing")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number that is measured (default: 2)")
    parser.add_argument("--batch", type=int, default=128, help="images a batch (default: 128)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="that batches are made on (default: a GPU if there is one)")
    parser.add_argument("--sheet", type=Path, default=Path("inspect.png"), help="PNG of pictures with their classes (default: inspect.png)")
    parser.add_argument("--no-sheet", action="store_true", help="write no such PNG")
    return parser.parse_args(arguments)


def _check(given: argparse.Namespace) -> torch.device:
    """The device. Raises InputError."""
    if not 0 < given.seconds <= 600:
        raise InputError(f"--seconds {given.seconds:g} is no time to measure; give some seconds, 600 at most")
    if given.batch < 1:
        raise InputError(f"--batch {given.batch} holds no image; give 1 or more")
    if given.local_gb is not None and not given.local_gb > 0:
        raise InputError(f"--local-gb {given.local_gb:g} holds no shard; give the 10^9 bytes that may be used")
    if not given.no_sheet and (given.sheet.is_dir() or not given.sheet.absolute().parent.is_dir()):
        raise InputError(f"--sheet {given.sheet} cannot be written: it is a folder, or its folder does not exist; give the path of a PNG file")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU here; use --device cpu")
    return torch.device("cuda", 0) if given.device != "cpu" and torch.cuda.is_available() else torch.device("cpu")


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    with one_line_errors():
        device = _check(given)
        shards = ShardSet(given.shards, "train", given.local, given.local_gb)
        if not len(shards):
            raise InputError(f"{given.shards} has no training pictures; make the shards again from a source that has some")
        with fetched(shards) as fetch:
            return inspect(given, shards, device, fetch)
    raise AssertionError("one_line_errors ends the program")


if __name__ == "__main__":
    sys.exit(main())
