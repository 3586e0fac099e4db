"""Training end to end from real shards, ours beside plain PyTorch and plain DALI, on the same pictures, in one run.

    python tools/bench_endtoend.py [--shards DIR] [--device cpu|cuda] [--batch 128,256,512,1024] [--seconds 2] [--rows all|a,b] [--limit S]
                                   [--recipe alexnet] [--set KEY=VALUE] [--threads N] [--out docs/benchmarks/endtoend.json]

What is in each row stands in tools/bench_endtoend_rows.py and in the JSON. Three figures go together: the loader alone, the model alone on a
batch that lies on the device, and both. What the clock covers stands in tools/bench_endtoend_clock.py; "waiting" is the share of it in which the
training's thread waited for a batch, "lost" how much slower both are than the model alone. Labels are checked against the shards, and losses must
be finite. From the rates follow the minutes of 90 epochs of ImageNet with their validations. On a GPU, "roof" is the share of tools/roofline.py's
sum of kernels in bfloat16, whatever a row computes in, and "busy" the share of the time with any kernel running (tools/gpu_watch.py). A row that
cannot be had here is left out with the reason; one that fails makes the exit code 1. Writes OUT (JSON).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.recipe import Recipe, read_recipe
from model.run import Run
from pipeline.atomic import atomic_file
from pipeline.colour import read_colour_stats
from pipeline.errors import InputError, one_line_errors
from pipeline.shards import ShardSet
from tools.bench_endtoend_clock import Check, Losses, Supply, again, check_length, nothing, timed
from tools.bench_endtoend_ours import Setup, StepOfRun, begin_run, prepare, supply_of, validation_rate
from tools.bench_endtoend_peers import SUPPLIES, step_of_peer
from tools.bench_endtoend_results import Three, projections, reached, summary, table
from tools.bench_endtoend_rows import CACHES, DEFAULT, ROWS
from tools.bench_where import where
from tools.gpu_watch import GpuWatch, uuid_of
from tools.peer_samples import Samples
from tools.roofline import HALF, roof, step_kernels
from tools.roofline_machine import H200, Machine, measured_machine

BATCHES = {"cuda": "128,256,512,1024", "cpu": "32"}

Use = Callable[[Any], object]  # one step on a batch


@dataclass
class Plan:
    """What is asked for. deadline: of time.monotonic(), after which no group of rows is begun. left_out, failed: rows with the reason."""

    shards: ShardSet
    recipes: list[Recipe]  # one a batch
    rows: list[str]
    seconds: float
    threads: int
    device: torch.device
    deadline: float
    machine: Machine | None = None  # whose roof the rows are held against; of GPUs only
    left_out: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def leave_out(self, key: str, batch: int, reason: str, failed: bool = False) -> None:
        name = f"{key}, batch {batch}"
        (self.failed if failed else self.left_out)[name] = reason
        print(f"row {name} {'failed' if failed else 'is left out'}: {reason}", file=sys.stderr, flush=True)

    def roof_of(self, recipe: Recipe) -> float | None:
        """Images a second of the roof of our step, in bfloat16."""
        if self.machine is None:
            return None
        kernels = step_kernels(recipe.alexnet, len(self.shards.manifest.classes), recipe.train.batch, HALF)
        return recipe.train.batch / roof(kernels, self.machine)

    def groups(self) -> list[tuple[Recipe, str, list[str]]]:
        """(recipe, supply, rows) in the order of measuring: rows that are compiled first come last, since that takes them a minute."""
        found = []
        for compiled in (False, True):
            wanted = [key for key in self.rows if ROWS[key].compiled == compiled]
            supplies = dict.fromkeys(ROWS[key].supply for key in wanted)
            found += [(recipe, supply, [key for key in wanted if ROWS[key].supply == supply]) for recipe in self.recipes for supply in supplies]
        return found


@dataclass
class Group:
    """Rows of one supply at one batch, under way."""

    plan: Plan
    setup: Setup
    watch: GpuWatch
    stack: ExitStack
    validation: float | None = None  # images a second, where our net was measured

    def measure(self, supply: str, keys: list[str]) -> list[dict[str, Any]]:
        """Model alone of each row, then the loader alone, then both of each row. Raises InputError, RuntimeError."""
        s, seconds = self.setup, self.plan.seconds
        run = self._run(supply) if supply in CACHES else None
        batches = supply_of(run, supply != "decode") if run is not None else SUPPLIES[supply](s, self.stack)
        one, losses = _first(batches), {key: Losses(run.take_step.settle if run is not None else nothing) for key in keys}
        uses = self._uses(keys, run, losses)
        alone = {key: timed(again(one), use, seconds / 2, s.device) for key, use in uses.items()}
        loads = [key for key in uses if not ROWS[key].alone]
        loader = timed(batches, lambda fed: None, seconds / 2, s.device) if loads else None
        both = {key: timed(batches, uses[key], seconds, s.device, Check(s.labels, s.classes)) for key in loads}
        if run is not None and supply == "decode":
            self.validation = validation_rate(s, run)
        rows = []
        for key in uses:
            losses[key].read()
            three = Three(loader if key in both else None, alone[key], both.get(key))
            load = self.watch.between(three.main.began, three.main.ended)
            rows.append(summary(key, ROWS[key].what, s.batch, three, load, losses[key], self.plan.roof_of(s.recipe)))
        return rows

    def _run(self, supply: str) -> Run:
        run = begin_run(self.setup, f"{supply}-{self.setup.batch}", CACHES[supply])
        self.stack.callback(run.metrics.close)
        return run

    def _uses(self, keys: list[str], run: Run | None, losses: dict[str, Losses]) -> dict[str, Use]:
        """The step of each row; of the peers' those that can be had here."""
        uses: dict[str, Use] = {}
        for key in keys:
            row = ROWS[key]
            try:
                uses[key] = StepOfRun(run, losses[key]) if run is not None else step_of_peer(self.setup, row.precision, row.compiled, losses[key])
            except InputError as error:
                self.plan.leave_out(key, self.setup.batch, str(error))
        return uses


def _first(supply: Supply) -> Any:
    batches = supply.epoch()
    try:
        return next(batches)
    finally:
        batches.close()  # type: ignore[attr-defined]  # all of them are generators


def benchmark(plan: Plan, write: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The whole result, handed to `write` whenever a group of rows more is in it."""
    rows, validation = list[dict[str, Any]](), dict[int, float]()
    stats = read_colour_stats(plan.shards.folder, plan.shards.digest, plan.shards.manifest.settings.size)
    labels = np.array(Samples(plan.shards.folder).labels)
    result: dict[str, Any] = {**where(plan.device), "settings": _settings(plan), "rows": rows}
    prepare(plan.device, plan.threads)
    with tempfile.TemporaryDirectory() as folder, GpuWatch(uuid_of(plan.device)) as watch:
        for recipe, supply, keys in plan.groups():
            setup = Setup(plan.shards, stats, labels, recipe, plan.threads, plan.device, Path(folder))
            with ExitStack() as stack:
                group = Group(plan, setup, watch, stack)
                rows += _measured(group, supply, keys)
                if group.validation is not None:
                    validation[setup.batch] = group.validation
                del group
            gc.collect()  # runs and loaders are tied in circles: their caches have to go before the next ones come
            if plan.device.type == "cuda":
                torch.cuda.empty_cache()  # a cache of pictures counts what is free
            projected = projections(rows, validation)
            result |= {"projections": projected, "goals": reached(rows, projected), "left_out": plan.left_out, "failed": plan.failed}
            write(result)
    return result


def _measured(group: Group, supply: str, keys: list[str]) -> list[dict[str, Any]]:
    """A group's rows; where they cannot be had, they are left out with the reason."""
    batch, why, failed = group.setup.batch, "", False
    if time.monotonic() > group.plan.deadline:
        why = "the time of --limit is over"
    else:
        try:
            return group.measure(supply, keys)
        except InputError as error:
            why = str(error)
        except RuntimeError as error:  # of one row's libraries or memory, or a wrong label or loss; the others can still be measured
            why, failed = f"{type(error).__name__}: {' '.join(str(error).split())}", True
    for key in keys:
        group.plan.leave_out(key, batch, why, failed)
    return []


def _settings(plan: Plan) -> dict[str, Any]:
    first, shards = plan.recipes[0], plan.shards
    return {
        "device": plan.device.type,
        "batches": [recipe.train.batch for recipe in plan.recipes],
        "seconds_a_row": plan.seconds,
        "threads": plan.threads,
        "recipe": first.model_dump(mode="json"),
        "samples": len(shards),
        "classes": len(shards.manifest.classes),
        "size": shards.manifest.settings.size,
        "quality": shards.manifest.settings.quality,
    }


def _write(result: dict[str, Any], out: Path) -> None:
    with atomic_file(out, "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")


def _plan(given: argparse.Namespace) -> Plan:
    """Raises InputError for what cannot be used, before anything is measured."""
    batches = _batches(given.batch or BATCHES[given.device])
    if given.seconds <= 0 or given.limit <= 0 or given.threads < 1:
        raise InputError("--seconds, --limit and --threads must be above 0")
    if given.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda, but torch sees no GPU; use --device cpu")
    if given.out.suffix != ".json" or given.out.is_dir() or not given.out.absolute().parent.is_dir():
        raise InputError(f"--out {given.out} cannot be written: give the path of a .json file in a folder that exists")
    recipes = [read_recipe(given.recipe, [*given.set, f"train.batch={batch}", "train.schedule=fixed", "data.cache=none"]) for batch in batches]
    rows, shards = _rows(given.rows, given.device), ShardSet(given.shards, "train")
    for batch in batches:
        check_length(len(shards) // batch, batch, len(shards))
    device = torch.device("cuda:0" if given.device == "cuda" else "cpu")
    return Plan(shards, recipes, rows, given.seconds, given.threads, device, time.monotonic() + given.limit, _machine(device))


def _machine(device: torch.device) -> Machine | None:
    if device.type == "cpu":
        return None
    return H200 if "H200" in torch.cuda.get_device_name(device) else measured_machine(device)


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--batch must be different numbers from 1 up with commas between, such as 128,256, not {text!r}")
    return [int(part) for part in parts]


def _rows(text: str, device: str) -> list[str]:
    if text == "default":
        return [key for key in DEFAULT if device == "cuda" or ROWS[key].precision != "tf32"]
    names = list(ROWS) if text == "all" else text.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown or len(set(names)) < len(names):
        raise InputError(f"--rows must be default, all, or different ones of {', '.join(ROWS)} with commas between, not {text!r}")
    return names


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Training from shards, end to end.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--shards", type=Path, default=Path("shards"), help="folder made by make_shards, with colour statistics")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where it is trained")
    parser.add_argument("--batch", help=f"images a step: a set of rows for each number; unless given {BATCHES['cpu']}, on a GPU {BATCHES['cuda']}")
    parser.add_argument("--seconds", type=float, default=2.0, help="that are counted of each row; half as many of loader and model alone")
    parser.add_argument("--rows", default="default", help=f"default (all but two), all, or names with commas between: {', '.join(ROWS)}")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which no more rows are begun")
    parser.add_argument("--recipe", default="alexnet", help="of model/recipes, or the path of one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a number of the recipe; may be repeated")
    parser.add_argument(
        "--threads", type=int, default=len(os.sched_getaffinity(0)), help="of decoding, and processes of DataLoader; on the CPU also of the net"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/endtoend.json"), help="JSON to write")
    given = parser.parse_args(arguments)
    with one_line_errors():
        plan = _plan(given)
        print(table(benchmark(plan, lambda result: _write(result, given.out))))
        return 1 if plan.failed else 0
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
