"""Runs over each other: one HTML file that opens offline.

python -m model.compare runs/A runs/B ... [--out compare.html]
"""

from __future__ import annotations

import argparse
import html
import sys
from pathlib import Path

from model.charts import COLOURS
from model.page import page, table
from model.report import curves, flat
from model.run_lines import RunLines, read_run
from pipeline import InputError, atomic_file, one_line_errors


def _numbers(runs: list[RunLines]) -> str:
    rows = []
    for run in runs:
        best = min((line["val_top1_error_percent"] for line in run.val), default=None)
        ten = [run.final.get(f"val_ten_view_top{k}_error_percent") for k in (1, 5)]
        last = run.train[-1]
        numbers = [f"{last['step']:,}", f"{last['loss_nats']:.3f}", *(f"{value:.2f}" if value is not None else "–" for value in (best, *ten))]
        rows.append((run.name, *numbers, f"{run.rate():,.1f}", f"{run.mean('data_wait_percent'):.1f}", run.record["layout"]))
    head = ("run", "steps", "last loss", "best top-1 %, centre", "top-1 %, ten views", "top-5 %", "images/s", "waiting %", "layout")
    return table(head, rows, range(1, 8))


def _recipes(runs: list[RunLines]) -> str:
    """The keys in which the recipes differ."""
    recipes = [flat(run.recipe) for run in runs]
    keys = [key for key in dict.fromkeys(key for recipe in recipes for key in recipe) if len({recipe.get(key) for recipe in recipes}) > 1]
    if not keys:
        return "<p class='soft'>The recipes are the same.</p>"
    return table(("key", *(run.name for run in runs)), [(key, *(recipe.get(key, "–") for recipe in recipes)) for key in keys])


def compared(folders: list[Path]) -> str:
    """The page. Raises InputError."""
    runs = [read_run(folder) for folder in folders]
    if len(runs) > len(COLOURS):
        raise InputError(f"{len(runs)} runs are more than can be told apart; give at most {len(COLOURS)}")
    if any(not isinstance(line["loss_nats"], int | float) for run in runs for line in run.train):
        raise InputError("a run's metrics.jsonl has a loss that is no number; remove the line")
    classes = {run.record["shards"]["classes"] for run in runs}
    note = f"<p class='none'>The runs have different numbers of classes: {sorted(classes)}.</p>" if len(classes) > 1 else ""
    title = " and ".join(run.name for run in runs)
    return page(
        title, f"<h1>{html.escape(title)}</h1>{note}<h2>Numbers</h2>{_numbers(runs)}<h2>Curves</h2>{curves(runs)}<h2>Recipes</h2>{_recipes(runs)}"
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lay runs over each other.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders that model.train wrote")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the file to write (default: compare.html)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        text = compared(given.runs)
        with atomic_file(given.out, "w") as file:
            file.write(text)
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
