"""Do one step of a run again, the very same: the pictures, the draws, the dropout, the weights.

python -m model.replay --run runs/RUN [--step N] [--shards shards/]

Without --step, the last step whose loss leapt, as kept in the run's spikes/. It goes on from the checkpoint kept with it (or, for
another step, the newest one before it) on one device; a run of one device of the same kind is repeated bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from model import checkpoint, spikes
from model.deterministic import set_deterministic
from model.layout import Layout, choose
from model.loop import enter_epoch, one_step
from model.memory import keep_freed_memory
from model.net import MaskDraw
from model.pictures import Source
from model.recipe import check_recipe
from model.run import Run, Start, build_run
from pipeline import Batch, InputError, atomic_file, one_line_errors

WORST = 8  # pictures that are listed


def _kept(run: Path, step: int | None) -> tuple[int, Path | None, dict[str, Any]]:
    """Number of the step, the checkpoint to go on from (None: the beginning), and what was written of it. Raises InputError."""
    folders = sorted(path.parent for path in (run / spikes.FOLDER).glob(f"step-*/{spikes.WHAT}"))
    if step is None and not folders:
        raise InputError(f"{run / spikes.FOLDER} holds no step whose loss leapt; name any step with --step N")
    chosen = next((folder for folder in folders if int(folder.name[5:]) == step), None) if step is not None else folders[-1]
    if chosen is not None:
        spike = spikes.read(chosen)
        return spike["step"], chosen / spikes.FROM if spike["checkpoint"] is not None else None, spike
    assert step is not None
    found = spikes.before(run / "checkpoints", step)
    return step, checkpoint.path_of(run / "checkpoints", found) if found is not None else None, {}


def _recipe_state(run: Path, start: Path | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Recipe, and state of the checkpoint if there is one. Raises InputError."""
    if start is not None:
        state = checkpoint.load_state(start)
        return state["recipe"], state
    newest = checkpoint.latest(run / "checkpoints")
    if newest is not None:
        return checkpoint.load_state(newest, files=False)["recipe"], {}
    record = run / "run.json"
    if not record.is_file():
        raise InputError(f"{run} is not the folder of a run; give one that model.train wrote")
    return json.loads(record.read_text("utf-8"))["recipe"], {}


def _go_to(run: Run, step: int) -> Batch:
    """Train up to just before `step` (from 1), and give that step's batch. Raises InputError."""
    if run.step >= step:
        raise InputError(f"the oldest checkpoint is of step {run.step}, which is not before step {step}; name a later one")
    while not run.schedule.finished(run.train.epoch):
        enter_epoch(run)
        for batch in tqdm(run.train, "steps before", min(len(run.train), step - run.step), leave=False, disable=not sys.stderr.isatty()):
            if run.step == step - 1:
                return batch
            one_step(run, batch)
        if run.recipe.train.schedule == "plateau":
            raise InputError(f"no checkpoint of the epoch of step {step} is there, and its rate hangs on a validation; name a later step")
    raise InputError(f"the run's recipe ends before step {step}; name an earlier one")


def _repeat(run: Run, batch: Batch, step: int) -> dict[str, Any]:
    """The step itself: its loss, its pictures' losses, and size of gradient, weight and update by parameter."""
    labels, masks = batch.labels, MaskDraw(run.recipe.train.seed, run.step, len(batch.labels))
    run.take_step.settle()
    run.optimiser.halves = {}  # the net itself, whose casts are the copies' values
    logits = run.net(batch.images.contiguous(memory_format=torch.channels_last), masks).float()
    losses, loss = F.cross_entropy(logits, labels, reduction="none"), F.cross_entropy(logits, labels)
    run.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    before = {name: value.detach().clone() for name, value in run.net.named_parameters()}
    run.optimiser.step()
    sizes = {}
    for name, value in run.net.named_parameters():
        assert value.grad is not None
        sizes[name] = {"weight": _size(before[name]), "gradient": _size(value.grad), "update": _size(value.detach() - before[name])}
    losses = losses.detach()
    worst = losses.float().nan_to_num(nan=torch.inf).argsort(descending=True)[:WORST].tolist()
    pictures = []
    for row in worst:
        shard, key, offset = run.train.shards.place(int(batch.ids[row]))
        pictures.append({"loss_nats": float(losses[row]), "label": int(labels[row]), "shard": shard.name, "key": key, "offset": offset})
    return {"step": step, "loss_nats": float(loss.detach()), "parameters": sizes, "worst_pictures": pictures, "ids": batch.ids.tolist()}


def _size(value: torch.Tensor) -> float:
    return float(value.float().norm())


def _tell(result: dict[str, Any], kept: dict[str, Any]) -> None:
    print(f"step {result['step']}: loss {result['loss_nats']:.9g} nats", end="")
    print(f"; the run had {float(kept['loss']):.9g}, of {float(kept['usual']):.4g} before it" if kept else "")
    print(f"  {'':<14}{'weight':>12}{'gradient':>12}{'update':>12}   (Euclidean norms)")
    for name, size in result["parameters"].items():
        print(f"  {name:<14}{size['weight']:>12.4g}{size['gradient']:>12.4g}{size['update']:>12.4g}")
    for picture in result["worst_pictures"]:
        print(f"  loss {picture['loss_nats']:8.3f}  label {picture['label']:4d}  {picture['shard']}: {picture['key']} at offset {picture['offset']}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Repeat one step of a run.")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--step", type=int, help="number of the step, from 1 (default: the last whose loss leapt)")
    parser.add_argument("--shards", default="shards", help="what the run was trained on (default: shards/)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--on-bad-sample", choices=("stop", "skip"), default="stop", help="as the run was trained (default: stop)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        _, _, device = choose(1, 1, given.device, 1)
        step, start, kept = _kept(given.run, given.step)
        recipe, state = _recipe_state(given.run, start)
        layout = Layout(device=torch.device(device))
        keep_freed_memory(layout.device)
        with tempfile.TemporaryDirectory() as place:  # nothing is written to the run but the answer
            cores = len(os.sched_getaffinity(0))
            if layout.device.type == "cpu":
                torch.set_num_threads(cores)  # as in training: another number sums in another order
            source = Source(given.shards, cores, given.on_bad_sample)
            checked = check_recipe(recipe, str(given.run))
            set_deterministic(checked.train.deterministic, layout.device)
            run = build_run(Path(place), checked, layout, source, Start(start, state))
            result = _repeat(run, _go_to(run, step), step)
            run.metrics.close()
        _tell(result, kept)
        folder = given.run / spikes.FOLDER / f"step-{step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / "replay.json", "w") as file:
            json.dump(result, file, indent=1)
        print(folder / "replay.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
