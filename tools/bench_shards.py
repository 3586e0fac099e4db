"""What make_shards does to a picture, beside what others do for the same: speed and quality, side by side in one run.

    python tools/bench_shards.py --pictures TAR_OR_FOLDER [--count N] [--rounds 7] [--processes 1,2] [--rows all|a,b]
                                 [--out docs/benchmarks/shards.json]

Every row turns JPEGs in memory into JPEGs in memory: shorter side to 256, central crop, RGB, quality 90, chroma 4:2:0 (but for the rows that say
otherwise), each process with one thread. What each is stands in tools/bench_shards_own.py and tools/peer_converters.py, and in the JSON. A round
takes every row in turn, so that a noisy machine hits all alike: with one process, then with two at the same time, whose rates are summed.

Quality is that of the pictures as written, against full decoding and Lanczos (tools/bench_shards_quality.py): PSNR over RGB, SSIM of the luma, means
over the pictures. Each picture counts against the reference that it is nearest to, so that nobody pays for where edges are rounded to. Writes OUT
(JSON), and beside it the same as CSV and as PNG.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_peers import NotInstalled
from tools.bench_results import csv_text
from tools.bench_shards_own import OWN
from tools.bench_shards_plot import write_plot
from tools.bench_shards_quality import Quality, judge, references
from tools.bench_shards_results import FORM, Measured, goals, hours, linearity, table
from tools.bench_shards_workers import Worker, ask
from tools.bench_where import where
from tools.peer_conversions import read_pictures
from tools.peer_converters import PEERS

KINDS = {**OWN, **PEERS}


@dataclass
class Plan:
    """What is asked for. left_out: why, by row, of those that cannot be had here."""

    pictures: Path
    count: int | None
    rounds: int
    processes: list[int]
    rows: list[str]
    left_out: dict[str, str] = field(default_factory=dict)


def start_workers(plan: Plan, folder: Path, stack: ExitStack) -> dict[str, list[Worker]]:
    """The processes of each row; one set of them for all rows of ours, which share their libraries. Rows that are not installed are left out."""
    own = [name for name in plan.rows if name in OWN]
    found = dict[str, list[Worker]]()
    for rows in [*([own] if own else []), *([name] for name in plan.rows if name in PEERS)]:
        workers = []
        try:
            for number in range(max(plan.processes)):
                workers.append(Worker(rows, rows[0] in PEERS, plan.pictures, plan.count, folder / f"{rows[0]}-{number}.log"))
                stack.callback(workers[-1].close)
                workers[-1].wait_until_ready()
        except NotInstalled as error:
            plan.left_out[rows[0]] = str(error)
            print(error, file=sys.stderr)
            continue
        found.update((name, workers) for name in rows)
    return {name: found[name] for name in plan.rows if name in found}


def measure(plan: Plan, workers: dict[str, list[Worker]]) -> list[Measured]:
    """Rounds of a pass of each row with each number of processes."""
    measured = [Measured(name, processes) for processes in plan.processes for name in workers]
    passes = [one for _ in range(plan.rounds) for one in measured]
    for one in tqdm(passes, unit=" passes", desc="conversions", mininterval=0.5 if sys.stderr.isatty() else 30):
        one.rounds.append(ask(workers[one.row][: one.processes], f"pass {one.row}"))
    return measured


def judge_rows(plan: Plan, workers: dict[str, list[Worker]], folder: Path) -> dict[str, Quality]:
    """What each row wrote, of those that have pictures of their own."""
    written = [name for name in workers if KINDS[name].written]
    failed = dict[str, dict[str, str]]()
    for name in written:
        (folder / name).mkdir()
        failed[name] = ask(workers[name][:1], f"write {name} {folder / name}")[0]["failed"]
    wanted = [references(picture) for picture in read_pictures(plan.pictures, plan.count)]
    return {name: judge(folder / name, wanted, KINDS[name].sampling, failed[name]) for name in tqdm(written, unit=" rows", desc="quality")}


def benchmark(plan: Plan) -> dict[str, Any]:
    """The whole result, as it is written to the JSON. Raises InputError."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers = start_workers(plan, Path(folder), stack)
        if not workers:
            raise InputError(f"none of the rows can be measured here: {'; '.join(plan.left_out.values())}")
        measured = measure(plan, workers)
        judged = judge_rows(plan, workers, Path(folder))
        versions = {name: of[0].versions for name, of in workers.items()}
    rows = [_row(one, judged.get(one.row)) for one in measured]
    here = where(torch.device("cpu"))
    here["versions"] |= {"of the rows": versions}
    settings = {"pictures": measured[0].rounds[0][0]["pictures"], "rounds": plan.rounds, "processes": plan.processes, "form": FORM}
    found = {"goals": goals(rows, measured), "linearity": linearity(rows), "hours": hours(rows)}
    return {**here, "settings": settings, "left_out": plan.left_out, "rows": rows, **found}


def _row(one: Measured, quality: Quality | None) -> dict[str, Any]:
    unjudged = Quality(None, None, None, 0, {}, "").summary()
    found = {**(quality.summary() if quality else unjudged), **one.summary()}
    about = {"row": one.row, "whose": "peer" if one.row in PEERS else "ours", "processes": one.processes}
    return {**about, **found, "quality": KINDS[one.row].quality, "sampling": KINDS[one.row].sampling, "what": KINDS[one.row].what}


def write(result: dict[str, Any], out: Path) -> None:
    """OUT, and the same as CSV and PNG beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(out, "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    flat = [{name: value for name, value in row.items() if name != "inside_us"} for row in result["rows"]]
    with atomic_file(out.with_suffix(".csv"), "w") as file:
        file.write(csv_text(flat))
    write_plot(result, out.with_suffix(".png"))


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed and quality of making shards.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="tar or folder of real JPEGs")
    parser.add_argument("--count", type=int, help="the first so many of them; all if not given")
    parser.add_argument("--rounds", type=int, default=7, help="passes of each row")
    parser.add_argument("--processes", default="1,2", help="numbers of processes, with commas between")
    parser.add_argument("--rows", default="all", help="names with commas between")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/shards.json"), help="JSON to write")
    return parser.parse_args(arguments)


def _plan(given: argparse.Namespace) -> Plan:
    """Raises InputError."""
    rows = list(KINDS) if given.rows == "all" else given.rows.split(",")
    if not set(rows) <= set(KINDS) or len(set(rows)) < len(rows):
        raise InputError(f"--rows must be all, or different ones of {', '.join(KINDS)}, not {given.rows!r}")
    processes = given.processes.split(",")
    if not all(part.isdecimal() and int(part) for part in processes) or len(set(processes)) < len(processes):
        raise InputError(f"--processes must be different numbers from 1 up with commas between, such as 1,2, not {given.processes!r}")
    for name in ("count", "rounds"):
        if (value := getattr(given, name)) is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, not {value}")
    if given.out.suffix != ".json":
        raise InputError(f"--out {given.out} must end in .json; CSV and PNG are written beside it")
    try:
        read_pictures(given.pictures, given.count)
    except (OSError, ValueError, EOFError, tarfile.TarError) as error:
        raise InputError(f"--pictures {given.pictures} cannot be used ({error}); give a tar or folder of JPEGs") from None
    return Plan(given.pictures, given.count, given.rounds, sorted(map(int, processes)), rows)


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    with one_line_errors():
        plan = _plan(given)
        result = benchmark(plan)
        write(result, given.out)
        print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
