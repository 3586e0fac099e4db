"""The table of bytes exchanged, for the paper's net; that it is what ranks really send, tests/test_layouts.py counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from model.columns import Columns
from model.design import Design
from model.hybrid import Hybrid
from model.layout import Layout
from model.traffic import Row, exchanged, table, traffic

PARAMETERS, OF_THEM_CONVOLUTIONS = 60_965_224, 2_334_080  # shared/paper.md


def test_one_device_sends_nothing() -> None:
    assert traffic(Design(), 1000, 128, columns=1, replicas=1) == []
    assert traffic(Design(), 1000, 128, columns=1, replicas=1, hybrid=True) == []
    assert table(Layout(), Design(), 1000, 128) == ["  nothing is exchanged between devices"]


@pytest.mark.parametrize("element", [2, 4])
def test_two_columns_of_the_paper(element: int) -> None:
    """Each sends its half of what conv3 and the fully connected layers read: 13 x 13 x 128, 6 x 6 x 128, 2048 twice; of 1000 logits 500."""
    sizes = {"conv3": 21_632, "fc6": 4_608, "fc7": 2_048, "fc8": 2_048}
    expected = [Row(layer, 128 * size * element, 128 * size * element) for layer, size in sizes.items()]
    assert traffic(Design(), 1000, 128, 2, 1, element=element) == [*expected, Row("logits", 128 * 500 * element, 0)]


def test_what_a_picture_costs_by_how_often_columns_exchange() -> None:
    """Without ranks; between conv1 and conv2 27 x 27 x 48 values, before conv4 and conv5 13 x 13 x 192."""
    whole, never, every = Design(), Design(reads_both=("fc8",)), Design(reads_both=("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"))
    assert exchanged(whole, 1000) == (123_344, 121_344)
    assert exchanged(never, 1000) == ((2_048 + 500) * 4, 2_048 * 4)
    assert exchanged(every, 1000, element=2) == tuple(half + 2 * (27 * 27 * 48 + 2 * 13 * 13 * 192) for half in (61_672, 60_672))
    assert exchanged(Design(columns=1), 1000) == (0, 0)
    rows = traffic(whole, 1000, 128, 2, 1)
    assert (sum(row.forward for row in rows), sum(row.backward for row in rows)) == (128 * 123_344, 128 * 121_344)


def test_replicas_send_gradients() -> None:
    assert traffic(Design(), 1000, 128, 1, 4) == [Row("gradients", 0, 2 * 3 * PARAMETERS * 4 // 4)]
    one, two = (traffic(Design(), 1000, 128, 2, replicas) for replicas in (1, 2))
    assert [(2 * row.forward, 2 * row.backward) for row in two[:-1]] == [(row.forward, row.backward) for row in one]
    assert two[-1] == Row("gradients", 0, PARAMETERS // 2 * 4)


def test_the_hybrid_sends_maps_instead_of_the_large_gradients() -> None:
    rows = {row.layer: row for row in traffic(Design(), 1000, 128, 1, 4, hybrid=True)}
    assert rows["gradients"] == Row("gradients", 0, 2 * 3 * OF_THEM_CONVOLUTIONS * 4 // 4)
    assert rows["labels"] == Row("labels", 3 * 32 * 8, 0)
    assert rows["fc6"] == Row("fc6", 3 * 32 * 9216 * 4, 3 * 32 * 9216 * 4)
    for layer in ("fc7", "fc8"):
        assert rows[layer] == Row(layer, 3 * 128 * 1024 * 4, 3 * 128 * 1024 * 4)
    assert rows["logits"] == Row("logits", 3 * 128 * 250 * 4, 0)
    filled = {row.layer: row for row in traffic(Design(), 1000, 129, 1, 3, hybrid=True)}
    assert filled["logits"] == Row("logits", 2 * 129 * 334 * 4, 0)  # the last part is of 332


def test_the_table_is_per_picture() -> None:
    group: Any = object()
    pair = table(Layout(world=2, columns=Columns(0, group)), Design(), 1000, 128)
    assert pair[2].split() == ["conv3", "86,528", "86,528", "22.15"]
    assert pair[-1].split() == ["all", "123,344", "121,344", "31.32"]
    on_gpus = table(Layout(world=2, columns=Columns(0, group), device=torch.device("cuda", 0)), Design(), 1000, 128)
    assert on_gpus[2].split() == ["conv3", "43,264", "43,264", "11.08"]
    assert "16 bits a value" in on_gpus[0]
    hybrid = table(Layout(world=8, data_count=8, columns=Hybrid(0, group)), Design(), 1000, 128)
    assert [line.split()[0] for line in hybrid[2:]] == ["labels", "fc6", "fc7", "fc8", "logits", "gradients", "all"]
