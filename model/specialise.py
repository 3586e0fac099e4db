"""Whether the two columns' first layers specialise, one in colour and one without, whatever the initial weights (paper, section 6.1).

python -m model.specialise RUN [RUN ...] [--out runs/specialise]

Runs, or checkpoints, of two columns and different seeds. "This kind of specialization occurs during every run and is independent of any
particular random weight initialization (modulo a renumbering of the GPUs)": in each run the kernels' colour is compared between the columns,
by a permutation test, and beside it that of the initial kernels. Writes specialise.json and specialise.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from model import checkpoint
from model.alexnet import AlexNet
from model.colour_content import TRIES, Column, Comparison, compare, learned, p_of
from model.design import Design
from model.kernels import first_kernels
from model.recipe import Recipe, check_recipe
from model.specialise_sheet import Strips, draw
from pipeline import InputError, atomic_file, one_line_errors

CLEAR = 0.01  # p below which one column is clearly the coloured one
NAME = "specialise"


@dataclass(frozen=True)
class Kernels:
    """Of one run: its newest conv1 kernels and those it began with, (maps, 3, 11, 11) float32, and which of the newest have learned, see learned."""

    name: str
    seed: int
    step: int
    newest: np.ndarray
    initial: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Measured:
    """Of one run: its kernels now, those that have learned, and as they began, all of them."""

    name: str
    seed: int
    step: int
    now: Comparison
    before: Comparison

    @property
    def clear(self) -> bool:
        return self.now.p is not None and self.now.p < CLEAR


@dataclass(frozen=True)
class Together:
    """Of all runs whose kernels can be compared: in how many one column is clearly the coloured one, and which; the mean size of their
    differences, what shuffled kernels give, and p of so large a mean.
    """

    runs: int
    clear: int
    column0: int
    column1: int
    size: float
    chance: float
    p: float


def read_kernels(path: Path) -> Kernels:
    """Of a run's newest checkpoint, or of a checkpoint. Raises InputError."""
    folder = path / "checkpoints"
    found = checkpoint.latest(folder) if folder.is_dir() else path
    if found is None:
        raise InputError(f"{path} has no checkpoint yet; wait for its first, or leave it out")
    found = found.resolve()
    state = checkpoint.load_state(found)
    recipe = check_recipe(state["recipe"], str(found / checkpoint.STATE))
    design = recipe.model
    if not isinstance(design, Design) or design.columns == 1:
        raise InputError(f"{path} is of a net of one column, which nothing is to be compared with; give runs of two columns")
    newest = first_kernels(found, recipe, state["classes"]).numpy()
    name = path.resolve().name if folder.is_dir() else f"{found.parent.parent.name}/{found.name}"
    began = initial_kernels(found.parent, design, recipe, state["classes"])
    return Kernels(name, recipe.train.seed, state["step"], newest, began, learned(newest, design.init_std[0]))


def initial_kernels(folder: Path, design: Design, recipe: Recipe, classes: int) -> np.ndarray:
    """Of the checkpoint that a run with --init-from begins with, or drawn again by the seed: conv1 is drawn first, whatever comes after it."""
    begun = checkpoint.path_of(folder, 0)
    if begun.is_dir():
        checkpoint.load_state(begun)  # its sums are compared
        return first_kernels(begun, recipe, classes).numpy()
    small = design.model_copy(update={"maps": (design.maps[0], 2, 2, 2, 2), "hidden": (2, 2)})
    return AlexNet(2, small, seed=recipe.train.seed).conv1.weight.detach().numpy()


def measure(kernels: Kernels) -> tuple[Measured, np.ndarray, np.ndarray]:
    """And the sizes of the differences of shuffled kernels, now and as they began."""
    now, sizes = compare(kernels.newest, kernels.counts)
    before, sizes_before = compare(kernels.initial, np.ones(len(kernels.initial), bool))
    return Measured(kernels.name, kernels.seed, kernels.step, now, before), sizes, sizes_before


def together(comparisons: list[Comparison], sizes: list[np.ndarray]) -> Together | None:
    """None where no run's kernels can be compared. Shuffles of different runs are drawn independently of each other."""
    there = [(one.difference, one.p) for one in comparisons if one.difference is not None and one.p is not None]
    if not there:
        return None
    generator = np.random.default_rng(0)
    drawn = np.mean([generator.choice(each, TRIES) for each in sizes if len(each)], axis=0)
    size, clear = fmean(abs(difference) for difference, _ in there), [difference for difference, p in there if p < CLEAR]
    column1 = sum(difference > 0 for difference in clear)
    return Together(len(there), len(clear), len(clear) - column1, column1, size, float(drawn.mean()), p_of(size, drawn, exact=False))


def table(measured: list[Measured]) -> str:
    lines = [f"{'colour content':<24}{'seed':>6}{'step':>9}  {'column 0':<20}{'column 1':<20}{'difference':>10}{'p':>10}   at the beginning"]
    for one in measured:
        before = f"{one.before.difference:+.3f}, p {_p(one.before.p)}" if one.before.difference is not None else "-"
        columns = "".join(f"{_column(column):<20}" for column in one.now.columns)
        now = f"{one.now.difference:>+10.3f}{_p(one.now.p):>10}" if one.now.difference is not None else f"{'too few have learned':>20}"
        lines.append(f"{one.name[-23:]:<24}{one.seed:>6}{one.step:>9,}  {columns}{now}   {before}")
    return "\n".join(lines)


def _column(column: Column) -> str:
    if column.mean is None:
        return "none has learned"
    return f"{column.mean:.3f}{'' if column.spread is None else f' +-{column.spread:.3f}'} of {column.kernels}"


def _p(p: float | None) -> str:
    return "-" if p is None else f"{p:.2g}"


def verdict(now: Together | None, before: Together | None) -> list[str]:
    if now is None:
        return ["Too few kernels have learned anything, in every run: train longer."]
    which = f"column 0 in {now.column0}, column 1 in {now.column1}"
    found = [
        f"One column is clearly the coloured one (p < {CLEAR}) in {now.clear} of {now.runs} runs: {which}.",
        f"Mean size of the difference {now.size:.3f}; of kernels shuffled between the columns {now.chance:.3f}, p of all runs {_p(now.p)}.",
    ]
    if before is not None:
        found.append(f"At the beginning {before.size:.3f}, shuffled {before.chance:.3f}, p {_p(before.p)}: clear in {before.clear} of {before.runs}.")
    return found


def report(paths: list[Path]) -> tuple[dict[str, Any], list[str], list[Strips]]:
    """What is written as JSON, printed, and drawn. Raises InputError."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError("a run is named twice; name each once, since they count as independent")
    read = [read_kernels(path) for path in paths]
    for one, other in combinations(read, 2):
        if one.seed == other.seed:
            raise InputError(f"{one.name} and {other.name} both began with seed {one.seed}, and runs count as independent; name one of each seed")
    found = [measure(one) for one in read]
    measured = [one for one, _, _ in found]
    now = together([one.now for one in measured], [sizes for _, sizes, _ in found])
    before = together([one.before for one in measured], [sizes for _, _, sizes in found])
    runs = [{**asdict(one), "clear": one.clear} for one in measured]
    content = {"clear_below_p": CLEAR, "runs": runs, **{key: asdict(one) if one else None for key, one in (("now", now), ("before", before))}}
    return content, [table(measured), *verdict(now, before)], [Strips(f"{one.name}, seed {one.seed}", one.newest, one.counts) for one in read]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Whether one column's conv1 learns colour and the other's none, run by run.", allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="folders that model.train wrote, or checkpoints, of different seeds")
    parser.add_argument("--out", type=Path, default=Path("runs") / NAME, help=f"folder of {NAME}.json and .png (default: runs/{NAME})")
    given = parser.parse_args(arguments)
    with one_line_errors():
        content, lines, strips = report(given.runs)
        given.out.mkdir(parents=True, exist_ok=True)
        with atomic_file(given.out / f"{NAME}.json", "w") as file:
            json.dump(content, file, indent=1)
        draw(strips, given.out / f"{NAME}.png")
        print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
