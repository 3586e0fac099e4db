"""Our loader beside its peers and plain DALI, on the same shards, in one run.

    python tools/bench_loader.py [--shards DIR] [--work DIR] [--batch 128,256] [--threads 1,2] [--rounds 5] [--images 2560]
                                 [--peers all|none|a,b] [--out docs/benchmarks/loader.json] [--device cpu|cuda] [--hw-loads 0,0.5,1]

What is in each row stands in tools/bench_kinds.py (ours, plain DALI) and tools/bench_peers.py (the others), and in the JSON. A round takes every
row of a setting (batch, threads) in turn, so that a noisy machine hits all alike. Pictures come from the page cache. Ours and plain DALI start
with empty queues and end when the last batch is in hand with nothing under way, so that filling is paid for and nothing is worked ahead; a peer's
clock runs while its queues are as full at the end as at the beginning (tools/peer_passes.py). CPU-seconds are those of all threads, of a peer those
of its processes. Images are counted and labels checked in every pass. Writes OUT (JSON), and beside it the same as CSV and as PNG.

With --device cuda: our rows and plain DALI on the GPU, a row for each share of its JPEG engines, and the pixels of each share against the CPU's.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.colour import read_colour_stats
from pipeline.errors import InputError, one_line_errors
from pipeline.shards import ShardSet
from tools.bench_dali import PREFETCH
from tools.bench_gpu import compare_pixels
from tools.bench_kinds import Kind, Section, dali_kinds, our_kinds, share_kinds
from tools.bench_peers import PEERS, WORK, NotInstalled, start
from tools.bench_plot import write_plot
from tools.bench_results import GOALS, GPU_GOALS, Row, csv_text, ratios, table
from tools.bench_rows import Setup, clocked
from tools.bench_where import where
from tools.peer_samples import Samples

WARM_UP = 4  # batches through each row of ours before the first round


@dataclass
class Plan:
    """What is asked for. left_out: rows that cannot be had here."""

    shards: ShardSet
    work: Path
    batches: list[int]
    threads: list[int]
    rounds: int
    images: int
    peers: list[str]
    device: torch.device
    shares: list[float]
    left_out: list[str] = field(default_factory=list)

    def leave_out(self, name: str, message: str) -> None:
        if name not in self.left_out:
            self.left_out.append(name)
            print(message, file=sys.stderr)

    def setups(self) -> list[Setup]:
        """Every setting. Labels are read by a reader of its own, the one that the peers are checked against. Raises InputError."""
        stats = read_colour_stats(self.shards.folder, self.shards.digest, self.shards.manifest.settings.size)
        labels = np.array(Samples(self.shards.folder).labels)
        return [Setup(self.shards, stats, labels, batch, threads, self.device) for batch in self.batches for threads in self.threads]


def own_rows(plan: Plan, s: Setup) -> list[Row]:
    """Our rows and plain DALI, warmed up."""
    rows = []
    for kind in [*our_kinds(s.device), *dali_kinds(s.device), *share_kinds(plan.shares)]:
        if not kind.threads and s.threads != plan.threads[0]:
            continue  # measured with the first number of threads, since they do not matter
        try:
            kind.needs(s)
        except InputError as error:
            plan.leave_out(kind.key, f"row {kind.key} is left out: {error}")
            continue
        rows.append(own_row(kind, s, -(-plan.images // s.batch)))
    return rows


def own_row(kind: Kind, s: Setup, batches: int) -> Row:
    """A row warmed up for passes of kind.times * batches: a cache holds what they need."""
    measure = partial(clocked, kind.begin(s), labels=s.labels)
    # The first pass fills a cache, at the pace of the decoder; at its own pace a row has more batches under way, in memory yet to be touched.
    for warm_up in [batches * kind.times] * 2 if kind.times > 1 else [WARM_UP]:
        measure(warm_up)
    return Row(kind.key, kind.section, kind.what, s.batch, s.threads if kind.threads else None, measure, kind.times)


def peer_rows(plan: Plan, s: Setup, stack: ExitStack) -> tuple[list[Row], dict[str, dict[str, str]]]:
    """Peers, started; those that are not installed are left out. Also their libraries' versions."""
    rows, versions = list[Row](), dict[str, dict[str, str]]()
    for name in (name for name in plan.peers if name not in plan.left_out):
        try:
            peer = start(name, s.shards.folder, plan.work, s.batch, s.threads)
        except NotInstalled as error:
            plan.leave_out(name, str(error))
            continue
        stack.callback(peer.close)
        rows.append(Row(name, _section(name), PEERS[name], s.batch, s.threads, peer.run, note=peer.note, window_error=peer.window_error))
        versions[name] = peer.versions
    return rows, versions


def _section(peer: str) -> Section:
    if "-raw" in peer:
        return "from decoded pictures"
    return "float32 from JPEG" if "normalised" in peer else "uint8 from JPEG"


def measure(plan: Plan, s: Setup) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """All rows of a setting, round by round: summaries, and versions of the peers' libraries."""
    with ExitStack() as stack:
        rows = own_rows(plan, s)
        peers, versions = peer_rows(plan, s, stack)
        passes = [row for _ in range(plan.rounds) for row in (*rows, *peers)]
        quiet = 0.5 if sys.stderr.isatty() else 30
        for row in tqdm(passes, unit=" passes", desc=f"batch {s.batch}, threads {s.threads}", mininterval=quiet):
            row.run(-(-plan.images // s.batch) * row.times)
    return [row.summary() for row in (*rows, *peers)], versions


def benchmark(plan: Plan) -> dict[str, Any]:
    """The whole result, as it is written to the JSON. Raises InputError."""
    summaries, versions = list[dict[str, Any]](), dict[str, dict[str, str]]()
    setups = plan.setups()
    for s in setups:
        measured, found = measure(plan, s)
        summaries += measured
        versions |= found
        gc.collect()  # loaders are tied in circles: their caches, 5 GB for 10,000 pictures, have to go before the next ones come
    pixels = [compare_pixels(setups[len(plan.threads) - 1], share) for share in plan.shares]
    return {
        **where(plan.device),
        "peers": {"versions": versions, "left_out": plan.left_out},
        "settings": _settings(plan, setups[0]),
        "shards": _shards(plan.shards),
        "rows": summaries,
        "ratios": ratios(summaries, GOALS if plan.device.type == "cpu" else GPU_GOALS),
        **({"pixels_under_load": pixels} if pixels else {}),
    }


def _settings(plan: Plan, s: Setup) -> dict[str, Any]:
    asked = {"batches": plan.batches, "threads": plan.threads, "rounds": plan.rounds, "images_a_pass": plan.images, "prefetch": PREFETCH}
    return {**asked, "device": plan.device.type, "hw_loads": plan.shares, "augmentation": vars(s.augmentation)}


def _shards(shards: ShardSet) -> dict[str, Any]:
    settings = shards.manifest.settings
    return {"samples": len(shards), "size": settings.size, "quality": settings.quality, "tar_bytes": sum(shard.bytes for shard in shards.shards)}


def write(result: dict[str, Any], out: Path) -> None:
    """JSON, CSV and PNG, each whole or not at all."""
    for path, text in ((out, json.dumps(result, indent=1) + "\n"), (out.with_suffix(".csv"), csv_text(result["rows"]))):
        with atomic_file(path, "w") as file:
            file.write(text)
    write_plot(result, out.with_suffix(".png"))


def _whole_numbers(name: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--{name} must be different numbers from 1 up with commas between, such as 1,2, not {text!r}")
    return [int(part) for part in parts]


def _shares(text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = [-1.0]
    if not all(0 <= share <= 1 for share in shares) or len(set(shares)) < len(shares):
        raise InputError(f"--hw-loads must be different numbers from 0 to 1 with commas between, such as 0,0.5,1, not {text!r}")
    return shares


def _peers(text: str) -> list[str]:
    names = list(PEERS) if text == "all" else [] if text == "none" else text.split(",")
    unknown = [name for name in names if name not in PEERS]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"--peers must be all, none, or different ones of {', '.join(PEERS)} with commas between, not {text!r}")
    return names


def _plan(given: argparse.Namespace) -> Plan:
    """Raises InputError for what cannot be used, before anything is measured."""
    for name in ("rounds", "images"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(given, name)}")
    batches, threads = _whole_numbers("batch", given.batch), _whole_numbers("threads", given.threads)
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    if given.hw_loads is not None and given.device == "cpu":
        raise InputError("--hw-loads is of a GPU's JPEG engines; use --device cuda with it")
    if given.out.suffix != ".json" or given.out.is_dir() or not given.out.absolute().parent.is_dir():
        raise InputError(f"--out {given.out} cannot be written: give the path of a .json file in a folder that exists")
    peers = _peers(given.peers or ("all" if given.device == "cpu" else "none"))
    shares = _shares(given.hw_loads or "0,0.25,0.5,0.75,1") if given.device == "cuda" else []
    shards = ShardSet(given.shards, "train")
    if max(batches) > len(shards):
        raise InputError(f"batch {max(batches)} is larger than the {len(shards)} samples of {given.shards}; give a smaller --batch")
    device = torch.device("cuda:0" if given.device == "cuda" else "cpu")
    return Plan(shards, given.work, batches, threads, given.rounds, given.images, peers, device, shares)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Our loader beside its peers.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards, with colour statistics")
    parser.add_argument("--work", type=Path, default=WORK, help="folder for the peers' own formats, up to 300 kB an image in all")
    parser.add_argument("--batch", default="128,256", help="images a batch: a set of rows for each number (on a GPU up to 1024)")
    parser.add_argument("--threads", default="1,2", help="decoding threads, or a peer's threads or processes (on a GPU 4,8,16)")
    parser.add_argument("--rounds", type=int, default=5, help="passes of each row that count")
    parser.add_argument("--images", type=int, default=2560, help="images a pass, rounded up to whole batches (on a GPU 40,000)")
    parser.add_argument("--peers", help="all (default on the CPU), none (default on a GPU), or names with commas between")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/loader.json"), help="JSON to write; CSV and PNG beside it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where our rows and plain DALI decode")
    parser.add_argument("--hw-loads", help="with --device cuda: shares of the JPEG engines, 0,0.25,0.5,0.75,1 unless given")
    given = parser.parse_args(arguments)
    with one_line_errors():
        result = benchmark(_plan(given))
        write(result, given.out)
        print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
