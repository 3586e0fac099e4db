"""What is seen of the units while it trains: right, whole on the first rank, and not a bit of the training is changed."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from conftest import on_ranks
from training import metrics, train, weights

from model import loop
from model.activations import BINS, PICTURES, Histogram, measure
from model.alexnet import AlexNet
from model.columns import Columns
from model.design import Design
from model.hybrid import Hybrid, parallel
from model.layout import Layout
from model.net import MaskDraw, whole_net
from model.sgd import PaperSGD
from model.step import PlainStep

DESIGN = Design(maps=(4, 8, 12, 12, 8), hidden=(16, 12), input=67, init_std=(0.02, *[0.1] * 7))
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")
NAMES = [f"{layer}/column{column}" for layer in LAYERS for column in (0, 1)]
Found = dict[str, tuple[Any, ...]]


def pictures(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 67, 67, generator=torch.Generator().manual_seed(1)) * 20


def plain(found: dict[str, Histogram]) -> Found:
    return {name: astuple(one) for name, one in found.items()}


def trained(layout: Layout, look: bool) -> list[torch.Tensor]:
    """The weights after three steps on this rank's pictures of a batch, looked at or not after each."""
    net = AlexNet(5, DESIGN, layout.columns)
    model, optimiser = parallel(net, layout), PaperSGD(net.parameters())
    rows = 12 // layout.data_count
    images = pictures(12)[rows * layout.data_index : rows * (layout.data_index + 1)]
    labels = layout.whole_batch_labels(torch.arange(rows) % 5)
    for step in range(3):
        PlainStep(model, optimiser)(images, labels, MaskDraw(0, step, 12, rows * layout.data_index))
        if look:
            measure(whole_net(net) if layout.hybrid else net, images, layout)
    return [parameter.detach() for parameter in net.parameters()]


def layouts(rank: int) -> dict[str, Layout]:
    everyone = dist.group.WORLD
    assert everyone is not None
    replica = {"data_index": rank, "data_count": 2, "data_group": everyone}
    return {
        "pair": Layout(rank, 2, 2, columns=Columns(rank, everyone), control_group=everyone),
        "replicas": Layout(rank, 2, 2, control_group=everyone, **replica),  # type: ignore[arg-type]
        "hybrid": Layout(rank, 2, 2, columns=Hybrid(rank, everyone), control_group=everyone, **replica),  # type: ignore[arg-type]
    }


def seen_by(rank: int) -> dict[str, tuple[Found, bool]]:
    """By layout: what is seen of the initial net, and whether training is the same bits without looking."""
    found = {}
    for name, layout in layouts(rank).items():
        net = AlexNet(5, DESIGN, layout.columns)
        same = all(torch.equal(a, b) for a, b in zip(trained(layout, look=True), trained(layout, look=False), strict=True))
        found[name] = plain(measure(whole_net(net) if layout.hybrid else net, pictures(6), layout)), same
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[Found, bool]]]:
    return on_ranks(seen_by, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("layout", ["pair", "replicas", "hybrid"])
def test_the_first_rank_sees_both_columns_of_any_layout(ranks: list[dict[str, tuple[Found, bool]]], layout: str) -> None:
    alone = measure(AlexNet(5, DESIGN), pictures(6), Layout())
    seen, _ = ranks[0][layout]
    assert sorted(seen) == sorted(alone) == sorted(NAMES)
    for name, one in alone.items():
        most, counts, values, total, squares, silent, least = seen[name]
        assert least == one.least == 0
        assert (values, silent, sum(counts)) == (one.values, one.silent, one.values)
        assert (most, total, squares) == pytest.approx((one.most, one.total, one.squares), rel=1e-5)
        # a value at the border of two parts may fall into either, as the columns sum in another order
        assert sum(abs(a - b) for a, b in zip(counts, one.counts, strict=True)) <= max(2, 0.001 * values)


@pytest.mark.parametrize("layout", ["pair", "replicas", "hybrid"])
def test_ranks_train_the_same_bits_when_looked_at(ranks: list[dict[str, tuple[Found, bool]]], layout: str) -> None:
    assert [seen[layout][1] for seen in ranks] == [True, True]


def test_a_run_is_the_same_bits_without_the_looks(finished: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what `finished` has looked at: after the first step and after each epoch."""
    monkeypatch.setattr(loop, "_look", lambda run, batch: None)
    result = train(made_shards, tmp_path / "run")
    assert result.returncode == 0, result.stderr
    mine, theirs = weights(tmp_path / "run"), weights(finished)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    shares = {f"silent_percent_{name.replace('/', '_')}" for name in NAMES}
    assert [line["step"] for line in metrics(finished) if shares <= set(line)] == [1, 6, 12]
    assert sorted(path.name for path in (finished / "kernels").iterdir()) == [f"step-{step:08d}.png" for step in (1, 6, 12)]
    assert on_board(finished / "tensorboard") == {f"activations/{name}": [1, 6, 12] for name in NAMES}
    assert on_board(tmp_path / "run" / "tensorboard") == {}


def on_board(folder: Path) -> dict[str, list[int]]:
    """Steps of each histogram as TensorBoard reads it."""
    from tensorboard.backend.event_processing.event_accumulator import HISTOGRAMS, EventAccumulator  # type: ignore[import-untyped]

    board = EventAccumulator(str(folder), {HISTOGRAMS: 0})
    board.Reload()
    return {tag: [event.step for event in board.Histograms(tag)] for tag in board.Tags()["histograms"]}


def test_the_figures_are_those_of_the_layers() -> None:
    net, images = AlexNet(5, DESIGN), pictures(PICTURES + 3)
    seen = measure(net, images, Layout())
    out = F.relu(net.conv1(images[:PICTURES]))  # no more are looked at
    for column, part in enumerate(out.chunk(2, dim=1)):
        one = seen[f"conv1/column{column}"]
        assert one.values == part.numel() == sum(one.counts)
        assert (one.most, one.total, one.squares) == pytest.approx((part.max().item(), part.sum().item(), part.square().sum().item()), rel=1e-5)
        assert one.counts == pytest.approx(part.histc(BINS, 0, one.most).tolist(), abs=3)
    assert net.training
    assert net.look is None


def test_a_layer_of_tanh_has_values_below_0() -> None:
    net, images = AlexNet(5, DESIGN.model_copy(update={"activation": "tanh"})), pictures(PICTURES)
    one, out = measure(net, images, Layout())["conv1/column1"], torch.tanh(net.conv1(images)).chunk(2, dim=1)[1]
    assert (one.least, one.most) == pytest.approx((out.min().item(), out.max().item()), rel=1e-5)
    assert one.least < 0
    assert one.counts == pytest.approx(out.histc(BINS, one.least, one.most).tolist(), abs=3)


def test_the_share_that_never_fires() -> None:
    net = AlexNet(5, DESIGN).eval()
    with torch.no_grad():
        net.conv4.weight[7:10].zero_()
        net.conv4.get_parameter("bias")[7:10] = -1  # 3 of column 1's 6 maps
        net.fc6.weight.zero_()
        net.fc6.bias.copy_(torch.tensor([1.0] * 6 + [-1.0] * 2 + [1.0] * 8))  # 2 of column 0's 8 units
    seen = measure(net, pictures(4), Layout())
    silent = {name: one.silent for name, one in seen.items() if one.silent}
    assert silent["conv4/column1"] == 0.5
    assert silent["fc6/column0"] == 0.25
    assert "conv1/column0" not in silent
    assert "fc6/column1" not in silent
    assert seen["fc6/column1"].counts == [0] * (BINS - 1) + [4 * 8]
    assert not net.training


def test_a_net_that_has_come_apart_can_be_looked_at() -> None:
    net = AlexNet(5, DESIGN)
    with torch.no_grad():
        net.conv2.weight.fill_(torch.inf)
        net.fc7.weight.fill_(torch.nan)
    seen = measure(net, pictures(2), Layout())
    for one in seen.values():
        assert sum(one.counts) == one.values
    assert seen["fc7/column0"].silent == 0  # what is no number is not silent


def test_a_silent_layer_has_a_histogram() -> None:
    net = AlexNet(5, DESIGN)
    with torch.no_grad():
        net.fc7.weight.zero_()
        net.fc7.bias.fill_(-1)
    one = measure(net, pictures(2), Layout())["fc7/column0"]
    assert (one.most, one.total, one.silent, one.counts[0]) == (1.0, 0.0, 1.0, 2 * 6)
