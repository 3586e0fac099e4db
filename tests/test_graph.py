"""DALI against the plain form, pixel by pixel, and the distributions that its graph must keep."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.augment import Augmentation, plain_batch, ten_views
from pipeline.colour import read_colour_stats
from pipeline.draws import Draws, draw
from pipeline.graph import Decoder, Fed, Out
from pipeline.shards import ShardSet

PAPER = Augmentation()
PROGRAM = Augmentation(crop=224, mean_window="centre", colour="stddev", divisor=1.1)
# DALI and Pillow decode to the same bytes, and sum in the same order; dividing, DALI multiplies by a rounded 1 / 1.1.
BOUND = {"paper": 0.0, "program": 1e-4}
CPU = torch.device("cpu")


def decoder(out: Out, augmentation: Augmentation, mean: np.ndarray, batch: int, prefetch: int = 2) -> Decoder:
    return Decoder(out, augmentation=augmentation, mean_image=mean, batch=batch, threads=2, device=CPU, prefetch=prefetch)


def once(fed: Fed, out: Out, augmentation: Augmentation, mean: np.ndarray) -> np.ndarray:
    one = decoder(out, augmentation, mean, len(fed.jpegs))
    one.schedule(fed)
    return one.take().numpy()


@pytest.fixture(scope="module")
def material(made_shards: Path) -> tuple[list[np.ndarray], np.ndarray, object]:
    shards = ShardSet(made_shards, "train")
    stats = read_colour_stats(made_shards, shards.digest, 256)
    return [shards.read(i)[0] for i in range(len(shards))], stats.mean_image, stats


@pytest.mark.parametrize(("name", "augmentation"), [("paper", PAPER), ("program", PROGRAM)])
def test_equals_the_plain_form(material: tuple, name: str, augmentation: Augmentation) -> None:
    jpegs, mean, stats = material
    draws = draw(1, 2, np.arange(len(jpegs)), 256 - augmentation.crop + 1)
    assert draws.flip.any()
    assert not draws.flip.all()
    shift = stats.shift(draws.normals, augmentation.colour, 0.1)
    windows, pictures = plain_batch(jpegs, draws, shift, mean, augmentation)
    fed = Fed(jpegs, draws, shift)
    cut = once(fed, "windows", augmentation, mean)
    np.testing.assert_array_equal(np.where(draws.flip[:, None, None, None], cut[:, :, ::-1], cut), windows)
    assert np.abs(once(fed, "float32", augmentation, mean) - pictures).max() <= BOUND[name]
    whole = once(fed, "pictures", augmentation, mean)
    np.testing.assert_array_equal(whole[5, draws.y[5] :, draws.x[5] :][: augmentation.crop, : augmentation.crop], cut[5])


@pytest.mark.parametrize("crop", [227, 224, 256])
def test_every_offset_comes_back_exactly(material: tuple, crop: int) -> None:
    """The trap of DALI's default: a uniform position halves the two edge offsets. Each integer offset is fed, and found."""
    jpegs, mean, _ = material
    last = 256 - crop
    offsets = np.arange(last + 1)
    draws = Draws(offsets, offsets[::-1].copy(), np.zeros(last + 1, bool), np.zeros((last + 1, 3)))
    same, no_shift = [jpegs[0]] * (last + 1), np.zeros((last + 1, 3), np.float32)
    augmentation = Augmentation(crop=crop)
    windows, _ = plain_batch(same, draws, no_shift, mean, augmentation)
    np.testing.assert_array_equal(once(Fed(same, draws, no_shift), "windows", augmentation, mean), windows)


def test_ten_views_are_the_papers() -> None:
    assert ten_views(256, 224)[:5] == [(0, 0, False), (0, 32, False), (32, 0, False), (32, 32, False), (16, 16, False)]
    assert [(y, x) for y, x, mirrored in ten_views(256, 227) if mirrored] == [(0, 0), (0, 29), (29, 0), (29, 29), (14, 14)]


@pytest.mark.parametrize("prefetch", [1, 3])
def test_a_bad_picture_costs_its_own_batch_and_no_other(material: tuple, prefetch: int) -> None:
    """Batches of any size, more of them under way than DALI prefetches, one of which cannot be decoded."""
    jpegs, mean, _ = material
    one = decoder("pictures", PAPER, mean, batch=8, prefetch=prefetch)
    bad = np.frombuffer(b"GIF89a" + jpegs[3].tobytes()[6:], np.uint8)
    batches = [jpegs[:8], jpegs[8:9], [*jpegs[9:12], bad], jpegs[12:18], jpegs[18:26]]

    def fed(some: list[np.ndarray]) -> Fed:
        return Fed(some, draw(0, 0, np.arange(len(some)), 30), np.zeros((len(some), 3), np.float32))

    for batch in batches:
        one.schedule(fed(batch))
    for number, batch in enumerate(batches):
        if number == 2:
            with pytest.raises(RuntimeError):
                one.take()
        else:
            np.testing.assert_array_equal(one.take().numpy(), once(fed(batch), "pictures", PAPER, mean))
    one.schedule(fed(batches[2]))
    one.schedule(fed(batches[0]))
    one.drain()  # forgets both, the bad one too
    one.schedule(fed(batches[1]))
    np.testing.assert_array_equal(one.take().numpy(), once(fed(batches[1]), "pictures", PAPER, mean))
