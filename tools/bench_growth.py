"""Whether costs grow no worse than the work: with more shards, more classes, more ranks.

    python tools/bench_growth.py [--quick] [--repeats 2] [--folder DIR] [--out docs/benchmarks/growth.json]

Shards of 10 pictures are all different files; shards of 2,000, as many as make_shards puts into one, are hard links to one pair of files, so
that 10,000 of them, 20 million samples, are there in a second: every index is read and checked, but all come from the same memory of
the system. A start is from a process's beginning to its first batch of 8 in hand, with all that model.train imports, in a fresh process
for each size; the net, which does not depend on the shards, is not built. The files were just written, so no disk is waited for.
Times are the least of the repeats. Classes and ranks: tools/bench_growth_classes.py and _ranks.py; "processes" are real gloo processes of this
machine, which share its cores, so that what grows with ranks is judged by the CPU time of one; what stands as "in process" or
"arithmetic" was not run on so many ranks.

The exponent is that of cost ~ size^p between the last two sizes, where fixed costs no longer hide it and both are beyond the processor's
caches. Writes OUT as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_growth_classes import COSTS, cost_of_classes
from tools.bench_growth_data import Written, lay_folder, write_shards
from tools.bench_growth_ranks import EACH, PROCESSES, STEPS, of_a_step, on_processes
from tools.bench_growth_rows import How, Row, least, rows_of, table
from tools.bench_where import where

START: dict[str, tuple[str, str, How]] = {
    "start": ("start, to the first batch in hand", "s", "measured"),
    "imports": ("  imports", "s", "measured"),
    "loader": ("  loader opened", "s", "measured"),
    "first_batch": ("  first batch, with the epoch's order", "s", "measured"),
    "memory": ("memory of the process, most", "MB", "measured"),
    "manifest": ("manifest read and checked", "s", "measured"),
    "indexes": ("indexes read and checked", "s", "measured"),
    "colour": ("colour statistics read", "s", "measured"),
    "order": ("order of an epoch", "s", "measured"),
    "windowed": ("windowed order of an epoch", "s", "measured"),
    "read": ("a picture read, in the epoch's order", "us", "measured"),
}
LIMIT = 300  # seconds for a start
GOAL = 5.0  # seconds, issue 6


@dataclass(frozen=True)
class Plan:
    """Sizes to measure at. own, linked: shards, all different and of hard links; samples: of a linked shard."""

    own: tuple[int, ...] = (1, 10, 100, 1000, 10000)
    linked: tuple[int, ...] = (1, 10, 100, 1000, 10000)
    samples: int = 2000
    classes: tuple[int, ...] = (10, 100, 1000, 10000, 21841)
    processes: tuple[int, ...] = (1, 2, 4, 8)
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    inner: int = 10  # repeats of what takes milliseconds


QUICK = Plan(own=(1, 8), linked=(), samples=20, classes=(10, 100), processes=(2,), ranks=(1, 4, 64), inner=1)
OWN_SAMPLES = 10


def start_of(shards: Path) -> dict[str, float]:
    """START, by a process of its own. Raises InputError."""
    command = [sys.executable, "-m", "tools.bench_growth_start", "--shards", str(shards.resolve()), "--asked", str(time.monotonic())]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=False, timeout=LIMIT)
    if done.returncode:
        raise InputError(f"the start on {shards.name} ended with code {done.returncode}; what it said is above")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def shard_rows(folder: Path, plan: Plan, repeats: int, bar: tqdm) -> list[Row]:
    """Rows by number of shards, of both kinds."""
    own = write_shards(folder / "own", max(plan.own), OWN_SAMPLES)
    linked = write_shards(folder / "linked", 1, plan.samples)
    kinds: list[tuple[str, tuple[int, ...], int, list[Written]]] = [
        ("own", plan.own, OWN_SAMPLES, own),
        ("linked", plan.linked, plan.samples, linked * max(plan.linked, default=0)),
    ]
    rows: list[Row] = []
    for kind, sizes, samples, written in kinds:
        found = {}
        for size in sizes:
            there = lay_folder(folder / f"{kind}-{size}", {"train": written[:size]})
            found[size] = least([start_of(there) for _ in range(repeats)])
            bar.update()
        rows += rows_of(f"shards of {samples:,}", START, found) if sizes else []
    return rows


def class_rows(folder: Path, plan: Plan, bar: tqdm) -> list[Row]:
    """Rows by number of classes."""
    found = {}
    for classes in plan.classes:
        written = write_shards(folder / f"for-{classes}", 1, 64, classes)
        found[classes] = cost_of_classes(folder / f"classes-{classes}", written, classes, plan.inner)
        bar.update()
    return rows_of("classes", COSTS, found)


def rank_rows(folder: Path, plan: Plan, bar: tqdm) -> list[Row]:
    """Rows by number of ranks; each size of processes has the same number of pictures, two batches of the most ranks."""
    most = max(plan.processes)
    shards = lay_folder(folder / "ranks", {"train": write_shards(folder / "for-ranks", 4, EACH * most // 2)})
    found = {}
    for world in plan.processes:
        found[world] = on_processes(shards, world)
        bar.update()
    return [*rows_of("ranks", PROCESSES, found), *rows_of("ranks", STEPS, {world: of_a_step(world, 20 * plan.inner) for world in plan.ranks})]


def measure(folder: Path, plan: Plan, repeats: int) -> list[Row]:
    """All rows; files go to the folder."""
    total = len(plan.own) + len(plan.linked) + len(plan.classes) + len(plan.processes)
    with tqdm(total=total, unit=" sizes", disable=not sys.stderr.isatty()) as bar:
        return [*shard_rows(folder, plan, repeats, bar), *class_rows(folder, plan, bar), *rank_rows(folder, plan, bar)]


def goal_lines(rows: list[Row]) -> list[str]:
    """Whether the start on the most shards keeps to the goal, a line for each kind; and what grows worse than linear."""
    starts = [row for row in rows if row.cost == START["start"][0]]
    lines = [f"start on {row.sizes[-1]:,} {row.by}: {row.costs[-1]:.2f} s (goal on 10,000: {GOAL:g} s)" for row in starts]
    worse = [f"{row.cost} ({row.by})" for row in rows if row.worse]
    return [*lines, f"worse than linear: {', '.join(worse) or 'nothing'}"]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="How costs grow.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small sizes, to see that it runs")
    parser.add_argument("--repeats", type=int, default=2, help="starts at each size, of which the quickest counts")
    parser.add_argument("--folder", type=Path, help="where the shards are made, and removed after it (default: the system's temporary folder)")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/growth.json"), help="JSON to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        if given.repeats < 1:
            raise InputError(f"--repeats must be at least 1, not {given.repeats}")
        if given.folder is not None and not given.folder.is_dir():
            raise InputError(f"--folder {given.folder} is no folder; name one that is there")
        plan, repeats = (QUICK, 1) if given.quick else (Plan(), given.repeats)
        with tempfile.TemporaryDirectory(prefix="growth-", dir=given.folder) as folder:
            rows = measure(Path(folder), plan, repeats)
        for line in (*table(rows), "", *goal_lines(rows)):
            print(line)
        settings = {"quick": given.quick, "repeats": repeats, "goal_seconds": GOAL}
        result = {**where(torch.device("cpu")), "settings": settings, "rows": [row.as_json() for row in rows]}
        with atomic_file(given.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
