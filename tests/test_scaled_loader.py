"""Training pictures brought to a scale drawn for each (VGG): DALI against the plain form, ranks, resume, bad samples, statistics."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import on_ranks, one_line, run_here
from damages import change_pictures, spoil
from PIL import Image

from pipeline import Augmentation, ImageLoader, InputError, inspect, mean_image
from pipeline.augment import mean_for, plain_batch
from pipeline.cache import CacheSettings
from pipeline.colour import read_colour_stats
from pipeline.draws import CENTRE, fixed
from pipeline.graph import Decoder, Fed
from pipeline.pixels_gpu import GpuPixels
from pipeline.scaled import offsets, plain_window
from pipeline.shards import ShardSet
from tools import check_shards, compute_pca, make_shards, show_batch

SIDES = [(64, 64), (97, 64), (64, 150), (65, 66), (81, 200), (300, 64), (64, 83), (130, 64)]  # width, height of the source's pictures
SMALL = Augmentation(crop=40, mean_window="channel", scale=(40, 90))


@pytest.fixture(scope="module")
def whole_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of whole pictures of many aspects, shorter side 64, some with hard edges and some smooth, with their colour statistics."""
    root, random = tmp_path_factory.mktemp("whole"), np.random.default_rng(0)
    for split, many in (("train", 3), ("val", 1)):
        for label in range(many):
            (root / "source" / split / f"class {label}").mkdir(parents=True)
            for number, (width, height) in enumerate(SIDES):
                coarse = Image.fromarray(random.integers(0, 256, (height // 7, width // 7, 3), np.uint8))
                kind = Image.Resampling.NEAREST if number % 2 else Image.Resampling.BICUBIC
                coarse.resize((width, height), kind).save(root / "source" / split / f"class {label}" / f"{number}.png")
    (root / "source" / "val" / "class 1").mkdir()
    (root / "source" / "val" / "class 2").mkdir()
    words = ("--source", root / "source", "--out", root / "shards", "--size", 64, "--resize", "shorter", "--shard-size", 6, "--workers", 1)
    for ran in (run_here(make_shards.main, *words), run_here(compute_pca.main, "--shards", root / "shards", "--workers", 1, "--decode")):
        assert ran.returncode == 0, ran.stderr
    return root / "shards"


@pytest.fixture(params=["squares", "whole pictures"])
def any_shards(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue({"squares": "made_shards", "whole pictures": "whole_shards"}[request.param])
    return found


@pytest.fixture
def damaged(whole_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(whole_shards, tmp_path / "damaged"))


def loader(shards: Path, split: Any = "train", **options: Any) -> ImageLoader:
    return ImageLoader(shards, split, **{"batch": 6, "seed": 3, "threads": 1, "augmentation": SMALL, **options})


def decoded(jpeg: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def mean_of(shards: Path) -> np.ndarray:
    """(3, 1, 1) float32 grey levels."""
    one = ShardSet(shards, "train")
    statistics = read_colour_stats(shards, one.digest, one.manifest.settings.size).statistics
    return (255 * np.array(statistics.mean)).astype(np.float32).reshape(3, 1, 1)


def taken(batches: Any) -> list[tuple[list[int], torch.Tensor]]:
    return [(batch.ids.tolist(), batch.images.clone()) for batch in batches]


def same(found: list[tuple[list[int], torch.Tensor]], wanted: list[tuple[list[int], torch.Tensor]]) -> None:
    for (ids, images), (wanted_ids, wanted_images) in zip(found, wanted, strict=True):
        assert ids == wanted_ids
        assert torch.equal(images, wanted_images)


def test_dali_equals_the_plain_form(any_shards: Path) -> None:
    """To a grey level, which is how DALI and NumPy round; at the edges, too, where windows lie of pictures that are just as large."""
    shards = ShardSet(any_shards, "train")
    stats = read_colour_stats(any_shards, shards.digest, shards.manifest.settings.size)
    crop = shards.manifest.settings.size * 5 // 8
    a = replace(SMALL, crop=crop, scale=(crop, 2 * crop + 10), sigma=0.5)
    for epoch in range(2):
        (batch,), (eights,) = (list(loader(any_shards, augmentation=a, batch=24, epoch=epoch, out=out))[:1] for out in ("float32", "uint8"))
        jpegs = [shards.read(sample)[0] for sample in batch.ids.tolist()]
        windows, finished = plain_batch(jpegs, batch.draws, batch.shift, mean_for(a, stats), a)
        difference = np.abs(eights.images.numpy().astype(int) - windows.transpose(0, 3, 1, 2).astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01
        assert np.abs(batch.images.numpy() - finished).max() <= 1.001
        alone = Decoder("float32", augmentation=a, mean_image=mean_for(a, stats), batch=24, threads=1, device=torch.device("cpu"))
        alone.schedule(Fed(jpegs, batch.draws, batch.shift))
        assert np.abs(alone.take().numpy() - batch.images.numpy()).max() < 1e-4  # as on a GPU, where DALI does all
        exact = eights.images.numpy().astype(np.float32) - mean_of(any_shards) + batch.shift[:, :, None, None]
        assert np.array_equal(batch.images.numpy(), exact)


def test_torchs_form_for_gpus_gives_the_same(whole_shards: Path) -> None:
    mean = mean_image(ShardSet(whole_shards, "train"), SMALL)
    for views, split in (("train", "train"), ("ten", "val")):
        one = loader(whole_shards, split, views=views)
        own = [batch.images.clone() for batch in one]
        one._make_pixels = lambda a, place: GpuPixels(a, mean, "windows", place)  # type: ignore[method-assign,assignment]
        one._build()
        one._finished, one._producer.finished = False, False  # alone on a GPU DALI would have finished them
        one.load_state_dict({**one.state_dict(), "epoch": 0})
        for batch, images in zip(one, own, strict=True):
            assert torch.equal(batch.images, images)


def test_at_their_own_scale_pixels_are_those_of_the_picture(any_shards: Path) -> None:
    size = ShardSet(any_shards, "train").manifest.settings.size
    own = loader(any_shards, augmentation=replace(SMALL, scale=(size, size)), out="uint8", batch=24)
    (batch, *_) = own
    jpegs = [own.shards.read(sample)[0] for sample in batch.ids.tolist()]
    pictures = [decoded(jpeg) for jpeg in jpegs]
    places = offsets(np.array([picture.shape[:2] for picture in pictures]), batch.draws, 40)
    for image, picture, (y, x), flip in zip(batch.images.numpy(), pictures, places, batch.draws.flip, strict=True):
        assert np.array_equal(image.transpose(1, 2, 0), picture[y : y + 40, x : x + 40][:, :: -1 if flip else 1])


def test_centre_and_ten_views(any_shards: Path) -> None:
    """At the middle of the scales; the ten of the central square of it."""
    centre, ten = (next(iter(loader(any_shards, "val", views=views, batch=8))) for views in ("centre", "ten"))
    shards = ShardSet(any_shards, "val")
    mean = mean_image(shards, SMALL)
    assert mean.shape == (65, 65, 3)
    for row, sample in enumerate(range(8)):
        picture = decoded(shards.read(sample)[0])
        square = plain_window(picture, fixed(1, CENTRE, CENTRE, 65), 65).astype(np.float32) - mean
        window = plain_window(picture, fixed(1, CENTRE, CENTRE, 65), 40).astype(np.float32) - mean[:40, :40]
        assert np.abs(centre.images[row].numpy().transpose(1, 2, 0) - window).max() <= 1.001
        places = [(0, 0), (0, 25), (25, 0), (25, 25), (12, 12)]
        for view, (y, x) in enumerate(places):
            cut = square[y : y + 40, x : x + 40]
            assert np.abs(ten.images[row, view].numpy().transpose(1, 2, 0) - cut).max() <= 1.001
            assert torch.equal(ten.images[row, view + 5], ten.images[row, view].flip(-1))
    assert ten.images.shape == (8, 10, 3, 40, 40)


def test_the_mean_colour_without_a_scale(made_shards: Path) -> None:
    same_mean = Augmentation(crop=64, colour="none")
    one, other = (next(iter(loader(made_shards, augmentation=a))) for a in (replace(same_mean, mean_window="channel"), same_mean))
    eights = next(iter(loader(made_shards, augmentation=same_mean, out="uint8")))
    assert np.array_equal(one.images.numpy(), eights.images.numpy().astype(np.float32) - mean_of(made_shards))
    assert not torch.equal(one.images, other.images)
    for cache in (CacheSettings("host"), CacheSettings("host", "yuv420")):
        assert torch.equal(next(iter(loader(made_shards, augmentation=replace(same_mean, mean_window="channel"), cache=cache))).images, one.images)


# --- the loader's promises


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_ranks_and_resume_see_what_one_rank_sees(whole_shards: Path, stop: int) -> None:
    whole = loader(whole_shards)
    stream = taken(whole) + taken(whole)
    first = loader(whole_shards)
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    resumed = [loader(whole_shards, rank=rank, world=2, prefetch=1) for rank in range(2)]
    for one in resumed:
        one.load_state_dict(first.state_dict())
    parts = [taken(one) + taken(one) for one in resumed]
    left = [(a[0] + b[0], torch.cat((a[1], b[1]))) for a, b in zip(*parts, strict=True)]
    same(left[: 8 - stop], stream[stop:])


def test_any_batch_has_the_same_pictures(whole_shards: Path) -> None:
    by_id = [dict(zip(ids, images, strict=True)) for ids, images in taken(loader(whole_shards, batch=24))]
    for ids, images in taken(loader(whole_shards, batch=4)):
        assert torch.equal(torch.stack([by_id[0][sample] for sample in ids]), images)
    other = dict(zip(*taken(loader(whole_shards, batch=24, epoch=1))[0], strict=True))
    assert not any(torch.equal(image, by_id[0][sample]) for sample, image in other.items())


def pair(rank: int, shards: str) -> list[Any]:
    group = dist.new_group([0, 1])
    kinds: list[tuple[str, dict[str, Any]]] = [("train", {}), ("train", {"out": "uint8"}), ("val", {"views": "ten"})]
    found = []
    for split, options in kinds:
        batches = loader(Path(shards), split, rank=rank, world=2, group=group, **options)
        found.append([(batch.ids.tolist(), batch.images.contiguous()) for batch in batches])
    return found


def test_a_pair_that_shares_a_batch_sees_all_of_it(whole_shards: Path, tmp_path: Path) -> None:
    alone = [taken(loader(whole_shards)), taken(loader(whole_shards, out="uint8")), taken(loader(whole_shards, "val", views="ten"))]
    for rank in on_ranks(pair, 2, tmp_path, str(whole_shards)):
        for found, wanted in zip(rank, alone, strict=True):
            same(found, wanted)


def another_header(jpeg: bytes, label: int) -> tuple[bytes, int]:
    """A header that claims one more line, and so another shorter side or another picture's data."""
    at = jpeg.index(b"\xff\xc0") + 5
    height, width = (int.from_bytes(jpeg[at + k : at + k + 2], "big") for k in (0, 2))
    return jpeg[:at] + (height + 100).to_bytes(2, "big") + (width + 100).to_bytes(2, "big") + jpeg[at + 4 :], label


def test_bad_pictures_are_named_or_replaced(damaged: Path, whole_shards: Path) -> None:
    """One whose header claims another size, and one that only the decoder finds fault with; the windows are those of the position."""
    epoch = loader(whole_shards).ids_of(0).tolist()
    bad = [epoch[1], epoch[9]]
    change_pictures(damaged, "train", bad[:1], another_header)
    spoil(damaged, "train", bad[1])
    stops = loader(damaged)
    with pytest.raises(InputError, match=f"{stops.shards.place(bad[0])[1]} .*its JPEG header says .* a shorter side of 64"):
        list(stops)
    skips = loader(damaged, on_bad_sample="skip", out="uint8")
    found = taken(skips)
    assert sorted((one.id, one.replaced_by) for one in skips.skipped) == sorted([(epoch[1], epoch[2]), (epoch[9], epoch[10])])
    sound = taken(loader(whole_shards, out="uint8"))
    for position in range(24):
        batch, row = divmod(position, 6)
        own = epoch[position] not in bad
        assert found[batch][0][row] == epoch[position if own else position + 1]
        if own:
            assert torch.equal(found[batch][1][row], sound[batch][1][row])
            continue
        draws, shift = loader(whole_shards).draws_of(np.array(epoch[position : position + 1]), np.array([position]))
        jpeg = skips.shards.read(epoch[position + 1])[0]
        window, _ = plain_batch([jpeg], draws, shift, mean_image(skips.shards, SMALL), SMALL)
        assert np.abs(found[batch][1][row].numpy().astype(int) - window[0].transpose(2, 0, 1)).max() <= 1


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no mean image": ({"augmentation": replace(SMALL, mean_window="same")}, "use mean_window: channel"),
    "cache": ({"cache": "host"}, "use cache: none"),
    "turbojpeg": ({"decoder": "turbojpeg"}, "use decoder: dali"),
    "from more to less": ({"augmentation": replace(SMALL, scale=(90, 40))}, "the least first"),
    "no number": ({"augmentation": replace(SMALL, scale=(40, 90.0))}, "whole numbers"),  # type: ignore[arg-type]
    "three": ({"augmentation": replace(SMALL, scale=(40, 50, 90))}, "two whole numbers"),  # type: ignore[arg-type]
    "vast": ({"augmentation": replace(SMALL, scale=(40, 10**6))}, "2,048 at most"),
    "below the crop": ({"augmentation": replace(SMALL, scale=(39, 90))}, "a 40 crop does not fit pictures of scale 39"),
    "no scale": ({"augmentation": replace(SMALL, scale=None)}, "give data.scale"),
    "no such mean": ({"augmentation": replace(SMALL, mean_window="pixel")}, "mean_window: channel"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_had_is_said_in_one_line(whole_shards: Path, name: str) -> None:
    options, words = WRONG[name]
    with pytest.raises(InputError, match=words) as caught:
        loader(whole_shards, **options)
    assert "\n" not in str(caught.value)


# --- what else reads such shards


def test_statistics_are_of_every_pixel(whole_shards: Path, damaged: Path) -> None:
    shards = ShardSet(whole_shards, "train")
    flat = np.concatenate([decoded(shards.read(i)[0]).reshape(-1, 3) for i in range(len(shards))]) / 255.0
    stats = read_colour_stats(whole_shards, shards.digest, 64)
    s = stats.statistics
    assert (s.images, s.pixels) == (24, len(flat))
    np.testing.assert_allclose(s.mean, flat.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(s.covariance, np.cov(flat.T, bias=True), rtol=1e-9)
    assert stats.mean_image.shape == (64, 64, 3)
    np.testing.assert_array_equal(stats.mean_image, np.broadcast_to(255 * np.array(s.mean), (64, 64, 3)).astype(np.float32))
    again = run_here(compute_pca.main, "--shards", damaged)
    assert "already" in again.stdout


def test_tools_work_on_whole_pictures(whole_shards: Path, tmp_path: Path) -> None:
    for ran in (
        run_here(check_shards.main, "--shards", whole_shards, "--workers", 1),
        run_here(inspect.main, "--shards", whole_shards, "--no-speed", "--sheet", tmp_path / "sheet.png"),
        run_here(show_batch.main, "--shards", whole_shards, "--scale", "40,90", "--crop", 40, "--out", tmp_path / "batch.png"),
    ):
        assert ran.returncode == 0, ran.stderr
    for name in ("sheet.png", "batch.png"):
        assert np.asarray(Image.open(tmp_path / name)).std() > 10
    given = ["--shards", whole_shards, "--out", tmp_path / "batch.png"]
    one_line(run_here(show_batch.main, *given, "--crop", 40), "data.scale")
    one_line(run_here(show_batch.main, *given, "--scale", "40"), "--scale", "256,512")
    one_line(run_here(show_batch.main, *given, "--scale", "40,90"), "227 crop")


def test_inspect_measures_whole_pictures(whole_shards: Path, tmp_path: Path) -> None:
    ran = run_here(inspect.main, "--shards", whole_shards, "--no-sheet", "--seconds", 0.01, "--batch", 8)
    assert ran.returncode == 0, ran.stderr
    assert "scale 64 to 64" in ran.stdout
    assert "data.scale=[64, 64]" in ran.stdout
