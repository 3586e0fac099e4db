"""Whole pictures at several scales: against Pillow, on any number of ranks, with bad samples."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import reseal, run_here
from damages import flip_bit, spoil
from PIL import Image

from pipeline import InputError, ShardSet, WholeBatch, WholePictures
from pipeline.colour import read_colour_stats
from pipeline.whole_pictures import plain_whole
from tools import compute_pca, make_shards

SIDES = [(64, 64), (97, 64), (64, 150), (65, 66), (81, 200), (300, 64), (64, 64)]  # width, height of the source's pictures, of 64 in the shards
SCALES = (40, 64, 101)


@pytest.fixture(scope="module")
def whole_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of whole pictures of many aspects, drawn smoothly, as photographs are."""
    root, random = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    for split in ("train", "val"):
        for label in range(2):
            (root / "source" / split / f"class {label}").mkdir(parents=True)
            for number, side in enumerate(SIDES):
                coarse = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
                coarse.resize(side, Image.Resampling.BICUBIC).save(root / "source" / split / f"class {label}" / f"{number}.png")
    words = ("--source", root / "source", "--out", root / "shards", "--size", 64, "--resize", "shorter", "--shard-size", 6, "--workers", 1)
    for ran in (run_here(make_shards.main, *words), run_here(compute_pca.main, "--shards", root / "shards", "--workers", 1)):
        assert ran.returncode == 0, ran.stderr
    return root / "shards"


@pytest.fixture(scope="module", params=["square", "whole"])
def any_shards(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue({"square": "made_shards", "whole": "whole_shards"}[request.param])
    return found


def rows(batches: list[WholeBatch]) -> list[tuple[int, int, list[torch.Tensor]]]:
    """(id, label, the picture at each scale) of every row."""
    found: list[tuple[int, int, list[torch.Tensor]]] = []
    for batch in batches:
        found += zip(batch.ids.tolist(), batch.labels.tolist(), map(list, zip(*batch.pictures, strict=True)), strict=True)
    return found


def test_pillow_gives_the_same_within_a_grey_level(any_shards: Path) -> None:
    """Every picture once, in stored order, whole, less the mean colour."""
    shards = ShardSet(any_shards, "val")
    scales = SCALES if shards.manifest.settings.size == 64 else (50, 130, 256, 300)
    loader = WholePictures(any_shards, "val", scales, 5, threads=2)
    statistics = read_colour_stats(any_shards, shards.digest, shards.manifest.settings.size).statistics
    mean = 255 * np.array(statistics.mean, np.float32).reshape(3, 1, 1)
    batches = list(loader)
    assert [len(batch.ids) for batch in batches] == [5] * (len(shards) // 5) + [len(shards) % 5] * (len(shards) % 5 > 0)
    assert len(batches) == len(loader)
    found = rows(batches)
    assert [row[0] for row in found] == list(range(len(shards)))
    for sample, label, pictures in found:
        jpeg, wanted = shards.read(sample)
        assert label == wanted
        for scale, picture in zip(scales, pictures, strict=True):
            plain = plain_whole(jpeg, scale).transpose(2, 0, 1)
            assert picture.dtype == torch.float32
            assert min(picture.shape[1:]) == scale
            assert picture.shape == plain.shape
            difference = np.abs(picture.numpy() + mean - plain)
            assert difference.max() <= 1.001
            assert difference.mean() < 0.3


def test_a_picture_far_smaller_and_one_as_it_is(made_shards: Path) -> None:
    shards = ShardSet(made_shards, "val")
    for _, _, (small, same) in rows(list(WholePictures(made_shards, "val", (40, 256), 8)))[:5]:
        assert small.shape == (3, 40, 40)
        assert same.shape == (3, 256, 256)
    own = rows(list(WholePictures(made_shards, "val", (), 8)))
    mean = same.numpy() - plain_whole(shards.read(4)[0], 256).transpose(2, 0, 1)
    assert np.ptp(mean, axis=(1, 2)).max() < 1e-4  # nothing but the mean colour is taken from it
    assert torch.equal(own[4][2][0], same)


def test_the_longer_side_is_rounded(whole_shards: Path) -> None:
    shapes = {tuple(picture.shape[1:]) for _, _, pictures in rows(list(WholePictures(whole_shards, "val", (40,), 4))) for picture in pictures}
    assert shapes == {(40, 40), (40, 61), (94, 40), (41, 40), (99, 40), (40, 188)}


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_share_the_pictures(made_shards: Path, world: int) -> None:
    """20 pictures, 6 at a time: the last batch has none for some of five."""
    alone = rows(list(WholePictures(made_shards, "val", (64,), 6)))
    parts = [list(WholePictures(made_shards, "val", (64,), 6, rank=rank, world=world)) for rank in range(world)]
    assert {len(part) for part in parts} == {4}
    together = sorted((row for part in parts for row in rows(part)), key=lambda row: row[0])
    assert [row[:2] for row in together] == [row[:2] for row in alone]
    assert all(torch.equal(one[2][0], other[2][0]) for one, other in zip(together, alone, strict=True))


@pytest.mark.parametrize("damage", [spoil, flip_bit])
def test_a_bad_picture_is_named_or_not_counted(shards: Path, made_shards: Path, damage: Any) -> None:
    """spoil: only the decoder finds it; flip_bit: reading does. Two of one batch, and the last of the split."""
    bad = [8, 9, 19]
    damage(shards, "val", *bad)
    stops = WholePictures(shards, "val", (64,), 6)
    path, key, offset = stops.shards.place(8)
    for _ in range(2):
        with pytest.raises(InputError, match=f"{path}: sample {key} at offset {offset}: .*; .*again"):
            list(stops)
    sound = rows(list(WholePictures(made_shards, "val", (64,), 6)))
    skips = WholePictures(shards, "val", (64,), 6, on_bad_sample="skip")
    for _ in range(2):
        for row, plain in zip(rows(list(skips)), sound, strict=True):
            assert row[:2] == (plain[0], -1 if plain[0] in bad else plain[1])
            assert plain[0] in bad or torch.equal(row[2][0], plain[2][0])
        assert sorted((one.id, one.replaced_by) for one in skips.skipped) == [(sample, None) for sample in bad]
    assert {(one.shard, one.key, one.offset) for one in skips.skipped} >= {(path.name, key, offset)}


def test_shards_at_a_url(whole_shards: Path, tmp_path: Path) -> None:
    near = rows(list(WholePictures(whole_shards, "val", (48,), 4)))
    far = rows(list(WholePictures(f"file://{whole_shards}", "val", (48,), 4, local=tmp_path, local_gb=0.1)))
    assert [row[:2] for row in far] == [row[:2] for row in near]
    assert all(torch.equal(one[2][0], other[2][0]) for one, other in zip(far, near, strict=True))


def test_an_iteration_left_in_the_middle(made_shards: Path) -> None:
    loader = WholePictures(made_shards, "val", (48,), 3)
    begun = iter(loader)
    assert next(begun).ids.tolist() == [0, 1, 2]
    with pytest.raises(AssertionError, match="drop the iterator"):
        next(iter(loader))
    begun.close()  # type: ignore[attr-defined]
    assert [batch.ids[0].item() for batch in loader] == [0, 3, 6, 9, 12, 15, 18]


def test_what_cannot_be_asked_for(made_shards: Path, shards: Path) -> None:
    for scales in ((15,), (256, 2049), (-1,)):
        with pytest.raises(InputError, match="scales must be shorter sides of 16 to 2048 pixels, not"):
            WholePictures(made_shards, "val", scales, 4)
    with pytest.raises(InputError, match="batch must be at least 1"):
        WholePictures(made_shards, "val", (64,), 0)
    (shards / "pca.json").unlink()
    with pytest.raises(InputError, match="compute_pca"):
        WholePictures(shards, "val", (64,), 4)


def test_pictures_of_another_size_are_bad_ones(whole_shards: Path, tmp_path: Path) -> None:
    """A header that says another shorter side than the manifest is found before a decoder gives it memory."""
    copy = Path(shutil.copytree(whole_shards, tmp_path / "copy"))
    small = ShardSet(copy, "val")
    jpeg, _ = small.read(0)
    frame = bytes(jpeg).index(b"\xff\xc0")
    large = bytes(jpeg[: frame + 5]) + b"\xf0\x00\xf0\x00" + bytes(jpeg[frame + 9 :])
    reseal(copy, small.shards[0].name, lambda found: found.__setitem__(0, (found[0][0], large, found[0][2])))
    with pytest.raises(InputError, match="its JPEG header says 61440 x 61440 pixels"):
        list(WholePictures(copy, "val", (64,), 4))
