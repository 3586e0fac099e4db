"""What each part of the net is worth: trainings with one part taken away, beside the paper's figures.

python -m model.ablate --out runs/ablate [--only no-lrn,tanh] [--seeds 0,1,2] [any options of model.train, such as --shards, --recipe, --set]

Each is a training of its own, by recipe keys alone (--list shows them); one that was stopped goes on, one that has ended is not repeated.
The differences are of the ten views' errors, in points, from the whole net of the same seeds; beside them what the columns exchange.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.design import LAYERS, MIDDLE
from model.launch import end_with_parent
from model.recipe import OF_THE_MACHINE, Recipe, change_recipe, read_recipe
from model.run_lines import read_run
from model.traffic import exchanged
from pipeline import InputError, atomic_file, one_line_errors

WHOLE = "whole"
STOPPED = (130, 143)  # exit codes of a training that was asked to stop
SENT = "sent: bytes that each column, on a device of its own, sends the other for a picture, forward and backward, at 32 bits a value (GPUs: 16)"


@dataclass(frozen=True)
class Ablation:
    """keys: of the recipe, for one that has been read. paper: points of error that the part is worth, top-1 and top-5, and where it says so."""

    name: str
    what: str
    keys: Callable[[Recipe], list[str]]
    paper: tuple[float | None, float | None] = (None, None)
    source: str = ""


def _fixed(*keys: str) -> Callable[[Recipe], list[str]]:
    return lambda recipe: list(keys)


def _half_net(recipe: Recipe) -> list[str]:
    """As the paper's net for one GPU: half of the kernels but for conv5's, and whole fully connected layers (section 3.2, footnote)."""
    *halved, last = recipe.alexnet.maps
    return ["model.columns=1", f"model.maps={[*(count // 2 + count // 2 % 2 for count in halved), last]}"]


def _printed_window(recipe: Recipe) -> list[str]:
    """224 for 227, as the paper prints: 3 pixels less, and 2 of padding on each side, which it does not mention, for as many places of conv1."""
    design = recipe.alexnet
    changed = {"input": design.input - 3, "conv1_padding": (2, 2)}
    fits = design.conv1_padding == (0, 0) and design.model_copy(update=changed).sides() == design.sides()
    return [f"model.input={design.input - 3}", "model.conv1_padding=[2, 2]"] if fits else []


def _batch(times: float, rate: float = 1.0) -> Callable[[Recipe], list[str]]:
    """Another batch at the recipe's rate, or at `rate` times it; that it grow with the batch is a rule of arXiv 1706.02677, section 2.1."""

    def keys(recipe: Recipe) -> list[str]:
        scaled = [f"train.rate={rate * recipe.train.rate:g}"] if rate != 1 else []
        return [f"train.batch={max(1, int(times * recipe.train.batch))}", *scaled]

    return keys


ABLATIONS = (
    Ablation(WHOLE, "nothing taken away", _fixed()),
    Ablation("one-column", "one column of half the kernels", _half_net, (1.7, 1.2), "section 3.2"),
    Ablation("no-lrn", "no local response normalisation", _fixed("model.lrn=null", "model.within_map_norm=false"), (1.4, 1.2), "section 3.3"),
    Ablation("no-overlap", "pooling windows of 2, side by side", _fixed("model.pool=2"), (0.4, 0.3), "section 3.4"),
    Ablation("never", "columns that never exchange", _fixed("model.reads_both=[fc8]"), (1.17, 1.12), "the authors' program, 2012 val"),
    Ablation("every-layer", "columns that exchange before every layer", _fixed(f"model.reads_both={list(LAYERS[1:])}".replace("'", ""))),
    Ablation("tanh", "tanh for ReLU", _fixed("model.activation=tanh")),
    *(
        Ablation(
            f"no-{layer}",
            f"without {layer}",
            _fixed(f"model.without=[{layer}]"),
            (2.0, None) if layer.startswith("conv") else (None, None),
            "section 7: about 2" if layer.startswith("conv") else "",
        )
        for layer in MIDDLE
    ),
    Ablation("no-colour", "no shift of the colour", _fixed("data.colour=none"), (1.0, None), "section 4.1: over 1"),
    Ablation("no-crops", "the central window only", _fixed("data.crops=false")),
    Ablation("no-flips", "no mirror images", _fixed("data.flips=false")),
    Ablation("no-dropout", "no dropout", _fixed("model.dropout=0")),
    Ablation("input-224", "windows 3 smaller, padded (224 for 227)", _printed_window),
    Ablation("batch-half", "half the batch", _batch(0.5)),
    Ablation("batch-double", "twice the batch", _batch(2)),
    Ablation("batch-double-scaled", "twice the batch at twice the rate", _batch(2, 2)),
)


@dataclass(frozen=True)
class Outcome:
    """Of one ablation, errors in percent by seed. sent: bytes a picture from each column to the other, forward and backward."""

    name: str
    what: str
    top1: list[float]
    top5: list[float]
    sent: tuple[int, int]
    paper: tuple[float | None, float | None]
    source: str


def train(ablation: Ablation, seed: int, folder: Path, recipe: Recipe, options: list[str]) -> tuple[float, float]:
    """Errors of the ten views, percent, of a training that is there, or is done now. Raises InputError where it fails."""
    keys = [*ablation.keys(recipe), f"train.seed={seed}"]
    found = _errors(folder, change_recipe(recipe, keys))
    if found is None:
        changes = [word for key in keys for word in ("--set", key)]
        command = [sys.executable, "-m", "model.train", *options, *changes, "--run", str(folder), "--resume", "auto"]
        code = subprocess.run(command, check=False, preexec_fn=end_with_parent).returncode  # or two would write to one run
        if code in STOPPED:
            sys.exit(code)
        if code:
            raise InputError(f"the training {ablation.name} in {folder} ended with {code}; the same command goes on with it")
        found = _errors(folder, change_recipe(recipe, keys))
    if found is None:
        raise InputError(f"{folder} has no error of ten views; the shards need validation pictures")
    return found


def _errors(folder: Path, recipe: Recipe) -> tuple[float, float] | None:
    """None where the training has not ended. Raises InputError for one that has, of another recipe: its figures are not those asked for."""
    if not (folder / "metrics.jsonl").is_file():
        return None
    run = read_run(folder)
    final = run.final
    if final and _of_the_training(run.recipe) != _of_the_training(recipe):
        raise InputError(f"{folder} was trained by another recipe; name another folder by --out")
    return (final["val_ten_view_top1_error_percent"], final["val_ten_view_top5_error_percent"]) if final else None


def _of_the_training(recipe: Recipe) -> dict[str, Any]:
    """A recipe without the keys that change no bit."""
    values: dict[str, Any] = recipe.model_dump(mode="json")
    return {table: {key: value for key, value in keys.items() if f"{table}.{key}" not in OF_THE_MACHINE} for table, keys in values.items()}


def outcome(ablation: Ablation, folders: dict[int, Path], recipe: Recipe, options: list[str]) -> Outcome:
    """Of the trainings in these folders, by seed. Raises InputError."""
    errors = [train(ablation, seed, folder, recipe, options) for seed, folder in folders.items()]
    run = read_run(next(iter(folders.values())))
    sent = exchanged(run.recipe.model, run.classes)
    return Outcome(ablation.name, ablation.what, [top1 for top1, _ in errors], [top5 for _, top5 in errors], sent, ablation.paper, ablation.source)


def table(outcomes: list[Outcome]) -> str:
    """Errors, differences from the whole net in points, and the paper's. Of several seeds the means, and the spread of the differences."""
    whole = next((one for one in outcomes if one.name == WHOLE), None)
    lines = [f"{'':<42}{'top-1 %':>9}{'top-5 %':>9}{'sent':>11}   {'worse by':>15}{'':>8}  {'the paper':>11}"]
    for one in outcomes:
        errors = f"{one.what:<42}{statistics.mean(one.top1):>9.2f}{statistics.mean(one.top5):>9.2f}{sum(one.sent):>11,}   "
        if whole is None or one is whole:
            lines.append(errors.rstrip())
            continue
        differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in ((one.top1, whole.top1), (one.top5, whole.top5))]
        means = " / ".join(f"{statistics.mean(some):+.2f}" for some in differences)
        spread = f"+-{statistics.stdev(differences[0]):.2f}" if len(one.top1) > 1 else ""
        said = " / ".join("-" if value is None else f"{value:+.1f}" for value in one.paper) if one.source else ""
        lines.append(f"{errors}{means:>15}{spread:>8}  {said:>11}  {one.source}".rstrip())
    return "\n".join([*lines, SENT])


def chosen(only: str | None, recipe: Recipe) -> list[Ablation]:
    """Those named, or all that change anything in this recipe. Raises InputError."""
    changing = [one for one in ABLATIONS if one.name == WHOLE or change_recipe(recipe, one.keys(recipe)) != recipe]
    if only is None:
        return changing
    there, names = {one.name for one in ABLATIONS}, only.split(",")
    for name in names:
        if name not in there:
            raise InputError(f"--only {name} is not one of {', '.join(one.name for one in ABLATIONS)}")
        if name not in {one.name for one in changing}:
            raise InputError(f"--only {name} changes nothing in this recipe; leave it out")
    return [one for one in changing if one.name in names or one.name == WHOLE]


def _show(ablations: list[Ablation], recipe: Recipe, only: str | None) -> None:
    for one in ablations:
        print(f"{one.name:<20} {one.what:<42} {' '.join(one.keys(recipe))}".rstrip())
    same = [one.name for one in ABLATIONS if one not in ablations and not only]
    print("all of these are trained, unless --only names some" + (f"; {', '.join(same)} would change nothing in this recipe" if same else ""))


def _seeds(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--seeds must be different whole numbers with commas between, not {text!r}")
    return [int(part) for part in parts]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What each part of the net is worth. Options not listed go to model.train.", allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/ablate"), help="folder of the trainings (default: runs/ablate)")
    parser.add_argument("--only", help="names with commas between (default: all that --list shows); the whole net is always trained")
    parser.add_argument("--seeds", default="0", help="of each training, with commas between (default: 0)")
    parser.add_argument("--list", action="store_true", help="show names, keys and the paper's figures, and stop")
    parser.add_argument("--recipe", default="alexnet", help="as of model.train (default: alexnet)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given, rest = parser.parse_known_args(arguments)
    with one_line_errors():
        for word in rest:
            if word.split("=")[0] in ("--run", "--resume"):
                raise InputError(f"{word} is chosen for each training; name a folder for all by --out")
        recipe, seeds = read_recipe(given.recipe, given.set), _seeds(given.seeds)
        ablations = chosen(given.only, recipe)
        if given.list:
            _show(ablations, recipe, given.only)
            return 0
        options = [*rest, "--recipe", given.recipe, *(word for key in given.set for word in ("--set", key))]
        outcomes, failed = _run_all(ablations, seeds, given.out, recipe, options)
        with atomic_file(given.out / "ablations.json", "w") as file:
            json.dump([asdict(one) for one in outcomes], file, indent=1)
        print(table(outcomes))
        if failed:
            raise InputError(f"not in the table: {', '.join(failed)}, whose trainings failed; what they said stands above")
    return 0


def _run_all(ablations: list[Ablation], seeds: list[int], out: Path, recipe: Recipe, options: list[str]) -> tuple[list[Outcome], list[str]]:
    """What was found, and the names of those that failed, after which the others go on. Raises InputError where the whole net fails."""
    outcomes, failed = list[Outcome](), list[str]()
    for number, one in enumerate(ablations, 1):
        print(f"{number} of {len(ablations)}: {one.what}", flush=True)
        try:
            outcomes.append(outcome(one, {seed: out / f"{one.name}-{seed}" for seed in seeds}, recipe, options))
        except InputError as error:
            if one.name == WHOLE:
                raise
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed.append(one.name)
    return outcomes, failed


if __name__ == "__main__":
    sys.exit(main())
