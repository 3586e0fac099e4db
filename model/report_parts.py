"""The parts of a run's report below its curves. What cannot be shown is said, and costs no more than its part."""

from __future__ import annotations

import base64
import json
from html import escape
from pathlib import Path
from typing import Any

import torch

from model import checkpoint, spikes
from model.kernels import as_png, first_kernels, kernel_sheet
from model.page import bar, note, section, table
from model.pictures import SKIPPED
from model.recipe import OF_THE_MACHINE, Recipe, read_recipe
from model.run_lines import RunLines, Values
from model.vgg_design import VggDesign
from pipeline import STAGES, InputError, ShardSet

SILENT = OF_THE_MACHINE | {"data.order", "data.window", "train.seed", "train.patience", "train.log_every"}  # of which the paper says nothing
LISTED = 30  # skipped pictures that are named


def newest_kernels(run: RunLines) -> tuple[int, torch.Tensor] | None:
    """Step of the newest checkpoint and its first layer's weights, see first_kernels; None where there is none yet. Raises InputError."""
    path = checkpoint.latest(run.folder / "checkpoints")
    if path is None:
        return None
    return checkpoint.load_state(path, files=False)["step"], first_kernels(path, run.recipe, run.classes)


def kernels(run: RunLines) -> str:
    title, design = "First layer", run.recipe.model
    try:
        found = newest_kernels(run)
    except InputError as error:
        return section(title, note(f"without its kernels: {error}"))
    if found is None:
        return section(title, note("no checkpoint yet"))
    step, weights = found
    where = "column 0 above, column 1 below; " if design.columns > 1 else ""
    words = f"kernels of {design.layers()[0]} after step {step:,}: {where}each scaled to its own range, grey is zero (paper, Figure 3)"
    sheet = _address(as_png(kernel_sheet(weights, design.columns)), "png")
    return section(title, f"<figure><img class='kernels' alt='{words}' src='{sheet}'><p class='soft'>{words}</p></figure>")


def _address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def predictions(run: RunLines, shards: str | None, local: Path | None) -> str:
    """Figure 4: each picture with its class, and the five best guesses as bars."""
    path, title = run.folder / "predictions.json", "Predictions"
    if not path.is_file():
        return section(title, note("made when the training ends")) if not run.ended else ""
    try:
        rows = json.loads(path.read_text("utf-8"))
        pictures, why = _pictures(run, rows, shards, local)
        cards = "".join(_card(run, row, picture) for row, picture in zip(rows, pictures, strict=True))
    except (ValueError, KeyError, TypeError) as error:
        return section(title, note(f"{path.name} is damaged ({type(error).__name__}: {error}); train the last epoch again to have it anew"))
    about = note("The first pictures of the validation split, with the five likeliest classes by the mean of ten views (paper, Figure 4).")
    return section(title, about, note(why) if why else "", f"<div class='pictures'>{cards}</div>")


def _pictures(run: RunLines, rows: list[Values], shards: str | None, local: Path | None) -> tuple[list[bytes | None], str]:
    """The JPEGs, or none and why."""
    none: list[bytes | None] = [None for _ in rows]
    folder = shards or run.record["shards"]["folder"]
    if shards is None and "://" in folder:
        return none, f"Without pictures: {folder} is not on this machine; give it by --shards to have it fetched."
    try:
        found = ShardSet(folder, "val", local)
        if found.digest != run.record["shards"]["manifest_sha256"]:
            return none, f"Without pictures: the shards in {folder} are not those of this run."
        return [found.read(row["id"])[0].tobytes() for row in rows], ""
    except (InputError, OSError) as error:
        return none, f"Without pictures: {error}."


def _card(run: RunLines, row: Values, picture: bytes | None) -> str:
    label = row["label"]
    image = f"<img alt='' src='{_address(picture, 'jpeg')}'>" if picture is not None else ""
    guesses = []
    for guess in row["best"]:
        share, right = 100 * float(guess["probability"]), guess["class"] == label
        words = f"<span>{escape(_class_name(run, guess['class']))}</span><small>{share:.1f} %</small>"
        guesses.append(f"<li{' class=right' if right else ''}>{bar(share)}{words}</li>")
    return f"<div>{image}<b>{escape(_class_name(run, label))}</b><ol>{''.join(guesses)}</ol></div>"


def _class_name(run: RunLines, label: int) -> str:
    names = run.record["shards"].get("names", [])
    return str(names[label]).split(",")[0] if 0 <= label < len(names) else f"class {label}"


def waits(run: RunLines) -> str:
    """Where the time of the training's thread and of the loader's went, and what was left out."""
    shares = {stage: run.mean(f"loader_{stage}_percent") for stage in STAGES}
    legend = "".join(f"<li><i class='{_stage_class(stage)}'></i>{stage} {share:.1f} %</li>" for stage, share in shares.items())
    wait = run.mean("data_wait_percent")
    busy = max((stage for stage in STAGES if stage != "idle"), key=lambda stage: shares[stage])
    verdict = "the net is what takes the time" if wait < 5 else f"the data are what takes the time, and of them most: {busy}"
    parts = [note(f"Training waited for data {wait:.1f} % of the time in its steps: {verdict}.")]
    if sum(shares.values()):
        parts.append(f"<h3>The loader's thread</h3>{_stages(shares)}<ul class='legend'>{legend}</ul>")
    return section("Where the time went", *parts, _skipped(run))


def _stage_class(stage: str) -> str:
    return "c7" if stage == "idle" else f"c{STAGES.index(stage)}"


def _stages(shares: dict[Any, float]) -> str:
    """One bar of all stages, in the order of the legend."""
    parts, left = [], 0.0
    for stage, share in shares.items():
        parts.append(f"<rect class='{_stage_class(stage)}' x='{left:.2f}' width='{share:.2f}' height='1'/>")
        left += share
    return f"<svg class='stages' viewBox='0 0 {max(left, 1):.2f} 1' preserveAspectRatio='none' aria-hidden='true'>{''.join(parts)}</svg>"


def _skipped(run: RunLines) -> str:
    path = run.folder / SKIPPED
    texts = path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []
    found = []
    for text in texts:
        try:
            line = json.loads(text)
            found.append((f"{line['split']} {line['id']:,}", Path(line["shard"]).name, f"{line['key']} at offset {line['offset']:,}", line["reason"]))
        except (ValueError, KeyError, TypeError):  # cut short where a rank was killed
            continue
    if not found:
        return note("No picture was skipped.")
    more = note(f"and {len(found) - LISTED:,} more in {SKIPPED}") if len(found) > LISTED else ""
    head = ("picture", "shard", "sample", "why")
    return f"<h3>{len(found):,} picture{'s' * (len(found) > 1)} skipped</h3>{table(head, found[:LISTED])}{more}"


def starts_of(run: RunLines) -> str:
    """When it was begun, gone on with by someone, and started again by the launcher after a fault."""
    rows, again = [], 0
    for number, one in enumerate(run.record["starts"]):
        restart = one.get("restart", 0)
        again += restart > 0
        what = f"started again after a fault, try {restart}" if restart else "gone on with" if number else "begun"
        rows.append((one["time"].replace("T", " ")[:19], what, f"{one['step']:,}", one["layout"]))
    resumed = len(rows) - 1 - again
    words = "Begun once, and not interrupted." if len(rows) == 1 else f"Gone on with {_times(resumed)}, started again after a fault {_times(again)}."
    return section("Starts", note(words), table(("UTC", "", "at step", "layout"), rows, (2,)))


def _times(count: int) -> str:
    return {0: "never", 1: "once", 2: "twice"}.get(count, f"{count} times")


def leaps_of(run: RunLines) -> list[Values]:
    """What is kept of the steps whose loss leapt, as numbers."""
    found = []
    for path in sorted((run.folder / spikes.FOLDER).glob(f"step-*/{spikes.WHAT}")):
        try:
            one = spikes.read(path.parent)
            found.append({key: float(one[key]) for key in ("step", "loss", "usual", "rate")})
        except (OSError, ValueError, KeyError, TypeError):  # being written
            continue
    return found


def spikes_of(run: RunLines) -> str:
    leaps = leaps_of(run)
    if not leaps:
        return ""
    about = note(f"Steps whose loss leapt, kept in {spikes.FOLDER}/; python -m model.replay repeats one.")
    rows = []
    for one in leaps:
        rows.append((f"{one['step']:,.0f}", f"{run.epoch(one['step']):.2f}", f"{one['loss']:.4g}", f"{one['usual']:.4g}", f"{one['rate']:g}"))
    return section("Leaps of the loss", about, table(("step", "epoch", "loss, nats", "usual before", "rate"), rows, range(5)))


def made_of(run: RunLines) -> str:
    """Machine, versions, digests."""
    machine, data = run.record["machine"], run.record["shards"]
    hardware = [
        ("layout", run.record["layout"]),
        ("processor", machine["processor"]),
        ("cores, memory", f"{machine['cores']}, {machine['memory_gib']} GiB"),
        ("GPUs", ", ".join(machine["gpus"]) or "none"),
    ]
    both = f"<div class='pair'>{table((), hardware)}{table((), list(run.record['versions'].items()))}</div>"
    digests = [("shards", data["folder"]), ("their manifest", data["manifest_sha256"]), *_checkpoint_digests(run.folder / "checkpoints")]
    return section("Made of", both, f"<h3>Digests, SHA-256</h3><div class='digest'>{table((), digests)}</div>")


def _checkpoint_digests(folder: Path) -> list[tuple[str, str]]:
    """Of state.json, which has those of all other files of its checkpoint."""
    found: list[tuple[str, Any]] = [("newest checkpoint", checkpoint.latest(folder))]
    if (folder / checkpoint.BEST).exists():
        found.append(("best checkpoint", (folder / checkpoint.BEST).resolve()))
    rows = []
    for what, path in found:
        try:
            rows.append((f"{what}, {path.name}", checkpoint.digest_of(path / checkpoint.STATE)) if path is not None else (what, "none yet"))
        except OSError:  # deleted meanwhile by the training, which keeps only the newest
            continue
    return rows


def flat(values: Values, before: str = "") -> dict[str, str]:
    """A recipe's keys with dots, and their values as text."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{before}{key}"
        found.update(flat(value, f"{name}.") if isinstance(value, dict) else {name: "none" if value is None else json.dumps(value).replace('"', "")})
    return found


def recipe_table(run: RunLines) -> str:
    """Every key, those marked that differ from the paper's, or that only another net has."""
    model = run.recipe.model
    papers = read_recipe("vgg", [f"model.vgg={model.vgg}"]) if isinstance(model, VggDesign) else Recipe()
    ours, paper = (flat(recipe.model_dump(mode="json")) for recipe in (run.recipe, papers))
    rows = [(key, value, "not said" if key in SILENT else paper.get(key, "–")) for key, value in ours.items()]
    differing = [value != other and key not in SILENT for key, value, other in rows]
    words = f"{sum(differing)} of {len(rows)} keys differ from the paper's (≠)." if any(differing) else "All keys are the paper's."
    return section("Recipe", note(words), table(("key", "this run", "paper"), rows, marked=differing))
