"""The report of a run: one HTML file that opens offline.

python -m model.report --run runs/RUN [--shards shards/]

Written at the end of a training, and again at any time from the run's files. Pictures of the predictions come from the shards,
and are left out where those are not there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from model.charts import Level, Line, Moment, chart
from model.design import Design
from model.page import facts, note, page, section, table
from model.report_parts import kernels, leaps_of, made_of, predictions, recipe_table, spikes_of, starts_of, waits
from model.report_silent import silent
from model.run_lines import RunLines, Values, read_run
from model.vgg_design import VggDesign
from pipeline import InputError, atomic_file, one_line_errors

NAME = "report.html"
IMAGENET = 1000  # classes, of which the paper's numbers are

# The paper, percent: tables 1 and 2, and section 4.1 for the centre view.
PAPER_2010 = {"ten1": 37.5, "ten5": 17.0, "centre1": 39.0, "centre5": 18.3}
PAPER_2012 = {"ten1": 40.7, "ten5": 18.2}
PAPER_VGG = {"A": (29.6, 10.4), "A-LRN": (29.7, 10.5), "B": (28.7, 9.9), "C": (27.3, 8.8), "D": (25.6, 8.1), "E": (25.5, 8.0)}  # dense, one scale
PAPER_RATE = 227  # images/s: 90 epochs of 1.2 million pictures in five and a half days
KEYS = {
    "ten1": "val_ten_view_top1_error_percent",
    "ten5": "val_ten_view_top5_error_percent",
    "centre1": "val_top1_error_percent",
    "centre5": "val_top5_error_percent",
}


def write_report(folder: Path, shards: str | None, local: Path | None = None) -> Path:
    """Write RUN/report.html. shards, local: see pipeline.ShardSet; None for those that the run was trained on. Raises InputError, OSError."""
    run = read_run(folder)
    try:
        body = _body(run, shards, local)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise InputError(f"{folder} has a damaged file ({type(error).__name__}: {error}); see run.json and metrics.jsonl") from None
    with atomic_file(folder / NAME, "w") as file:
        file.write(page(f"{run.name}: report", body))
    return folder / NAME


def _body(run: RunLines, shards: str | None, local: Path | None) -> str:
    parts = (
        _head(run),
        section("Beside the paper", *_paper(run)),
        section("Curves", curves(run)),
        silent(run),
        kernels(run),
        predictions(run, shards, local),
        waits(run),
        starts_of(run),
        spikes_of(run),
        made_of(run),
        recipe_table(run),
    )
    return "".join(parts)


def percent(line: Values, key: str) -> str:
    return f"{line[key]:.2f} %" if key in line else "–"


def time_text(seconds: float) -> str:
    """Two units of it: 5 d 3 h, 2 h 14 min, 43 s."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{int(hours // 24)} d {int(hours % 24)} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(minutes)} min {int(seconds % 60)} s" if minutes >= 1 else f"{seconds:.0f} s"


def best_validation(run: RunLines) -> Values:
    """The line of the epoch with the least top-1 error."""
    return min(run.val, key=lambda line: line["val_top1_error_percent"], default={})


def _head(run: RunLines) -> str:
    epoch, epochs = run.epoch(run.last_step), run.recipe.train.epochs
    line, view = (run.final, "ten views") if run.final else (run.val[-1] if run.val else {}, "centre view")
    kind = "ten" if run.final else "centre"
    boxes = [
        (percent(line, KEYS[f"{kind}1"]), f"top-1 error, {view}", _beside(run, f"{kind}1")),
        (percent(line, KEYS[f"{kind}5"]), f"top-5 error, {view}", _beside(run, f"{kind}5")),
        (f"{epoch:.3g} of {epochs}", "epochs", f"{run.last_step:,} steps"),
        (f"{run.rate():,.4g}", "images/s", "while training"),
        (time_text(run.seconds()), "time in steps", f"and {time_text(run.validation_seconds())} in validation" if run.val else ""),
        (f"{run.mean('data_wait_percent'):.1f} %", "waiting for data", "of the time in steps"),
    ]
    pictures = ", ".join(f"{count:,} {split}" for split, count in run.record["shards"]["pictures"].items())
    what = f"{run.record['layout']} · {run.classes:,} classes · pictures: {pictures}"
    return f"<header><h1>{escape(run.name)}</h1>{note(what)}{note(_state(run))}{facts(boxes)}</header>"


def _comparable(run: RunLines) -> bool:
    """Whether the paper's errors are of such a net with as many classes."""
    return run.classes == IMAGENET and isinstance(run.recipe.model, Design)


def _beside(run: RunLines, key: str) -> str:
    if not _comparable(run):
        k = int(key[-1])
        return f"chance {100 * max(0.0, 1 - k / run.classes):.4g} %"
    return f"paper {PAPER_2012.get(key, PAPER_2010[key])} %"


def _state(run: RunLines) -> str:
    """Ended, or how far it is."""
    if run.ended:
        return f"Ended after {run.epoch(run.last_step):.4g} epochs; first started {run.record['starts'][0]['time'][:10]}."
    done, epochs = run.epoch(run.last_step), run.recipe.train.epochs
    at_most = "at most " if run.recipe.train.schedule == "plateau" else ""
    seconds = (run.seconds() + run.validation_seconds()) * (epochs / done - 1)
    return f"Not ended yet: epoch {done:.2f} of {at_most}{epochs}; what is left takes {at_most}{time_text(seconds)} at this speed."


def _paper(run: RunLines) -> tuple[str, str]:
    best = best_validation(run)
    count = sum(run.recipe.model.parameters(run.classes).values())
    machine, pictures = run.record["machine"], run.record["shards"]["pictures"]["train"]
    devices = ", ".join(machine["gpus"]) or machine["processor"]
    rows = [
        ("top-1 / top-5 error, ten views", _pair(run.final, "ten"), "40.7 / 18.2 %", "37.5 / 17.0 %"),
        ("top-1 / top-5 error, centre view", _pair(best, "centre") + (f" (epoch {best['epoch']}, the best)" if best else ""), "–", "39.0 / 18.3 %"),
        ("epochs", f"{run.epoch(run.last_step):.4g}", "about 90", "about 90"),
        ("batch", str(run.batch), "128", "128"),
        ("learning rate, its drops", f"{run.recipe.train.rate:g}, {len(run.drops())} to a tenth", *["0.01, 3 to a tenth"] * 2),
        ("images/s, all devices", f"{run.rate():,.4g}", f"about {PAPER_RATE}", f"about {PAPER_RATE}"),
        ("time", time_text(run.seconds() + run.validation_seconds()), "5 to 6 days", "5 to 6 days"),
        ("devices", f"{devices}: {run.record['layout']}", *["two GTX 580 3 GB, a column each"] * 2),
        ("parameters", f"{count:,}", "60,965,224", "60,965,224"),
        ("classes, training pictures", f"{run.classes:,}, {pictures:,}", *["1,000, 1.2 million"] * 2),
    ]
    other = f"This run has {run.classes:,} classes: its errors cannot be compared with those of 1,000." if run.classes != IMAGENET else ""
    if isinstance(run.recipe.model, VggDesign):
        return table(("", "this run", "paper, 2012 validation"), _of_vgg(run.recipe.model, rows)), note(other) if other else ""
    return table(("", "this run", "paper, 2012 validation", "paper, 2010 test"), rows), note(other) if other else ""


def _of_vgg(design: VggDesign, rows: Sequence[tuple[str, ...]]) -> list[tuple[str, str, str]]:
    """The rows with the figures of Simonyan and Zisserman (arXiv 1409.1556, sections 3 and 4.1, table 2)."""
    parameters = f"{sum(VggDesign(vgg=design.vgg).parameters(IMAGENET).values()):,}"
    paper = {"epochs": "74", "batch": "256", "learning rate, its drops": "0.01, 3 to a tenth", "parameters": parameters}
    paper |= {"classes, training pictures": "1,000, 1.3 million", "devices": "four Titan Black", "time": "2 to 3 weeks"}
    dense = ("top-1 / top-5 error, dense, one scale", "see model.evaluate", "{} / {} %".format(*PAPER_VGG[design.vgg]))
    return [dense, *((row[0], row[1], paper.get(row[0], "–")) for row in rows)]


def _pair(line: Values, kind: str) -> str:
    return f"{percent(line, KEYS[f'{kind}1'])[:-2]} / {percent(line, KEYS[f'{kind}5'])}" if line else "–"


def curves(run: RunLines) -> str:
    """The charts of one run."""

    def words(epoch: float) -> str:
        step = epoch * run.last_step / run.epoch(run.last_step)
        return f"epoch {epoch:.4g} · step {step:,.0f} · {time_text(run.seconds(step))}"

    def of_steps(key: str, **more: bool) -> list[Line]:
        return [Line(key, [run.epoch(line["step"]) for line in run.train], [line.get(key) for line in run.train], **more)]

    happened = _moments(run)
    chance = Level(math.log(run.classes), f"chance, ln {run.classes:,} = {math.log(run.classes):.2f}")
    speed = [Level(PAPER_RATE, f"paper, about {PAPER_RATE}")] if max(line.get("images_per_second", 0) for line in run.train) > PAPER_RATE / 2 else []
    found = [
        chart("Training loss", "nats", of_steps("loss_nats", band=True), x_words=words, levels=[chance], moments=happened),
        _errors(run),
        chart("Throughput", "images/s", of_steps("images_per_second"), x_words=words, levels=speed, moments=happened[1:]),
        chart("Waiting for data", "percent of the time", of_steps("data_wait_percent", band=True), x_words=words, moments=happened[1:]),
    ]
    words_of = {"rate": "Dashed: the learning rate falls", "start": "▲ started again", "spike": "▼ the loss leapt"}
    kinds = [words_of[kind] for kind in words_of if kind in {moment.kind for moment in happened}]
    return f"<div class='charts'>{''.join(found)}</div>{note('; '.join(kinds) + '.') if kinds else ''}"


def _moments(run: RunLines) -> list[Moment]:
    """The first rate and its drops, later starts, leaps of the loss."""
    rates = [(0, run.recipe.train.rate), *run.drops()]
    starts = [one["step"] for one in run.record["starts"][1:]]
    leaps = [int(one["step"]) for one in leaps_of(run)]
    found = [Moment(run.epoch(step), f"rate {rate:g}" if step == 0 else f"{rate:g}", "rate") for step, rate in rates]
    found += [Moment(run.epoch(step), f"started again at step {step:,}", "start") for step in starts]
    return found + [Moment(run.epoch(step), f"the loss leapt at step {step:,}", "spike") for step in leaps]


def _errors(run: RunLines) -> str:
    epochs, found = [line["epoch"] for line in run.val], []
    for colour, k in enumerate((1, 5)):
        found.append(Line(f"top-{k}, centre view", epochs, [line[KEYS[f"centre{k}"]] for line in run.val], colour, dots=len(epochs) <= 40))
    levels = (
        [Level(PAPER_2012[f"ten{k}"], f"paper, top-{k}, ten views: {PAPER_2012[f'ten{k}']} %", left=True) for k in (1, 5)] if _comparable(run) else []
    )
    for colour, k in enumerate((1, 5)):
        if run.final:
            found.append(Line(f"top-{k}, ten views", [run.epoch(run.last_step)], [run.final[KEYS[f"ten{k}"]]], colour + 2))
    return chart("Validation error", "percent", found, levels=levels, moments=[one for one in _moments(run)[1:] if one.kind == "rate"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the report of a run.")
    parser.add_argument("--run", type=Path, required=True, help="folder that model.train wrote")
    parser.add_argument("--shards", help="what it was trained on, for the predictions' pictures (default: where they were)")
    parser.add_argument("--local", type=Path, help="of a URL: folder that shards are fetched into (default: ~/.cache/alexnet-shards)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        print(write_report(given.run, given.shards, given.local))
    return 0


if __name__ == "__main__":
    sys.exit(main())
