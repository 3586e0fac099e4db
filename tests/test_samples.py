"""Which sample comes at a position when some are bad, and what is listed of it."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import reseal
from damages import flip_bit
from plain_loader import PlainLoader

from pipeline.errors import BadSample, InputError
from pipeline.samples import MOST_IN_A_ROW, NOT_COUNTED, Samples
from pipeline.shards import ShardSet


@pytest.fixture(scope="module")
def plain(made_shards: Path) -> PlainLoader:
    return PlainLoader(made_shards, "train")


def samples_of(shards: Path, order: list[int], on_bad: Any = "skip", replace: bool = True, epoch: int = 0) -> Samples:
    samples = Samples(ShardSet(shards, "train"), on_bad, replace)
    samples.begin(np.array(order), epoch)
    return samples


def place(shards: Path, sample: int) -> tuple[str, str, int]:
    path, key, offset = ShardSet(shards, "train").place(sample)
    return path.name, key, offset


def settled(samples: Samples, position: int) -> tuple[int, int]:
    """Id and label at a position, its picture decoded."""
    source, _, label = samples.read(position)
    samples.settle(position, source)
    return source, label


def test_a_good_sample_is_itself_and_nothing_is_listed(shards: Path, plain: PlainLoader) -> None:
    samples = samples_of(shards, [5, 3, 9])
    assert [settled(samples, position) for position in range(3)] == [(i, plain.labels[i]) for i in (5, 3, 9)]
    assert samples.skipped == []
    assert not samples.known_bad(np.array([5, 3, 9])).any()


def test_the_sample_of_the_next_position_replaces_a_bad_one_and_itself_stays(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3)
    samples = samples_of(shards, [5, 3, 9, 11], epoch=7)
    assert [settled(samples, position)[0] for position in range(4)] == [5, 9, 9, 11]
    assert settled(samples, 1) == (9, plain.labels[9])
    (only,) = samples.skipped
    assert astuple(only) == ("train", 3, *place(shards, 3), only.reason, 7, 9)
    assert "CRC-32C" in only.reason
    assert samples.known_bad(np.array([5, 3, 9])).tolist() == [False, True, False]


def test_a_run_of_bad_ones_and_the_end_of_the_epoch(shards: Path, plain: PlainLoader) -> None:
    """The first good one behind a run replaces all of it; behind the last position comes the first."""
    flip_bit(shards, "train", 3, 9, 40, 41)
    samples = samples_of(shards, [40, 5, 3, 9, 11, 41])
    assert [settled(samples, position)[0] for position in range(6)] == [5, 5, 11, 11, 11, 5]
    assert [(one.id, one.replaced_by) for one in samples.skipped] == [(40, 5), (3, 11), (9, 11), (41, 5)]


def test_what_replaces_does_not_depend_on_what_was_read_before(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3, 9, 41)
    order, found = [41, 5, 3, 9, 11], {}
    for first in range(5):
        samples = samples_of(shards, order)
        found[first] = {position: settled(samples, position) for position in [(first + k) % 5 for k in (0, 3, 1, 4, 2)]}
    assert all(one == found[0] for one in found.values())


def test_a_picture_is_listed_once_and_again_replaced_in_later_epochs(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3)
    samples = samples_of(shards, [5, 3, 9])
    settled(samples, 1)
    settled(samples, 1)
    samples.begin(np.array([3, 11]), 1)
    assert settled(samples, 0)[0] == 11
    assert [(one.id, one.epoch, one.replaced_by) for one in samples.skipped] == [(3, 0, 9)]


def test_only_what_had_to_be_used_is_listed(shards: Path, plain: PlainLoader) -> None:
    """A bad sample that was only looked at as a replacement is listed when its own turn comes."""
    flip_bit(shards, "train", 3, 9)
    samples = samples_of(shards, [3, 9, 11])
    settled(samples, 0)
    assert [one.id for one in samples.skipped] == [3]
    settled(samples, 1)
    assert [one.id for one in samples.skipped] == [3, 9]


def test_a_replacement_that_cannot_be_decoded_is_never_named_as_one(shards: Path, plain: PlainLoader) -> None:
    """The decoder speaks late: by then the replacement has been read, and other positions with it."""
    flip_bit(shards, "train", 3)
    samples = samples_of(shards, [3, 9, 11])
    assert samples.read(0)[0] == 9
    samples.reject(9, "no picture")
    assert [settled(samples, position)[0] for position in range(3)] == [11, 11, 11]
    assert [(one.id, one.replaced_by) for one in samples.skipped] == [(3, 11), (9, 11)]
    assert samples.skipped[1].reason == "it cannot be decoded (no picture)"
    assert (samples.skipped[1].shard, samples.skipped[1].key, samples.skipped[1].offset) == place(shards, 9)


def test_in_validation_it_is_not_counted_and_has_another_ones_picture(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3, 9)
    samples = samples_of(shards, [5, 3, 9, 11], replace=False)
    jpegs = {i: ShardSet(shards, "train").read(i)[0].tobytes() for i in (5, 11)}
    for position, (source, label) in enumerate([(5, plain.labels[5]), (11, NOT_COUNTED), (11, NOT_COUNTED), (11, plain.labels[11])]):
        found, jpeg, counted = samples.read(position)
        samples.settle(position, found)
        assert (found, jpeg.tobytes(), counted) == (source, jpegs[source], label)
    assert [(one.id, one.replaced_by) for one in samples.skipped] == [(3, None), (9, None)]


def test_stop_names_the_sample(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3)
    samples, (name, key, offset) = samples_of(shards, [5, 3, 9], "stop"), place(shards, 3)
    samples.read(0)
    for _ in range(2):  # and again, when it is asked for again
        with pytest.raises(BadSample) as caught:
            samples.read(1)
        assert str(caught.value).startswith(f"{shards / name}: sample {key} at offset {offset}: the bytes of {key}.jpg do not have the CRC-32C")
        assert (caught.value.shard.name, caught.value.key, caught.value.offset) == (name, key, offset)
    with pytest.raises(BadSample, match=rf"sample {place(shards, 9)[1]} at offset {place(shards, 9)[2]}: it cannot be decoded \(no picture\)"):
        samples.reject(9, "no picture")
    assert samples.skipped == []


def one_line(error: InputError) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_no_good_sample_at_all(shards: Path, plain: PlainLoader) -> None:
    flip_bit(shards, "train", 3, 9, 11)
    samples = samples_of(shards, [3, 9, 11], epoch=4)
    with pytest.raises(InputError) as caught:
        samples.read(1)
    name, key, offset = place(shards, 9)
    assert one_line(caught.value).startswith(f"{shards / name}: sample {key} at offset {offset}: ")
    assert "neither it nor the 2 samples that come after it in epoch 5 can be used" in str(caught.value)


@pytest.mark.parametrize("good", [MOST_IN_A_ROW - 1, MOST_IN_A_ROW])
def test_too_many_in_a_row_are_no_bad_sample_but_a_bad_disk(shards: Path, good: int) -> None:
    """A shard of 120 samples, of which only the one at position `good` is whole."""
    name = "train-000000.tar"

    def many(samples: list[tuple[str, bytes, int]]) -> None:
        samples[:] = [(f"n01_{number}", samples[0][1], 0) for number in range(120)]

    reseal(shards, name, many)
    flip_bit(shards, "train", *(number for number in range(120) if number != good))
    samples = samples_of(shards, list(range(120)))
    if good < MOST_IN_A_ROW:
        assert samples.read(0)[0] == good
        return
    with pytest.raises(InputError) as caught:
        samples.read(0)
    assert one_line(caught.value).startswith(f"{shards / name}: sample n01_0 at offset 512: ")
    assert f"neither it nor the {MOST_IN_A_ROW - 1} samples" in str(caught.value)
    assert "bad disk" in str(caught.value)
    assert samples.read(1)[0] == good
