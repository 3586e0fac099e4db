"""A training step of the paper's net on a batch that lies in memory: ours, plain PyTorch's, and ours with one way off at a time.

    python tools/bench_step.py [--device cpu|cuda] [--batch 128] [--threads 2] [--seconds 10] [--rounds 3] [--rows all|a,b]
                               [--out docs/benchmarks/step.json]

Forward, loss, backward, update; no loader. Each row runs in a process of its own, a round takes every row in turn, so that a noisy machine hits
all alike. A row's clock begins after its warm-up, and ends at a sync; a round's figure is its mean step, the result the median of the rounds.
The share of the roof is of tools/roofline.py's sum of kernels, of which peak and bandwidth are measured first (on an H200 they are given). Parts
are the fused operators beside their plain forms. Writes OUT as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from model.design import Design
from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_step_parts import parts
from tools.bench_step_rows import CLASSES, Row, Take, rows
from tools.bench_where import where
from tools.gpu_watch import GpuWatch, uuid_of
from tools.roofline import PRECISIONS, roof, step_kernels
from tools.roofline_machine import H200, Machine, measured_machine

WARM_UP, LEAST = 2, 2  # steps; on a GPU more, since libraries try their kernels
WARM_UP_GPU = 10
LIMIT = 600  # seconds for a row's process


def clocked(take: Take, seconds: float, device: torch.device) -> dict[str, Any]:
    """Mean step over at least `seconds` and LEAST steps; share of the time that the GPU was busy, and its power, where there is one."""
    for _ in range(WARM_UP if device.type == "cpu" else WARM_UP_GPU):
        take()
    _wait(device)
    steps, loss = 0, torch.zeros(())
    with GpuWatch(uuid_of(device)) as watch:
        began = time.perf_counter()
        while steps < LEAST or time.perf_counter() - began < seconds:
            for _ in range(1 if device.type == "cpu" else 20):
                loss, steps = take(), steps + 1
            _wait(device)
        elapsed = time.perf_counter() - began
        load = watch.between(began, began + elapsed)
    if not math.isfinite(float(loss)):
        raise RuntimeError(f"the loss became {float(loss)}")
    return {
        "steps": steps,
        "step_s": elapsed / steps,
        "loss": float(loss),
        "busy_percent": load.busy if load else None,
        "power_w": load.power if load else None,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def one_row(row: Row, batches: list[int], threads: int, seconds: float, device: torch.device) -> list[dict[str, Any]]:
    """In this process: one result for each batch, an error in the place of one that cannot be had."""
    if device.type == "cpu":
        torch.set_num_threads(threads)
    found = []
    for batch in batches:
        try:
            found.append({"batch": batch, **clocked(row.make(batch, device), seconds, device)})
        except torch.OutOfMemoryError:
            found.append({"batch": batch, "error": "the device's memory is too small"})
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def in_its_own_process(row: Row, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The same, of a fresh process. Raises InputError with its last line if it fails."""
    command = [sys.executable, __file__, "--one", row.key, "--batch", given.batch, "--threads", str(given.threads)]
    command += ["--seconds", str(given.seconds), "--device", given.device]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])}
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment)
    except subprocess.TimeoutExpired:
        raise InputError(f"row {row.key} took more than {LIMIT} s; give a smaller --batch") from None
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no word"])[-1]
        raise InputError(f"row {row.key} failed: {last}")
    return json.loads(run.stdout.splitlines()[-1])


def benchmark(given: argparse.Namespace, chosen: list[Row]) -> dict[str, Any]:
    """The whole result, as it is written to the JSON. Raises InputError if no row could be had."""
    device, batches = torch.device(given.device), whole_numbers(given.batch)
    if device.type == "cpu":
        torch.set_num_threads(given.threads)
    machines = {precision: _machine(device, kind) for precision, (kind, _) in PRECISIONS.items()}
    rounds: dict[str, list[list[dict[str, Any]]]] = {row.key: [] for row in chosen}
    left_out, began = dict[str, str](), time.perf_counter()
    for row in tqdm([row for _ in range(given.rounds) for row in chosen], unit=" rows", mininterval=0.5 if sys.stderr.isatty() else 30):
        if row.key in left_out:
            continue
        if given.limit and time.perf_counter() - began > given.limit:
            if not rounds[row.key]:
                left_out[row.key] = f"no time was left of the {given.limit:g} s"
            continue
        try:
            rounds[row.key].append(in_its_own_process(row, given))
        except InputError as error:
            left_out[row.key] = str(error)
            print(f"left out: {error}", file=sys.stderr)
    for precision, (kind, _) in PRECISIONS.items():  # again: what disturbed the first look is seldom still there
        machines[precision] = _better(machines[precision], _machine(device, kind))
    found = [
        summary(row, batch, [one[i] for one in rounds[row.key]], machines) for row in chosen for i, batch in enumerate(batches) if rounds[row.key]
    ]
    if not found:
        raise InputError("no row could be measured; what each lacked stands above")
    settings = {"device": device.type, "threads": given.threads if device.type == "cpu" else None, "rounds": given.rounds, "seconds": given.seconds}
    return {
        **where(device),
        "settings": settings,
        "machines": {name: asdict(machine) for name, machine in machines.items()},
        "rows": found,
        "parts": parts(device, max(batches) if device.type == "cuda" else min(batches), given.rounds),
        "left_out": left_out,
    }


def _machine(device: torch.device, kind: torch.dtype) -> Machine:
    if device.type == "cuda" and "H200" in torch.cuda.get_device_name(device) and kind == torch.bfloat16:
        return H200
    return measured_machine(device, kind)


def _better(one: Machine, other: Machine) -> Machine:
    return Machine(one.name, max(one.flops, other.flops), max(one.bandwidth, other.bandwidth))


def summary(row: Row, batch: int, rounds: list[dict[str, Any]], machines: dict[str, Machine]) -> dict[str, Any]:
    """One line of the result. roof_share: least time by the roofline in the row's own precision, over the time taken."""
    steps = [one["step_s"] for one in rounds if "step_s" in one]
    about = {"key": row.key, "what": row.what, "batch": batch, "peer": row.peer, "off": row.off}
    if not steps:
        return {**about, "error": rounds[0].get("error", "not measured")}
    precision = "bfloat16" if "bfloat16" in row.key else "float32"
    least = roof(step_kernels(Design(), CLASSES, batch, PRECISIONS[precision][1]), machines[precision])
    median = statistics.median(steps)
    watched = {key: value for key, value in rounds[-1].items() if key not in ("batch", "steps", "step_s", "loss")}
    return {
        **about,
        "step_ms": 1e3 * median,
        "step_ms_rounds": [1e3 * step for step in steps],
        "images_per_s": batch / median,
        "roof_share": least / median,
        **watched,
    }


def table(result: dict[str, Any]) -> str:
    """For people: a line a row and batch, ratios to eager float32, then the parts."""
    base = {row["batch"]: row["step_ms"] for row in result["rows"] if row["key"] == "eager-float32" and "step_ms" in row}
    lines = [f"{'row':<30}{'batch':>6}{'step ms':>10}{'images/s':>11}{'of the roof':>13}{'x eager':>9}"]
    for row in result["rows"]:
        if "step_ms" not in row:
            lines.append(f"{row['key']:<30}{row['batch']:>6}  {row['error']}")
            continue
        times = f"{base[row['batch']] / row['step_ms']:>9.2f}" if row["batch"] in base else f"{'':>9}"
        gpu = f"   busy {row['busy_percent']:.0f} %, {row['power_w']:.0f} W" if row["busy_percent"] is not None and row["power_w"] is not None else ""
        figures = f"{row['step_ms']:>10.2f}{row['images_per_s']:>11,.1f}{100 * row['roof_share']:>11.1f} %"
        lines.append(f"{row['key']:<30}{row['batch']:>6}{figures}{times}{gpu}")
    lines += ["", f"{'part, both ways':<30}{'batch':>6}{'plain ms':>10}{'fused ms':>11}{'ratio':>13}"]
    for part in result["parts"]:
        figures = f"{part['plain_ms']:>10.2f}{part['fused_ms']:>11.2f}{part['plain_ms'] / part['fused_ms']:>13.2f}"
        lines.append(f"{part['part'] + ', ' + part['precision']:<30}{part['batch']:>6}{figures}")
    return "\n".join(lines)


def whole_numbers(text: str) -> list[int]:
    """Raises InputError."""
    numbers = text.split(",")
    if not all(number.isdecimal() and int(number) for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"--batch must be different numbers from 1 up with commas between, such as 128,1024, not {text!r}")
    return [int(number) for number in numbers]


def _chosen(given: argparse.Namespace) -> list[Row]:
    """Raises InputError for what cannot be used, before anything is measured."""
    whole_numbers(given.batch)
    for name in ("rounds", "threads"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name} must be at least 1, not {getattr(given, name)}")
    if not 0 < given.seconds < LIMIT:
        raise InputError(f"--seconds must be above 0 and below {LIMIT}, not {given.seconds:g}")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    if given.out.suffix != ".json" or not given.out.absolute().parent.is_dir():
        raise InputError(f"--out {given.out} cannot be written: give the path of a .json file in a folder that exists")
    there = {row.key: row for row in rows(torch.device(given.device))}
    names = list(there) if given.rows == "all" else given.rows.split(",")
    unknown = [name for name in names if name not in there]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"--rows must be all, or different ones of {', '.join(there)} with commas between, not {given.rows!r}")
    return [there[name] for name in names]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A training step beside its peers.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", default="128", help="images a step; on a GPU up to 1024: 128,256,512,1024")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each row, batch and round, at least; on a GPU 2 are enough")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, help="seconds after which no row is begun")
    parser.add_argument("--rows", default="all", help="all, or names with commas between")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/step.json"), help="JSON to write")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # measure this row here, and print its JSON
    given = parser.parse_args(arguments)
    with one_line_errors():
        device = torch.device(given.device)
        if given.one:
            row = next(row for row in rows(device) if row.key == given.one)
            print(json.dumps(one_row(row, whole_numbers(given.batch), given.threads, given.seconds, device)))
            return 0
        result = benchmark(given, _chosen(given))
        with atomic_file(given.out, "w") as file:
            file.write(json.dumps(result, indent=1) + "\n")
        print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
