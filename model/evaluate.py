"""Top-1 and top-5 error over a validation split, each picture counted once.

python -m model.evaluate --checkpoint runs/RUN/checkpoints/best --shards shards/ --views 10
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tqdm import tqdm

from model import checkpoint
from model.evaluate_arguments import read_arguments
from model.launch import end_with_parent, launch, under_launcher
from model.layout import Layout, choose, join
from model.memory import keep_freed_memory
from model.net import Net
from model.nets import make_net
from model.pictures import Source, default_batch
from model.rank import on_rank
from model.recipe import Recipe, change_recipe, check_recipe
from model.stop import Stopped, StopRequest
from model.views import Show, check_views, loader_of, name_of, of_windows, shown
from model.ways import Ways, is_half
from pipeline import Batch, ImageLoader, InputError, LoadingGivenUp, ShardSet, WholeBatch, WholePictures, atomic_file, one_line_errors

FIGURE_4 = 8  # pictures whose five best labels are kept


@dataclass
class Result:
    """Counts over the whole split, and the first few predictions: (id, label, [(class, probability) x 5])."""

    images: int = 0
    wrong_top1: int = 0
    wrong_top5: int = 0
    predictions: list[tuple[int, int, list[tuple[int, float]]]] = field(default_factory=list)

    @property
    def top1_error(self) -> float:
        return self.wrong_top1 / self.images

    @property
    def top5_error(self) -> float:
        return self.wrong_top5 / self.images

    def __str__(self) -> str:
        return (
            f"top-1 error {100 * self.top1_error:.2f} % ({self.wrong_top1:,} of {self.images:,}), "
            f"top-5 error {100 * self.top5_error:.2f} % ({self.wrong_top5:,} of {self.images:,})"
        )


class Tally:
    """Counts of one rank's batches, on its device; result() adds up those of all ranks."""

    def __init__(self, layout: Layout) -> None:
        self._layout, self._kept = layout, Result()
        self._counts = torch.zeros(3, dtype=torch.int64, device=layout.device)  # images, wrong top-1, wrong top-5

    def add(self, labels: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor) -> None:
        """Of n pictures: labels and ids as in pipeline.Batch, and (n, classes) on the device of the labels."""
        best = probabilities.topk(min(5, probabilities.shape[1]), dim=1)
        right, counted = best.indices == labels[:, None], labels >= 0  # a skipped sample's label is -1
        self._counts += torch.stack((counted.sum(), (counted & ~right[:, 0]).sum(), (counted & ~right.any(dim=1)).sum()))
        _keep_some(self._kept, labels, ids, best)

    def result(self) -> Result:
        """Every rank must call it. Raises InputError where not one picture was counted."""
        if self._layout.data_group is not None:
            dist.all_reduce(self._counts, group=self._layout.data_group)
        result = self._kept
        result.images, result.wrong_top1, result.wrong_top5 = self._counts.tolist()
        if not result.images:
            raise InputError("not one picture of these shards can be used; check them: python tools/check_shards.py")
        return result


class Average:
    """The softmax outputs of several nets, each run over the same batches, summed picture by picture (paper, section 6)."""

    def __init__(self) -> None:
        self.nets, self._place = 0, 0
        self._sums, self._shown = list[torch.Tensor](), list[tuple[torch.Tensor, torch.Tensor]]()

    def begin(self) -> None:
        """The next net starts at the first batch."""
        self.nets, self._place = self.nets + 1, 0

    def add(self, labels: torch.Tensor, ids: torch.Tensor, probabilities: torch.Tensor) -> None:
        """As Tally.add. Kept in the machine's memory: 4 bytes a picture and class."""
        if self.nets == 1:
            self._sums.append(probabilities.cpu())
            self._shown.append((labels, ids))
        else:
            assert torch.equal(labels, self._shown[self._place][0]), "the nets are shown the same pictures in the same order"
            self._sums[self._place] += probabilities.cpu()
        self._place += 1

    def result(self, layout: Layout) -> Result:
        tally = Tally(layout)
        for (labels, ids), total in zip(self._shown, self._sums, strict=True):
            tally.add(labels, ids, (total / self.nets).to(labels.device))
        return tally.result()


@torch.no_grad()
def evaluate(
    net: torch.nn.Module,
    loader: ImageLoader | WholePictures,
    layout: Layout,
    stop: StopRequest | None = None,
    at: Callable[[str], None] = lambda stage: None,
    average: Average | None = None,
    show: Show = of_windows,
) -> Result:
    """Run the whole split that `loader` stands at the start of; every rank returns the counts of all.

    With ten views the ten softmax outputs are averaged (paper, section 4.1). Raises Stopped after a batch in which `stop`
    was asked for. at: told of each batch. average: what comes out goes into it too. show: see views.shown.
    """
    net.eval()
    tally = Tally(layout)
    if average is not None:
        average.begin()
    shown = layout.first and sys.stderr.isatty()
    for batch in tqdm(_until_given_up(loader, stop), "validation", len(loader), leave=False, unit=" batches", disable=not shown):
        at("evaluating")
        number = stop.now() if stop is not None else 0
        if number:
            raise Stopped(number)
        if len(batch.ids) == 0:
            continue
        probabilities = show(net, batch)
        for counts in (tally,) if average is None else (tally, average):
            counts.add(batch.labels, batch.ids, probabilities)
    result = tally.result()
    net.train()
    return result


def _until_given_up(loader: ImageLoader | WholePictures, stop: StopRequest | None) -> Iterator[Batch | WholeBatch]:
    """The loader's batches. Raises Stopped where the wait for one was given up."""
    try:
        yield from loader
    except LoadingGivenUp:
        raise Stopped(stop.noted() if stop is not None else 0) from None


def _keep_some(result: Result, labels: torch.Tensor, ids: torch.Tensor, best: Any) -> None:
    for row in range(min(len(ids), FIGURE_4 - len(result.predictions))):
        if labels[row] < 0:
            continue
        pairs = list(zip(best.indices[row].tolist(), best.values[row].tolist(), strict=True))
        result.predictions.append((int(ids[row]), int(labels[row]), pairs))


def write_predictions(path: Path, result: Result) -> None:
    """The kept predictions as JSON, for a picture like Figure 4."""
    rows = [{"id": i, "label": label, "best": [{"class": c, "probability": p} for c, p in best]} for i, label, best in result.predictions]
    with atomic_file(path, "w") as file:
        json.dump(rows, file, indent=1)


def load_net(path: Path) -> tuple[Net, Recipe, dict[str, Any]]:
    """The whole net of a checkpoint, its recipe and its content. Raises InputError."""
    content = checkpoint.load(path)
    recipe = check_recipe(content["recipe"], str(path))
    net = make_net(content["classes"], recipe.model)
    net.load_state_dict(content["model"])
    return net, recipe, content


def _evaluate(given: argparse.Namespace, layout: Layout) -> int:
    """One rank's part; every rank holds the whole nets, one after the other."""
    cores = max(1, len(os.sched_getaffinity(0)) // layout.local_world)
    if layout.device.type == "cpu":
        torch.set_num_threads(cores)
    keep_freed_memory(layout.device)
    average = Average() if len(given.checkpoint) > 1 else None
    source = Source(given.shards, cores, given.on_bad_sample, given.local, given.local_gb)
    shards = ShardSet(given.shards, given.split, given.local, given.local_gb)
    for path in given.checkpoint:  # before the first of them is evaluated, which may take hours
        state = checkpoint.load_state(path, files=False)
        check_views(check_recipe(state["recipe"], str(path)), given.views, given.scales, shards)
        if [entry.wnid for entry in shards.manifest.classes] != state["wnids"]:
            raise InputError(f"{given.shards} has other classes than {path} was trained on; give the shards of its training")
    for path in given.checkpoint:
        _evaluate_one(given, layout, source, path, average)
    if average is not None:
        result = average.result(layout)
        if layout.first:
            print(f"average of the {average.nets} nets, {name_of(given.views, given.scales)}: {result}")
    return 0


def _evaluate_one(given: argparse.Namespace, layout: Layout, source: Source, path: Path, average: Average | None) -> None:
    net, recipe, _ = load_net(path)
    recipe = change_recipe(recipe, ["data.decoder=dali"])  # the same pixels, and no library that this machine may not have
    if average is not None and given.batch is None:
        given.batch = default_batch(recipe, layout, given.views)  # one for all: ranks share a split by the batch
    loader = loader_of(net, source, recipe, layout, given.views, given.scales, given.batch, given.split)
    if not len(loader.shards):
        raise InputError(f"{given.shards} has no pictures in its {given.split} split; make shards from a source that has some")
    if given.split == "test" and loader.shards.read(0)[1] < 0:
        raise InputError(f"the test pictures of {given.shards} have no labels (ILSVRC2012's were never published); evaluate with --split val")
    net.ways = Ways(is_half(recipe.train.precision, layout.device), fused=recipe.train.step == "fast")
    net.to(layout.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    result = evaluate(net, loader, layout, average=average, show=shown(given.views))
    if layout.first:
        scales = loader.scales if isinstance(loader, WholePictures) else ()
        print(f"{path}, {name_of(given.views, scales)}: {result}")
    for one in loader.skipped:
        print(f"not counted: {one.shard}, sample {one.key} at offset {one.offset}: {one.reason}")


def main(arguments: list[str] | None = None) -> int:
    given = read_arguments(arguments)
    with one_line_errors():
        if under_launcher():
            end_with_parent()
            ranks = int(os.environ["WORLD_SIZE"])
            device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
            layout = join(1, device, ranks)
            return on_rank(lambda: _evaluate(given, layout))
        ranks, _, device = choose(given.devices, 1, given.device, given.devices)
        if ranks == 1:
            return _evaluate(given, Layout(device=torch.device(device)))
        words = sys.argv[1:] if arguments is None else arguments
        return launch(ranks, "model.evaluate", lambda: [*words, "--device", device])
    raise AssertionError("unreachable: one_line_errors exits")


if __name__ == "__main__":
    sys.exit(main())
