"""The folder of a run with made-up numbers, its files written by the training's own writers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from model import spikes
from model.checkpoint import VELOCITY
from model.evaluate import Result, write_predictions
from model.metrics import Metrics
from model.nets import make_net
from model.pictures import list_skipped
from model.recipe import Recipe, read_recipe
from model.record import write_record
from model.saving import Saver
from pipeline import STAGES, Skipped

SMALL = ["model.maps=[16, 8, 8, 8, 8]", "model.hidden=[16, 16]", "model.input=99", "train.batch=10", "train.epochs=9", "train.drop_epochs=[5, 7]"]
SPIKE, RESUMED = 130, 200


def made_run(
    folder: Path, names: Sequence[str], digest: str = "0" * 64, *, ended: bool = True, epochs: int = 9, steps: int = 60, settings: Sequence[str] = ()
) -> Path:
    """A run of `epochs` of `steps`, gone on with once and started again once; its loss leapt once and two pictures were skipped."""
    recipe = read_recipe("small", [*SMALL, *settings])
    pictures = {"train": recipe.train.batch * steps, "val": 100}
    for step, restart in ((0, 0), (RESUMED, 0), (RESUMED + 100, 1)):
        write_record(
            folder,
            recipe=recipe.model_dump(mode="json"),
            layout="2 x cpu, one column a device, 1 replica",
            world=2,
            shards="shards",
            digest=digest,
            names=list(names),
            pictures=pictures,
            step=step,
            restart=restart,
        )
    _metrics(folder, recipe, len(names), epochs, steps, ended)
    _checkpoint(folder, recipe, len(names), epochs * steps)
    place = ("train-00000.tar", "n01440764_10026", 512, "the picture <b>cannot</b> be decoded")
    list_skipped(folder, [Skipped("train", 17, *place, epoch=0, replaced_by=18), Skipped("val", 3, *place, epoch=1, replaced_by=None)])
    spikes.keep(folder, folder / "checkpoints", spikes.Spike(SPIKE, 9.5, 2.2, 0.005, 2, 100, [1, 2], None))
    if ended:
        best = [(label, 0.5**place) for place, label in enumerate(range(min(5, len(names))), start=1)]
        write_predictions(folder / "predictions.json", Result(predictions=[(i, i % len(names), best) for i in range(8)]))
    return folder


def _metrics(folder: Path, recipe: Recipe, classes: int, epochs: int, steps: int, ended: bool) -> None:
    metrics, chance = Metrics(folder), math.log(classes)
    shares = dict(zip((f"loader_{stage}_percent" for stage in STAGES), (6.0, 55.0, 9.0, 2.0, 28.0), strict=True))
    for epoch in range(epochs):
        rate = recipe.train.rate * 0.1 ** sum(epoch >= drop for drop in recipe.train.drop_epochs)
        for step in range(epoch * steps + 1, (epoch + 1) * steps + 1):
            leap = 7.0 if step == SPIKE else 0.0
            loss = chance * (0.25 + 0.75 * math.exp(-step / (2.5 * steps))) + 0.12 * math.sin(step * 1.7) + leap
            speed, wait = 180 + 25 * math.sin(step / 9), 6 + 5 * math.sin(step / 5)
            metrics.write(step, epoch=epoch + 1, loss_nats=loss, rate=rate, images_per_second=speed, data_wait_percent=wait, **shares)
        error = 100 * (1 - 1 / classes) * (0.3 + 0.7 * math.exp(-epoch / 3))
        metrics.write(
            (epoch + 1) * steps, epoch=epoch + 1, val_top1_error_percent=error, val_top5_error_percent=error / 2, val_images=100, val_seconds=1.5
        )
    metrics.write(SPIKE, event="spike", spike_loss_nats="9.5", usual_loss_nats=None)
    if ended:
        metrics.write(epochs * steps, val_ten_view_top1_error_percent=31.25, val_ten_view_top5_error_percent=14.5)
    metrics.close()


def _checkpoint(folder: Path, recipe: Recipe, classes: int, step: int) -> None:
    net = make_net(classes, recipe.model, seed=0)
    tensors = {name: value.detach() for name, value in net.named_parameters()}
    tensors |= {VELOCITY + name: torch.zeros_like(value) for name, value in tensors.items()}
    state = {"step": step, "recipe": recipe.model_dump(mode="json"), "classes": classes, "wnids": [f"n{i:08d}" for i in range(classes)]}
    state |= {"schedule": {}, "loader": {}, "unvalidated": False, "metrics_bytes": 0}
    saver = Saver(folder / "checkpoints", None, True)
    assert saver.begin(step, tensors, state, best=True) is None
    assert saver.settle() is None
