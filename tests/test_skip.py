"""Bad samples on their way through the loader: each kind is named or replaced by the rule, and nothing else changes by a bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import on_ranks
from damages import MIXTURES, as_png, break_some, change_pictures, flip_bit, no_codes, samples_beyond, spoil
from plain_loader import SEED, PlainLoader, loader

from pipeline import CacheSettings, ImageLoader, InputError
from pipeline.errors import BadSample
from pipeline.order import order
from pipeline.shards import ShardSet

FIRST = order(SEED, 0, 48).tolist()  # sample id at every position of the first epoch; batches of 16 end at 15, 31, 47
SAMPLE = FIRST[21]


@pytest.fixture(scope="module")
def plain(made_shards: Path) -> PlainLoader:
    return PlainLoader(made_shards, "train")


@pytest.fixture(scope="module")
def plain_val(made_shards: Path) -> PlainLoader:
    return PlainLoader(made_shards, "val")


# --- kinds of damage


def zero(at: Callable[[Path, str, int], tuple[int, int]]) -> Callable[[Path], None]:
    """Zero a stretch of the tar; at: (tar, key, offset of the JPEG) -> first byte, and how many."""

    def damage_it(shards: Path) -> None:
        path, key, offset = ShardSet(shards, "train").place(SAMPLE)
        begin, count = at(path, key, offset)
        with open(path, "r+b") as file:
            file.seek(begin)
            file.write(bytes(count))

    return damage_it


def resealed(how: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda shards: change_pictures(shards, "train", [SAMPLE], lambda jpeg, label: (how(jpeg), label))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a bit": (lambda shards: flip_bit(shards, "train", SAMPLE), "CRC-32C"),
    "the label": (zero(lambda path, key, _: (path.read_bytes().index(f"{key}.cls\0".encode()) + 512, 1)), "CRC-32C"),
    "the header": (zero(lambda path, key, offset: (offset - 512, 1024)), "index and tar disagree"),
    "another class": (
        lambda shards: change_pictures(shards, "train", [SAMPLE], lambda jpeg, label: (jpeg, 4)),
        "its label is 4, but the manifest has 4 classes",
    ),
    "no codes": (resealed(no_codes), "it cannot be decoded (broken data stream when reading image file)"),
    "cut short": (resealed(lambda jpeg: jpeg[: len(jpeg) * 2 // 3]), "cut short"),
    "a PNG": (resealed(as_png), "it has no JPEG header that can be read"),
    "garbage": (resealed(lambda jpeg: np.random.default_rng(0).bytes(len(jpeg))), "it has no JPEG header that can be read"),
    "an empty JPEG": (resealed(lambda jpeg: b"\xff\xd8\xff\xd9"), "it has no JPEG header that can be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("out", ["float32", "uint8"])
def test_one_bad_sample_is_replaced_and_nothing_else_changes(shards: Path, plain: PlainLoader, kind: str, out: Any) -> None:
    damage_it, words = DAMAGES[kind]
    damage_it(shards)
    train = loader(shards, out=out)
    for epoch in range(2):
        assert plain.check(train, epoch, {SAMPLE}, out) == 48
        plain.listed(train.skipped, train.shards, 0, {SAMPLE})
    assert words in train.skipped[0].reason
    assert plain.check(loader(shards, out=out, epoch=1), 1, {SAMPLE}, out) == 48


def until_error(train: ImageLoader) -> tuple[list[Any], InputError]:
    """The batches that came before the error, and the error."""
    batches: list[Any] = []
    with pytest.raises(InputError) as caught:
        batches.extend(train)
    assert "\n" not in str(caught.value)
    return batches, caught.value


@pytest.mark.parametrize("kind", DAMAGES)
def test_stop_names_shard_key_offset_and_reason_as_often_as_it_is_asked(shards: Path, plain: PlainLoader, kind: str) -> None:
    damage_it, words = DAMAGES[kind]
    damage_it(shards)
    train = loader(shards, on_bad_sample="stop", batch=7)
    path, key, offset = train.shards.place(SAMPLE)
    for _ in range(2):
        position = train.position
        batches, error = until_error(train)
        assert isinstance(error, BadSample)
        assert str(error).startswith(f"{path}: sample {key} at offset {offset}: ")
        assert words in error.reason
        assert train.position == position + plain.check(batches, 0, set(), start=position) <= 21
    assert train.skipped == []
    train.position = 28
    assert plain.check(train, 0, set(), start=28) == 14


# --- several

CASES: dict[str, list[int]] = {  # positions of the first epoch
    "three of a batch": [17, 21, 30],
    "a run": [20, 21, 22, 23],
    "over the end of a batch": [14, 15, 16, 17],
    "a whole batch": list(range(16, 32)),
    "the last, which the first replaces": [47],
    "round the end": [0, 1, 46, 47],
    "all but one": [position for position in range(48) if position != 33],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mixture", MIXTURES)
def test_several_bad_samples(shards: Path, plain: PlainLoader, case: str, mixture: str) -> None:
    bad = [FIRST[position] for position in CASES[case]]
    break_some(shards, "train", bad, mixture)
    train = loader(shards, out="uint8")
    assert plain.check(train, 0, set(bad), "uint8") == 48
    plain.listed(train.skipped, train.shards, 0, set(bad))
    assert plain.check(train, 1, set(bad), "uint8") == 48
    assert len(train.skipped) == len(bad)


WAYS: dict[str, Any] = {
    "rgb": {"cache": CacheSettings("host")},
    "yuv420": {"cache": CacheSettings("host", "yuv420")},
    "device": {"cache": CacheSettings("device")},
    "for 20": {"cache": CacheSettings("host", "rgb", 20 * 256 * 256 * 3 / 1e9 + 1e-6)},
    "turbojpeg": {"decoder": "turbojpeg"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["over the end of a batch", "a whole batch"])
def test_with_caches_and_the_other_decoder(shards: Path, plain: PlainLoader, plain_val: PlainLoader, way: str, case: str) -> None:
    bad = [FIRST[position] for position in CASES[case]]
    break_some(shards, "train", bad, "mixed")
    break_some(shards, "val", [3, 4, 19], "mixed")
    train, val = (loader(shards, split, **WAYS[way]) for split in ("train", "val"))
    for epoch in range(3):
        assert plain.check(train, epoch, set(bad)) == 48
        assert plain_val.check(val, epoch, {3, 4, 19}) == 20
    plain.listed(train.skipped, train.shards, 0, set(bad))
    plain_val.listed(val.skipped, val.shards, 0, {3, 4, 19})


# --- the same everywhere


def together(ranks: list[ImageLoader]) -> Iterable[Any]:
    """The batches of all ranks, one behind the other."""
    for parts in zip(*ranks, strict=True):
        yield SimpleNamespace(**{name: torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "labels", "images")})


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("split", ["train", "val"])
def test_any_ranks_and_batches_replace_alike(shards: Path, plain: PlainLoader, plain_val: PlainLoader, mixture: str, split: Any) -> None:
    """Replacements are the same when they are another rank's samples, and when no bad one was seen before."""
    one, bad = (plain, [FIRST[position] for position in (5, 6, 7, 30, 31, 47)]) if split == "train" else (plain_val, [3, 4, 5, 12, 19])
    break_some(shards, split, bad, mixture)
    for world, batch in ((2, 16), (1, 12), (3, 6), (1, 1)):
        ranks = [loader(shards, split, world=world, rank=rank, batch=batch, threads=1) for rank in range(world)]
        assert one.check(together(ranks), 0, set(bad)) == len(one)
        one.listed([skipped for rank in ranks for skipped in rank.skipped], ranks[0].shards, 0, set(bad))


def pair(rank: int, shards: str) -> list[Any]:
    one = loader(Path(shards), batch=12, rank=rank, world=2, threads=1, group=dist.group.WORLD)
    batches = [(batch.ids, batch.labels, batch.images.contiguous()) for batch in one]
    return [batches, [skipped.id for skipped in one.skipped]]


def test_what_replaces_crosses_with_its_own_label_and_id(shards: Path, plain: PlainLoader, tmp_path: Path) -> None:
    """Two columns of one net: each rank decodes half of a batch, and only it knows what its bad samples were replaced by."""
    bad = [FIRST[position] for position in (3, 5, 6, 7, 30, 47)]
    break_some(shards, "train", bad, "mixed")
    results = on_ranks(pair, 2, tmp_path, str(shards))
    for batches, _ in results:
        assert plain.check([SimpleNamespace(ids=ids, labels=labels, images=images) for ids, labels, images in batches], 0, set(bad)) == 48
    assert sorted(results[0][1] + results[1][1]) == sorted(bad)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_resumed_in_the_middle_it_replaces_alike(shards: Path, plain: PlainLoader, mixture: str) -> None:
    """By a loader that has seen no bad sample yet, with other ranks; the next epoch as well."""
    bad = [FIRST[position] for position in (5, 15, 16, 17, 30, 47)]
    break_some(shards, "train", bad, mixture)
    first = loader(shards)
    batches = iter(first)
    assert plain.check([next(batches)], 0, set(bad)) == 16
    state = first.state_dict()
    assert plain.check(batches, 0, set(bad), start=16) == 32
    assert plain.check(first, 1, set(bad)) == 48
    for world, batch in ((1, 16), (2, 8)):
        ranks = [loader(shards, world=world, rank=rank, batch=batch) for rank in range(world)]
        for one in ranks:
            one.load_state_dict(state)
        assert plain.check(together(ranks), 0, set(bad), start=16) == 32
        assert plain.check(together(ranks), 1, set(bad)) == 48


def test_whether_a_picture_is_bad_does_not_depend_on_its_window(shards: Path, plain: PlainLoader) -> None:
    """A JPEG without its lower half: DALI decodes windows that lie above. Else a run that was resumed, or another rank, would
    skip other pictures than one that has met a window below."""
    change_pictures(shards, "train", range(8), lambda jpeg, label: (jpeg[: len(jpeg) // 2], label))
    for epoch in range(3):
        assert plain.check(loader(shards, epoch=epoch), epoch, set(range(8))) == 48


# --- validation


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("batch", [1, 3, 8, 20])
def test_validation_counts_each_good_picture_once(shards: Path, plain_val: PlainLoader, mixture: str, batch: int) -> None:
    bad = {4, 5, 6, 12, 19}
    break_some(shards, "val", sorted(bad), mixture)
    val = loader(shards, "val", batch=batch)
    batches = list(val)
    counted = [i for one in batches for i, label in zip(one.ids.tolist(), one.labels.tolist(), strict=True) if label >= 0]
    assert sorted(counted) == sorted(set(range(20)) - bad)
    assert plain_val.check(batches, 0, bad) == 20
    plain_val.listed(val.skipped, val.shards, 0, bad)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("cache", [CacheSettings(), CacheSettings("host", "yuv420")], ids=["none", "yuv420"])
def test_one_that_stands_in_for_two_and_is_bad_itself_takes_no_good_one_with_it(
    shards: Path, plain_val: PlainLoader, batch: int, cache: CacheSettings
) -> None:
    """4 and 5 cannot be read, and 6, whose pixels they were given, cannot be decoded: 7 is good."""
    spoil(shards, "val", 6)
    flip_bit(shards, "val", 4, 5)
    val = loader(shards, "val", batch=batch, cache=cache)
    assert plain_val.check(val, 0, {4, 5, 6}) == 20
    plain_val.listed(val.skipped, val.shards, 0, {4, 5, 6})


# --- what happens to a tar while it is read


def test_a_tar_that_is_cut_while_it_is_read(shards: Path, plain: PlainLoader) -> None:
    path, train = shards / "train-000001.tar", loader(shards, prefetch=1)
    half = path.stat().st_size // 2
    bad = samples_beyond(train.shards, path, half)
    os.truncate(path, half)
    assert 2 <= len(bad) <= 6
    assert plain.check(train, 0, bad) == 48
    plain.listed(train.skipped, train.shards, 0, bad)
    assert {one.reason for one in train.skipped} == {f"the tar ends at {half}"}


@pytest.mark.parametrize("order", ["global", "windowed"])
def test_a_tar_whose_reading_is_an_error_of_the_disk(shards: Path, plain: PlainLoader, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in its place: opening it works, and every read is an error, as of a disk."""
    monkeypatch.setattr("pipeline.samples.PAUSES", (0.01, 0.01))
    train, stopping = (loader(shards, order=order, window=2, on_bad_sample=on_bad) for on_bad in ("skip", "stop"))
    path = shards / "train-000001.tar"
    bad = samples_beyond(train.shards, path)
    path.unlink()
    path.mkdir()
    batches = list(train)
    used = [sample for batch in batches for sample in batch.ids.tolist()]
    assert len(used) == 48
    assert not bad & set(used)
    assert {one.id for one in train.skipped} == bad
    assert {one.reason for one in train.skipped} == {"Is a directory"}
    if order == "global":
        plain.check(batches, 0, bad)
    _, error = until_error(stopping)
    assert "train-000001.tar: sample n" in str(error)
    assert "Is a directory; check the disk" in str(error)


def test_a_tar_that_vanishes_is_named(shards: Path) -> None:
    for on_bad in ("stop", "skip"):
        train = loader(shards, on_bad_sample=on_bad)
        (shards / "train-000001.tar").rename(shards / "away")
        _, error = until_error(train)
        assert str(shards / "train-000001.tar") in str(error)
        (shards / "away").rename(shards / "train-000001.tar")
