"""Who decodes what, and what crosses: every rank gets the rows it needs, in their order, on real processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import on_ranks

from pipeline.exchange import Exchange
from pipeline.share import Share, route

LAYOUTS = [  # world, ranks that exchange, columns, by id
    (2, 2, 2, False),
    (4, 2, 2, False),
    (4, 2, 2, True),
    (4, 4, 2, True),
    (4, 4, 1, True),
]


@pytest.mark.parametrize("count", [1, 5, 24])
@pytest.mark.parametrize(("world", "size", "columns", "by_id"), [*LAYOUTS, (3, 1, 1, False), (6, 3, 1, True)])
def test_each_row_is_decoded_once_and_reaches_whoever_needs_it(world: int, size: int, columns: int, by_id: bool, count: int) -> None:
    ids = np.random.default_rng(count).permutation(1000)[:count]
    shares = [Share(rank, world, range(rank // size * size, rank // size * size + size), columns, by_id) for rank in range(world)]
    needed = [row for rank in range(0, world, columns) for row in shares[rank].needs(rank, count)]
    assert needed == list(range(count))
    decoded = []
    for share in shares:
        rows = np.array(share.group_rows(count), dtype=np.int64)
        decoders = share.decoders(ids[rows], count)
        mine = rows[decoders == share.rank - share.group.start]
        assert len(mine) <= share.most_rows(count)
        decoded += mine.tolist()
        way = route(share, decoders, count)
        assert sum(way.send_sizes) == len(way.send)
        assert sum(way.receive_sizes) == len(way.arrival) == len(share.needs(share.rank, count))
        assert sorted(way.arrival) == list(range(len(way.arrival)))
    assert sorted(decoded) == list(range(count))


def crossed(rank: int, world: int, size: int, columns: int, by_id: bool) -> list[int]:
    groups = [dist.new_group(list(range(first, first + size))) for first in range(0, world, size)]
    share = Share(rank, world, range(rank // size * size, rank // size * size + size), columns, by_id)
    checked = []
    for count in (24, 5, 1):
        ids = np.random.default_rng(count).permutation(1000)[:count]
        rows = np.array(share.group_rows(count), dtype=np.int64)
        decoders = share.decoders(ids[rows], count)
        mine = torch.from_numpy(ids[rows][decoders == rank - share.group.start])
        windows = (mine % 251).to(torch.uint8)[:, None].expand(-1, 48).contiguous()
        arrived, labels, found = Exchange(windows, mine * 2, mine, route(share, decoders, count), groups[rank // size]).wait()
        expected = torch.from_numpy(ids[list(share.needs(rank, count))])
        assert torch.equal(found, expected)
        assert torch.equal(labels, expected * 2)
        assert torch.equal(arrived[:, :48], (expected % 251).to(torch.uint8)[:, None].expand(-1, 48))
        checked.append(len(expected))
    return checked


@pytest.mark.parametrize(("world", "size", "columns", "by_id"), [LAYOUTS[1], LAYOUTS[3]])
def test_pixels_labels_and_ids_arrive(tmp_path: Path, world: int, size: int, columns: int, by_id: bool) -> None:
    counts = on_ranks(crossed, world, tmp_path, world, size, columns, by_id)
    assert [sum(rank[step] for rank in counts[::columns]) for step in range(3)] == [24, 5, 1]
