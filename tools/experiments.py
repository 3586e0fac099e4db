"""The paper's other experiments on small real pictures: every run, and one file with their figures.

    python tools/experiments.py --tiny tiny-20.tar [--out runs/experiments] [--only ablate,ensemble] [--seeds 0,1,2] [--threads 2]

Makes shards of the tar (train/CLASS/PICTURE, val/CLASS/PICTURE), runs the product's own commands on them (tools/experiments_steps.py) in a
net that learns these pictures in 100 s of a core (model/recipes/tiny.yaml), and writes errors, seconds and commands to a JSON, a picture beside
it, and a Markdown table to the screen. Stopped at any moment, the same command goes on; what is done is not done again. A part that
fails is told in one line, the others go on, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.bench_where import where
from tools.experiments_data import lay_out
from tools.experiments_plot import write_plot
from tools.experiments_read import READ, read_json
from tools.experiments_run import ROOT, Done, run_step
from tools.experiments_steps import PARTS, Plan, shards
from tools.experiments_table import tables


def run_part(name: str, plan: Plan, done: Done) -> dict[str, Any]:
    """Its commands and what they found. Raises InputError."""
    part = PARTS[name]
    for need in part.needs:
        if not all(done.has(step) for step in PARTS[need].steps(plan)):
            raise InputError(f"it looks at the runs of the part {need}, which is not done; run: --only {need},{name}")
    steps = part.steps(plan)
    for step in steps:
        run_step(plan, step, done)
    commands = done.of(steps)
    return {"what": part.what, "seconds": sum(one["seconds"] for one in commands), "commands": commands, "result": READ[name](plan)}


def check_origin(plan: Plan) -> None:
    """OUT belongs to one tar and one recipe. Raises InputError for another."""
    recipe = ROOT / "model" / "recipes" / f"{plan.recipe}.yaml"
    if not plan.tar.is_file():
        wrong = "a folder" if plan.tar.is_dir() else "not there"
        raise InputError(f"--tiny {plan.tar} is {wrong}; give a tar that holds train/CLASS/PICTURE and val/CLASS/PICTURE")
    origin = {"recipe": recipe.read_text("utf-8"), "changes": list(plan.changes), "size": plan.size, "tar_bytes": plan.tar.stat().st_size}
    path = plan.out / "origin.json"
    if path.exists() and read_json(path) != origin:
        raise InputError(f"{plan.out} holds runs of another tar, --size, --set or {recipe.name}; name another --out, or delete it")
    plan.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, "w") as file:
        json.dump(origin, file, indent=1)


def run_all(plan: Plan, names: list[str], result: Path) -> int:
    """All parts named, the file written after each; how many failed. Raises InputError where there are no shards."""
    check_origin(plan)
    try:
        lay_out(plan.tar, plan.out / "pictures")
    except InputError:
        (plan.out / "origin.json").unlink()  # or the right tar would be taken for another one
        raise
    done, failed = Done(plan), 0
    print(f"what the commands say goes into {plan.out}/said, what they were into {result}", flush=True)
    for step in shards(plan, "all"):
        run_step(plan, step, done)
    kept = plan.out / "parts.json"
    parts: dict[str, Any] = read_json(kept) if kept.exists() else {}
    for name in names:
        print(f"\n== {name}: {PARTS[name].what}", flush=True)
        parts.pop(name, None)
        try:
            parts[name] = run_part(name, plan, done)
        except InputError as error:
            failed += 1
            print(f"failed: {name}: {error}", file=sys.stderr, flush=True)
        content = write(plan, {known: parts[known] for known in PARTS if known in parts}, kept, result)
    print(f"\n{tables(content)}\n\n{result}")
    return failed


def write(plan: Plan, parts: dict[str, Any], kept: Path, result: Path) -> dict[str, Any]:
    """What is kept in OUT, and the result with its picture; its content."""
    manifest = read_json(plan.shards("all") / "manifest.json")
    pictures = {"classes": len(manifest["classes"]), **{split: one["samples"] for split, one in manifest["splits"].items()}, "size": plan.size}
    settings = {"recipe": plan.recipe, "changes": list(plan.changes), "seeds": list(plan.seeds)}
    content = {**where(torch.device("cpu")), "settings": settings, "pictures": pictures, "parts": parts}
    for path, value in ((kept, parts), (result, content)):
        with atomic_file(path, "w") as file:
            json.dump(value, file, indent=1)
    if "ablate" in parts:
        write_plot(content, result.with_suffix(".png"))
    return content


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="The paper's other experiments on small pictures.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--tiny", type=Path, required=True, help="tar that holds train/CLASS/PICTURE and val/CLASS/PICTURE, at any depth")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of shards and runs, which is kept")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--seeds", default="0,1,2", help="of the trainings of each kind, with commas between")
    parser.add_argument("--nets", type=int, default=5, help="of one kind that are averaged")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    parser.add_argument("--size", type=int, default=128, help="pixels a side that pictures are brought to")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of every training's recipe")
    parser.add_argument("--result", type=Path, default=Path("docs/benchmarks/experiments.json"), help="JSON to write; PNG beside it")
    return parser.parse_args(arguments)


def read_plan(given: argparse.Namespace) -> tuple[Plan, list[str]]:
    """The plan and the parts named, in their order. Raises InputError."""
    names, seeds = given.only.split(","), given.seeds.split(",")
    for name in names:
        if name not in PARTS:
            raise InputError(f"--only {name} is not one of {', '.join(PARTS)}")
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise InputError(f"--seeds must be different whole numbers with commas between, not {given.seeds!r}")
    if given.nets < max(2, len(seeds)):
        raise InputError(f"--nets must be at least 2, and as many as the --seeds, not {given.nets}")
    if given.result.suffix != ".json" or not given.result.absolute().parent.is_dir():
        raise InputError(f"--result {given.result} cannot be written: give the path of a .json file in a folder that exists")
    plan = Plan(given.tiny, given.out.resolve(), given.size, tuple(map(int, seeds)), given.nets, changes=tuple(given.set))
    return plan, [name for name in PARTS if name in names]


def use_cores(count: int | None) -> None:
    """So many cores for all that is started here. Raises InputError."""
    cores = sorted(os.sched_getaffinity(0))
    if count is not None and not 1 <= count <= len(cores):
        raise InputError(f"--threads must be from 1 to {len(cores)}, the cores that there are, not {count}")
    os.sched_setaffinity(0, cores[:count])


def main(arguments: list[str] | None = None) -> int:
    given = _arguments(arguments)
    with one_line_errors():
        plan, names = read_plan(given)
        use_cores(given.threads)
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
        return 1 if run_all(plan, names, given.result) else 0
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
