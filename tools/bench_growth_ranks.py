"""What more ranks cost: real gloo processes of this machine, and in one process what each rank of many does in every step.

python -m tools.bench_growth_ranks --shards DIR --asked SECONDS      (one rank; its launcher sets RANK, WORLD_SIZE, ...)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

import model.train  # noqa: F401 - its imports are a part of the start
from model.design import Design
from model.layout import join, take_place
from model.stop import StopRequest
from model.traffic import traffic
from pipeline.draws import draw
from pipeline.errors import InputError
from pipeline.loader import ImageLoader
from pipeline.share import Share, route
from tools.bench_growth_rows import How

EACH = 8  # pictures of a batch that each rank decodes
A_STEP = 32  # the same where a rank's work is done in one process
AGREEMENTS = 200
LIMIT = 300  # seconds for the processes

PROCESSES: dict[str, tuple[str, str, How]] = {
    "meeting": ("from the processes' start until all have met", "s", "processes"),
    "met": ("CPU time of a rank until then", "s", "processes"),
    "groups": ("CPU time of the layout's process groups", "ms", "processes"),
    "first_batch": ("CPU time of loader and first batch", "s", "processes"),
    "memory": ("resident memory of a rank, most", "MB", "processes"),
    "pictures": ("pictures of an epoch that a rank reads", "% of all", "processes"),
    "stop": ("CPU time to agree on whether to stop, a step", "us", "processes"),
}
STEPS: dict[str, tuple[str, str, How]] = {
    "share": (f"share, draws, route of a pair, {A_STEP} a rank", "us", "in process"),
    "cached": ("the same where all ranks share a cache", "us", "in process"),
    "sent": ("sent by a rank a step, columns", "MB", "arithmetic"),
    "sent_hybrid": ("sent by a rank a step, hybrid", "MB", "arithmetic"),
}


def on_processes(shards: Path, world: int) -> dict[str, float]:
    """PROCESSES at `world` ranks: of the rank that has the most of each. Raises InputError."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    command = [sys.executable, "-m", "tools.bench_growth_ranks", "--shards", str(shards.resolve()), "--asked", str(time.monotonic())]
    ranks = []
    for rank in range(world):
        environment = {**os.environ, **{key: str(value) for key, value in place.items()}, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        ranks.append(subprocess.Popen(command, cwd=Path(__file__).parents[1], env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    codes = [process.returncode for process in ranks if process.returncode]
    if codes:
        raise InputError(f"of {world} ranks one ended with code {codes[0]}; what it said is above")
    found = [json.loads(text) for text in said]
    return {key: max(one[key] for one in found) for key in PROCESSES}


class Counted:
    """A reader of samples, and how many it has read."""

    def __init__(self, read: Callable[[int], tuple[np.ndarray, int]]) -> None:
        self._read, self.count = read, 0

    def __call__(self, sample: int) -> tuple[np.ndarray, int]:
        self.count += 1
        return self._read(sample)


def one_rank(shards: Path, asked: float) -> dict[str, float]:
    """What this process measures as the rank that its environment names."""
    world = int(os.environ["WORLD_SIZE"])
    columns = min(2, world)
    layout = join(columns, "cpu", EACH * world)
    dist.barrier()
    found = {"meeting": time.monotonic() - asked, "met": time.process_time()}
    began = time.process_time()
    take_place(world, columns, torch.device("cpu"), world)
    found["groups"] = 1000 * (time.process_time() - began)
    began = time.process_time()
    loader = ImageLoader(shards, "train", batch=EACH * world, rank=layout.rank, world=world, group=layout.picture_group, threads=1)
    read = Counted(loader.shards.read)
    loader.shards.read = read  # type: ignore[method-assign]
    batches = iter(loader)
    next(batches)
    found["first_batch"] = time.process_time() - began
    for _ in batches:
        pass
    found["pictures"] = 100 * read.count / len(loader.shards)
    stop = StopRequest(layout.control_group)
    stop.now()
    began = time.process_time()
    for _ in range(AGREEMENTS):
        stop.now()
    found["stop"] = (time.process_time() - began) / AGREEMENTS * 1e6
    found["memory"] = _resident_mb()
    dist.barrier()
    dist.destroy_process_group()
    return found


def _resident_mb() -> float:
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1000


def of_a_step(world: int, repeats: int) -> dict[str, float]:
    """STEPS at `world` ranks, of the last one: microseconds, the least of `repeats`, and bytes."""
    pair = min(2, world)
    columns, all_ranks = Share(world - 1, world, range(world - pair, world), pair), Share(world - 1, world, range(world), 1, by_id=True)
    batch, replicas = A_STEP * world, world // pair
    rows = traffic(Design(), 1000, batch, pair, replicas)
    hybrid = traffic(Design(), 1000, batch, 1, world, hybrid=True)
    return {
        "share": min(_prepare(columns, batch) for _ in range(repeats)),
        "cached": min(_prepare(all_ranks, batch) for _ in range(repeats)),
        "sent": sum(row.forward + row.backward for row in rows) / 1e6,
        "sent_hybrid": sum(row.forward + row.backward for row in hybrid) / 1e6,
    }


def _prepare(share: Share, batch: int) -> float:
    """Microseconds of what Feed.prepare does for a batch, without reading its pictures."""
    order = np.random.default_rng(0).permutation(batch)
    began = time.perf_counter()
    rows = share.group_rows(batch)
    ids = order[rows.start : rows.stop]
    draw(0, 0, ids, 30)
    route(share, share.decoders(ids, batch), batch)
    return (time.perf_counter() - began) * 1e6


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="One rank; see tools/bench_growth.py.")
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--asked", type=float, required=True)
    given = parser.parse_args(arguments)
    print(json.dumps(one_rank(given.shards, given.asked)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
