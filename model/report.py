"""The report of a run: one HTML file that opens offline.

python -m model.report --run runs/RUN [--shards shards/]

Written at the end of a training, and again at any time from the run's files. Pictures of the predictions come from the shards,
and are left out where those are not there.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
import sys
from pathlib import Path
from typing import Any

from model import checkpoint, spikes
from model.charts import COLOURS, Line, chart
from model.kernels import as_png, kernel_sheet
from model.page import facts, page, table
from model.pictures import SKIPPED, count_skipped
from model.recipe import Recipe
from model.run_lines import RunLines, read_run
from pipeline import STAGES, InputError, ShardSet, atomic_file, one_line_errors

NAME = "report.html"

# ILSVRC-2010 test and ILSVRC-2012 validation, percent (paper, tables 1 and 2).
PAPER = {"centre": ("39.0", "18.3"), "ten": ("37.5", "17.0"), "ten_2012": ("40.7", "18.2")}


def write_report(folder: Path, shards: str | None) -> Path:
    """Write RUN/report.html. Raises InputError, OSError."""
    run = read_run(folder)
    try:
        parts = (_head(run), _paper(run), _curves(run), _kernels(run), _predictions(run, shards), _waits(run), _made_of(run), _recipe(run))
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{folder} has a damaged file ({type(error).__name__}: {error}); see run.json, metrics.jsonl and predictions.json") from None
    body = "".join(parts)
    with atomic_file(folder / NAME, "w") as file:
        file.write(page(f"{run.name}: report", body))
    return folder / NAME


def _percent(line: dict[str, Any], key: str) -> str:
    return f"{line[key]:.2f} %" if key in line else "–"


def _time(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours} h {rest // 60} min" if hours else f"{rest // 60} min {rest % 60} s"


def _head(run: RunLines) -> str:
    data, last = run.record["shards"], run.train[-1]
    pairs = [
        ("top-1 error, ten views", _percent(run.final, "val_ten_view_top1_error_percent")),
        ("top-5 error, ten views", _percent(run.final, "val_ten_view_top5_error_percent")),
        ("epochs, steps", f"{run.val[-1]['epoch'] if run.val else last['epoch']}, {last['step']:,}"),
        ("last training loss, nats", f"{last['loss_nats']:.3f}"),
        ("images/s while training", f"{run.rate():,.0f}"),
        ("time in steps", _time(run.seconds())),
        ("waiting for data", f"{run.mean('data_wait_percent'):.1f} %"),
    ]
    state = "" if run.final else "<p class='soft'>This run has not ended yet.</p>"
    pictures = ", ".join(f"{count:,} {split}" for split, count in data["pictures"].items())
    what = f"{html.escape(run.record['layout'])}; {data['classes']} classes; pictures: {html.escape(pictures)}"
    return f"<h1>{html.escape(run.name)}</h1><p class='soft'>{what}</p>{state}{facts(pairs)}"


def _paper(run: RunLines) -> str:
    best = min(run.val, key=lambda line: line["val_top1_error_percent"], default={})
    rows = [
        (
            "top-1 / top-5 error, ten views",
            f"{PAPER['ten'][0]} / {PAPER['ten'][1]} % (2010), {PAPER['ten_2012'][0]} / {PAPER['ten_2012'][1]} % (2012)",
        ),
        ("top-1 / top-5 error, centre view", f"{PAPER['centre'][0]} / {PAPER['centre'][1]} % (2010)"),
        ("batch, epochs", "128, about 90"),
        ("images/s, all devices", "about 227"),
        ("time", "5 to 6 days"),
        ("devices", "two GTX 580, a column each"),
    ]
    ours: list[str] = [
        f"{_percent(run.final, 'val_ten_view_top1_error_percent')} / {_percent(run.final, 'val_ten_view_top5_error_percent')}",
        f"{_percent(best, 'val_top1_error_percent')} / {_percent(best, 'val_top5_error_percent')} (best epoch)",
        f"{run.batch}, {run.val[-1]['epoch'] if run.val else run.train[-1]['epoch']}",
        f"{run.rate():,.1f}",
        _time(run.seconds()),
        run.record["layout"],
    ]
    cells = [(what, theirs, mine) for (what, theirs), mine in zip(rows, ours, strict=True)]
    note = "<p class='soft'>The paper's figures are of ILSVRC's 1000 classes; other data give other errors.</p>"
    return f"<h2>Beside the paper</h2>{table(('', 'paper', 'this run'), cells)}{note}"


def curves(runs: list[RunLines]) -> str:
    """Charts of one run, or of several over each other."""
    several = len(runs) > 1

    def lines(key: str, of: str, what: str = "") -> list[Line]:
        found = []
        for number, run in enumerate(runs):
            rows = run.train if of == "train" else run.val
            name = f"{run.name}{', ' + what if what else ''}" if several else what or key
            found.append(
                Line(name, [r["step"] if of == "train" else r["epoch"] for r in rows], [r.get(key) for r in rows], COLOURS[number % len(COLOURS)])
            )
        return found

    chance = math.log(runs[0].record["shards"]["classes"])
    errors = lines("val_top1_error_percent", "val", "top-1")
    if not several:
        errors += [Line("top-5", line.x, line.y, COLOURS[1]) for line in lines("val_top5_error_percent", "val")]
    found = [
        chart("Training loss", lines("loss_nats", "train"), "step", "nats", level=(chance, f"chance, {chance:.2f}")),
        chart("Validation error, centre view", errors, "epoch", "percent"),
        chart("Learning rate", lines("rate", "train"), "step", "rate"),
        chart("Throughput", lines("images_per_second", "train"), "step", "images/s"),
        chart("Waiting for data", lines("data_wait_percent", "train"), "step", "percent of the time", top=None),
    ]
    if not several and runs[0].looks:
        found.append(_silent(runs[0]))
    return f"<div class='charts'>{''.join(found)}</div>"


def _silent(run: RunLines) -> str:
    """Share of maps and units that fired on none of a few pictures, by layer, both columns together."""
    keys = sorted({key for line in run.looks for key in line if key.startswith("silent_percent")})
    layers = sorted({key.split("_")[2] for key in keys})
    lines = []
    for number, layer in enumerate(layers):
        of_layer = [key for key in keys if key.split("_")[2] == layer]
        values = [sum(line.get(key, 0.0) for key in of_layer) / len(of_layer) for line in run.looks]
        lines.append(Line(layer, [line["step"] for line in run.looks], values, COLOURS[number % len(COLOURS)]))
    return chart("Maps and units that never fire", lines, "step", "percent of a layer")


def _curves(run: RunLines) -> str:
    rows = [(str(r["epoch"]), f"{r['step']:,}", f"{r['val_top1_error_percent']:.2f}", f"{r['val_top5_error_percent']:.2f}") for r in run.val]
    numbers = f"<details><summary>the errors as numbers</summary>{table(('epoch', 'step', 'top-1 %', 'top-5 %'), rows, (0, 1, 2, 3))}</details>"
    return f"<h2>Curves</h2>{curves([run])}{numbers if rows else ''}"


def _image(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def newest_net(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint's content, or None. Raises InputError."""
    path = checkpoint.latest(folder / "checkpoints")
    return checkpoint.load(path) if path is not None else None


def _kernels(run: RunLines) -> str:
    net = newest_net(run.folder)
    if net is None:
        return "<h2>First layer</h2><p class='none'>no checkpoint yet</p>"
    sheet = _image(as_png(kernel_sheet(net["model"]["conv1.weight"])), "png")
    words = f"kernels of conv1 after step {net['step']:,}, column 0 above column 1, each scaled to its own range (paper, Figure 3)"
    return f"<h2>First layer</h2><img class='kernels' alt='{words}' src='{sheet}'><p class='soft'>{words}</p>"


def _predictions(run: RunLines, shards: str | None) -> str:
    path = run.folder / "predictions.json"
    if not path.is_file():
        return ""
    split, why = _shards(run, shards)
    parts = []
    for one in json.loads(path.read_text("utf-8")):
        names = run.record["shards"].get("names", [])

        def name(label: int, names: list[str] = names) -> str:
            return names[label].split(",")[0] if label < len(names) else f"class {label}"

        picture = (
            f"<img alt='{html.escape(name(one['label']))}' src='{_image(split.read(one['id'])[0].tobytes(), 'jpeg')}'>" if split is not None else ""
        )
        guesses = "".join(
            f"<div class='guess{' right' if g['class'] == one['label'] else ''}'><i style='width:{100 * g['probability']:.1f}%'></i>"
            f"<span>{html.escape(name(g['class']))} {100 * g['probability']:.0f} %</span></div>"
            for g in one["best"]
        )
        parts.append(f"<div>{picture}<b>{html.escape(name(one['label']))}</b>{guesses}</div>")
    return f"<h2>Predictions</h2>{f'<p class=none>{html.escape(why)}</p>' if why else ''}<div class='pictures'>{''.join(parts)}</div>"


def _shards(run: RunLines, shards: str | None) -> tuple[ShardSet | None, str]:
    """The validation pictures, or why there are none to show."""
    try:
        found = ShardSet(shards or run.record["shards"]["folder"], "val")
    except (InputError, OSError) as error:
        return None, f"without pictures: {error}"
    if found.digest != run.record["shards"]["manifest_sha256"]:
        return None, "without pictures: the shards are others than the run's"
    return found, ""


def _waits(run: RunLines) -> str:
    rows = [("waiting for data, of all time", f"{run.mean('data_wait_percent'):.1f} %")]
    rows += [(f"the loader: {stage}, of its time", f"{run.mean(f'loader_{stage}_percent'):.1f} %") for stage in STAGES]
    skipped = count_skipped(run.folder)
    rows.append((f"pictures skipped{f', listed in {SKIPPED}' if skipped else ''}", f"{skipped:,}"))
    kept = sorted(path.name for path in (run.folder / spikes.FOLDER).glob(f"step-*/{spikes.WHAT}"))
    found = [path.parent.name for path in (run.folder / spikes.FOLDER).glob(f"step-*/{spikes.WHAT}")]
    rows.append(("steps whose loss leapt", ", ".join(sorted(found)) if kept else "none"))
    return f"<h2>Where the time went</h2>{table(('', ''), rows)}"


def _made_of(run: RunLines) -> str:
    machine, data = run.record["machine"], run.record["shards"]
    newest = checkpoint.latest(run.folder / "checkpoints")
    digests = checkpoint.load_state(newest, files=False)["files"] if newest is not None else {}
    rows = [
        ("layout", run.record["layout"]),
        ("processor, cores, memory", f"{machine['processor']}, {machine['cores']}, {machine['memory_gib']} GiB"),
        ("GPUs", ", ".join(machine["gpus"]) or "none"),
        *((name, version) for name, version in run.record["versions"].items()),
        ("shards", f"{data['folder']}, SHA-256 of the manifest {data['manifest_sha256']}"),
        *((f"{newest.name if newest else ''}/{name}", f"SHA-256 {file['sha256']}") for name, file in digests.items()),
    ]
    starts = [(one["time"], f"{one['step']:,}", one["layout"]) for one in run.record["starts"]]
    return f"<h2>Made of</h2>{table(('', ''), rows)}<h2>Starts</h2>{table(('time (UTC)', 'from step', 'layout'), starts)}"


def flat(values: dict[str, Any], before: str = "") -> dict[str, str]:
    """A recipe's keys with dots, and their values as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: json.dumps(value)})
    return found


def _recipe(run: RunLines) -> str:
    paper, ours = flat(Recipe().model_dump(mode="json")), flat(run.recipe)
    rows = [(key, value, paper.get(key, "–")) for key, value in ours.items()]
    head = ("key", "this run", "paper")
    return f"<h2>Recipe</h2>{table(head, rows, marked=[value != other for _, value, other in rows])}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the report of a run.")
    parser.add_argument("--run", type=Path, required=True, help="folder that model.train wrote")
    parser.add_argument("--shards", help="what it was trained on, for the predictions' pictures (default: where they were)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        print(write_report(given.run, given.shards))
    return 0


if __name__ == "__main__":
    sys.exit(main())
