"""Runs over each other: one HTML file that opens offline.

python -m model.compare runs/A runs/B ... [--out compare.html]
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from html import escape
from pathlib import Path

from model.charts import COLOURS, Level, Line, chart
from model.page import note, page, section, table
from model.report import KEYS, best_validation, percent, time_text
from model.report_parts import flat
from model.run_lines import RunLines, read_run
from pipeline import InputError, atomic_file, one_line_errors

MOST = 2 * COLOURS  # runs that can be told apart: the second of a colour is dashed


def compared(folders: list[Path]) -> str:
    """The page. Raises InputError."""
    if len(folders) > MOST:
        raise InputError(f"{len(folders)} runs are more than can be told apart; give at most {MOST}")
    runs = [read_run(folder) for folder in folders]
    names = _names(runs)
    classes = {run.classes for run in runs}
    digests = {run.record["shards"]["manifest_sha256"] for run in runs}
    words = f"The runs have different numbers of classes: {', '.join(map(str, sorted(classes)))}." if len(classes) > 1 else ""
    words = words or ("The runs were trained on different shards." if len(digests) > 1 else "All were trained on the same shards.")
    legend = "".join(f"<li><i class='{_class(number)}'></i>{escape(name)}</li>" for number, name in enumerate(names))
    head = f"<header><h1>{len(runs)} run{'s' * (len(runs) > 1)} compared</h1>{note(words)}<ul class='legend'>{legend}</ul></header>"
    body = (
        head,
        section("Results", _numbers(runs, names)),
        section("Curves", _curves(runs, names)),
        section("What differs", _differing(runs, names)),
    )
    return page(" and ".join(names), "".join(body))


def _names(runs: list[RunLines]) -> list[str]:
    """The folders' names, with that of the folder above, or a number, where two are the same."""
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    count = Counter(names)
    return [f"{name} ({number + 1})" if count[name] > 1 else name for number, name in enumerate(names)]


def _class(number: int) -> str:
    return f"c{number % COLOURS}{' again' if number >= COLOURS else ''}"


def _numbers(runs: list[RunLines], names: list[str]) -> str:
    rows = []
    for run, name in zip(runs, names, strict=True):
        best, last = best_validation(run), run.train[-1]
        errors = [percent(run.final, KEYS["ten1"]), percent(run.final, KEYS["ten5"]), percent(best, KEYS["centre1"]), percent(best, KEYS["centre5"])]
        speed = (f"{run.rate():,.4g}", f"{run.mean('data_wait_percent'):.1f} %", time_text(run.seconds()))
        rows.append((name, *errors, f"{last['loss_nats']:.3f}", f"{run.epoch(run.last_step):.4g}", *speed))
    head = (
        "run",
        "top-1, ten views",
        "top-5",
        "top-1, centre, best",
        "top-5",
        "last loss",
        "epochs",
        "images/s",
        "waiting",
        "time in steps",
        "layout",
    )
    return table(head, rows, range(1, 10))


def _curves(runs: list[RunLines], names: list[str]) -> str:
    def of(key: str, validation: bool = False) -> list[Line]:
        found = []
        for number, (run, name) in enumerate(zip(runs, names, strict=True)):
            rows = run.val if validation else run.train
            found.append(Line(name, [run.epoch(row["step"]) for row in rows], [row.get(key) for row in rows], number))
        return found

    classes = {run.classes for run in runs}
    chance = [Level(math.log(n), f"chance, ln {n:,} = {math.log(n):.2f}") for n in classes] if len(classes) == 1 else []
    found = [
        chart("Training loss", "nats", of("loss_nats"), levels=chance),
        chart("Top-1 validation error, centre view", "percent", of(KEYS["centre1"], True)),
        chart("Top-5 validation error, centre view", "percent", of(KEYS["centre5"], True)),
        chart("Learning rate", "of the weights", of("rate")),
        chart("Throughput", "images/s", of("images_per_second")),
        chart("Waiting for data", "percent of the time", of("data_wait_percent")),
    ]
    return f"<div class='charts'>{''.join(found)}</div>"


def _differing(runs: list[RunLines], names: list[str]) -> str:
    """Layout, devices, versions and recipe keys, where they differ."""
    columns = []
    for run in runs:
        machine = run.record["machine"]
        about = {"layout": run.record["layout"], "devices": ", ".join(machine["gpus"]) or f"{machine['processor']}, {machine['cores']} cores"}
        columns.append({**about, **run.record["versions"], **flat(run.recipe.model_dump(mode="json"))})
    keys = dict.fromkeys(key for column in columns for key in column)
    differing = [key for key in keys if len({column.get(key) for column in columns}) > 1]
    if not differing:
        return note("Nothing: recipes, layouts, devices and versions are the same.")
    rows = [(key, *(column.get(key, "–") for column in columns)) for key in differing]
    return table(("", *names), rows) + note(f"The other {len(keys) - len(differing)} keys are the same in all.")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lay runs over each other.")
    parser.add_argument("runs", type=Path, nargs="+", help="folders that model.train wrote")
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the file to write (default: compare.html)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        text = compared(given.runs)
        if not given.out.parent.is_dir():
            raise InputError(f"{given.out} cannot be written, since its folder does not exist; make it, or name another by --out")
        with atomic_file(given.out, "w") as file:
            file.write(text)
        print(given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
