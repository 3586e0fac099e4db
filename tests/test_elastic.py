"""Killed at any step and resumed on other ranks: the stream of ids, windows and colours is that of a run left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from pipeline import Augmentation, ImageLoader, InputError
from pipeline.order import windowed_order
from pipeline.shards import ShardSet

# Every rank's loader in one process, a step for each line on stdin; the state is on disk before a step is told of.
RUN = """
import json, sys
from pathlib import Path
from pipeline import Augmentation, ImageLoader, atomic_file

shards, state, world, options = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
ranks = [ImageLoader(shards, "train", batch=12, rank=r, world=world, threads=1, augmentation=Augmentation(crop=64), **options) for r in range(world)]
if state.exists():
    for one in ranks:
        one.load_state_dict(json.loads(state.read_text()))
print("ready", flush=True)
while True:
    for batches in zip(*ranks, strict=True):
        sys.stdin.readline()
        with atomic_file(state, "w") as file:
            json.dump(ranks[0].state_dict(), file)
        rows = []
        for b in batches:
            windows = zip(b.draws.x.tolist(), b.draws.y.tolist(), b.draws.flip.tolist(), b.shift.tolist(), strict=True)
            sums = [image.sum().item() for image in b.images]
            rows += [list(row) for row in zip(b.ids.tolist(), b.labels.tolist(), windows, sums, strict=True)]
        print(json.dumps(rows), flush=True)
"""


class Ranks:
    """A process with `world` ranks' loaders, which takes a step when it is asked to."""

    def __init__(self, shards: Path, state: Path, world: int, options: dict[str, Any]) -> None:
        command = [sys.executable, "-c", RUN, str(shards), str(state), str(world), json.dumps(options)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._line() == "ready\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def steps(self, count: int) -> list[Any]:
        assert self.process.stdin is not None
        rows = []
        for _ in range(count):
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            rows.append(json.loads(self._line()))
        return rows

    def sigkill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("options", [{"seed": 3}, {"seed": 4, "order": "windowed", "window": 2}], ids=["global", "windowed"])
def test_sigkill_anywhere_and_other_ranks_after_it_change_nothing(made_shards: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """48 samples, global batch 12: epochs of 4 steps. Killed before the first step, after it, in an epoch, at the last step of
    one, which is the border, after a resume at the border, and again at once."""
    alone = Ranks(made_shards, tmp_path / "alone", 1, options)
    expected = alone.steps(11)
    alone.sigkill()
    found, state = [], tmp_path / "state"
    for world, steps in ((1, 0), (1, 1), (2, 2), (3, 1), (4, 0), (2, 4), (1, 1), (2, 2)):
        ranks = Ranks(made_shards, state, world, options)
        found += ranks.steps(steps)
        ranks.sigkill()
    assert found == expected
    epoch_ids = [row[0] for step in found[:4] for row in step]
    assert sorted(epoch_ids) == list(range(48))


def test_windowed_reads_whole_shards_and_resumes_without_reading_what_was_consumed(made_shards: Path) -> None:
    one = ImageLoader(made_shards, "train", batch=4, seed=1, threads=1, augmentation=Augmentation(crop=64), order="windowed", window=2)
    assert one.notes[0].startswith("order: windowed, shards are read one behind the other, 4 of them at a time: 0.00 GB")
    ids = windowed_order(1, 0, one.shards.first, 2)
    brought: list[int] = []
    inner = one.shards.bring
    one.shards.bring = lambda shard, stop: (brought.append(shard), inner(shard, stop))[0]  # type: ignore[method-assign,func-returns-value]
    assert [i for batch in one for i in batch.ids.tolist()] == ids.tolist()
    assert sorted(set(brought)) == list(range(6))
    assert len(brought) <= 6 + 2
    one.epoch, one.position = 0, 36
    brought.clear()
    assert [i for batch in one for i in batch.ids.tolist()] == ids[36:].tolist()
    assert set(brought) == set((np.searchsorted(one.shards.first, ids[36:], side="right") - 1).tolist())


def test_a_windowed_state_is_refused_by_another_order(made_shards: Path) -> None:
    options: dict[str, Any] = {"batch": 4, "threads": 1, "augmentation": Augmentation(crop=64)}
    state = ImageLoader(made_shards, "train", order="windowed", window=2, **options).state_dict()
    others: list[dict[str, Any]] = [{}, {"order": "windowed", "window": 3}]
    for other in others:
        with pytest.raises(InputError, match="started with order windowed over 2 shards, not"):
            ImageLoader(made_shards, "train", **other, **options).load_state_dict(state)


def test_classes_are_mixed_to_the_end_of_a_windowed_epoch() -> None:
    """200 shards of 50 samples, each shard of 5 classes of its own: the hardest case, which make_shards never makes.

    In any 256 samples in a row of a window over 40 shards, the number of different shards is what drawing at random from 40
    gives, first and last 256 as any other.
    """
    first, window = np.arange(0, 50 * 201, 50), 40
    expected = window * (1 - (1 - 1 / window) ** 256)
    for epoch in range(5):
        shard_of = windowed_order(9, epoch, first, window) // 50
        starts = [0, 1, *range(256, 9500, 256), 10_000 - 256]
        different = np.array([len(set(shard_of[start : start + 256].tolist())) for start in starts])
        # 256 samples slide over 5 shards, so up to 45 take part
        assert different.min() >= expected - 3
        assert different.max() <= window + 256 // 50 + 2
        largest = max(np.bincount(shard_of[start : start + 256]).max() for start in starts)
        assert largest < 25  # of 256 at random from 40, 6.4 each: 25 would be 7 sigma


def test_class_mixture_of_our_shards_is_that_of_chance(made_shards: Path) -> None:
    """Samples are permuted over all shards when they are made, so any window of them has every class as often as chance says."""
    shards = ShardSet(made_shards, "train")
    labels = np.array([shards.read(i)[1] for i in range(len(shards))])
    chi = 0.0
    for epoch in range(200):
        ids = windowed_order(0, epoch, shards.first, 2)
        for part in (ids[:12], ids[-12:]):
            counts = np.bincount(labels[part], minlength=4)
            chi += ((counts - 3) ** 2 / 3).sum() / 400
    # Mean of chi-square with 3 degrees of freedom, drawn without replacement from 48: 3 * 36 / 47 = 2.3; the shards are 6 fixed draws.
    assert 1.0 < chi < 4.0
