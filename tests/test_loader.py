"""The loader's promises: each sample once, the same pictures on any ranks, going on at the very next image, named faults."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset
from conftest import on_ranks
from PIL import Image

from pipeline import Augmentation, ImageLoader, InputError, LoadingGivenUp
from pipeline.order import order
from pipeline.shards import ShardSet
from pipeline.tarshard import write_shard

SMALL = Augmentation(crop=64)  # the loader's logic does not depend on the crop


def loader(shards: Path, split: Any = "train", **options: Any) -> ImageLoader:
    return ImageLoader(shards, split, **{"batch": 10, "seed": 3, "threads": 1, "augmentation": SMALL, **options})


def taken(batches: Any) -> list[tuple[list[int], torch.Tensor]]:
    return [(batch.ids.tolist(), batch.images.clone()) for batch in batches]


def test_an_epoch_is_the_order_without_its_remainder(made_shards: Path) -> None:
    train = loader(made_shards)
    assert len(train) == 4  # 48 samples, batch 10
    ids = [i for batch in train for i in batch.ids.tolist()]
    assert ids == order(3, 0, 48)[:40].tolist()
    assert train.state_dict()["epoch"] == 1
    assert [i for batch in train for i in batch.ids.tolist()] == order(3, 1, 48)[:40].tolist()


def test_batches_are_what_they_say(made_shards: Path) -> None:
    shards = ShardSet(made_shards, "train")
    for batch in loader(made_shards):
        assert batch.images.shape == (10, 3, 64, 64)
        assert batch.images.dtype == torch.float32
        assert (batch.labels.dtype, batch.ids.dtype) == (torch.int64, torch.int64)
        assert batch.labels.tolist() == [shards.read(i)[1] for i in batch.ids.tolist()]


@pytest.mark.parametrize("views", ["centre", "ten"])
@pytest.mark.parametrize(("batch", "world"), [(7, 1), (20, 1), (8, 3), (9, 4), (64, 2)])
def test_validation_has_each_picture_exactly_once(made_shards: Path, views: Any, batch: int, world: int) -> None:
    found = []
    for rank in range(world):
        val = loader(made_shards, "val", views=views, batch=batch, rank=rank, world=world)
        assert len(val) == -(-20 // batch)
        batches = list(val)
        assert len(batches) == len(val)  # the same number of steps on every rank
        found += [i for b in batches for i in b.ids.tolist()]
        for b in batches:
            assert b.images.shape == ((len(b.ids), 10, 3, 64, 64) if views == "ten" else (len(b.ids), 3, 64, 64))
    assert sorted(found) == list(range(20))


def test_validation_is_validation_unless_said_otherwise(made_shards: Path) -> None:
    ids = [i for batch in ImageLoader(made_shards, "val", batch=8, threads=1, crop=64) for i in batch.ids.tolist()]
    assert ids == list(range(20))


def test_ranks_together_see_what_one_rank_sees(made_shards: Path) -> None:
    alone = taken(loader(made_shards, batch=12))
    ranks = [taken(loader(made_shards, batch=12, rank=rank, world=3)) for rank in range(3)]
    for step, (ids, images) in enumerate(alone):
        assert [i for rank in ranks for i in rank[step][0]] == ids
        torch.testing.assert_close(torch.cat([rank[step][1] for rank in ranks]), images, rtol=0, atol=0)


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("world", [1, 2])
def test_resume_goes_on_at_the_very_next_image(made_shards: Path, stop: int, world: int) -> None:
    """After any step, into another number of ranks, over the epoch's border; draws and pixels, too."""
    whole = loader(made_shards)
    stream = taken(whole) + taken(whole)
    first = loader(made_shards)
    batches = iter(first)
    for _ in range(stop):
        next(batches)
    state = first.state_dict()
    resumed = [loader(made_shards, rank=rank, world=world) for rank in range(world)]
    for one in resumed:
        one.load_state_dict(state)
        assert len(one) == 4 - stop
    parts = [(taken(one) if stop < 4 else []) + (taken(one) if one.epoch < 2 else []) for one in resumed]
    if stop == 4:  # the state lay at the border: an empty rest of the epoch, then the next
        parts = [part or taken(one) for part, one in zip(parts, resumed, strict=True)]
    for expected, *found in zip(stream[stop:], *parts, strict=False):
        assert [i for rank in found for i in rank[0]] == expected[0]
        torch.testing.assert_close(torch.cat([rank[1] for rank in found]), expected[1], rtol=0, atol=0)
    assert min(len(part) for part in parts) >= 4


@pytest.mark.parametrize("out", ["float32", "uint8"])
@pytest.mark.parametrize("views", ["train", "centre"])
def test_turbojpegs_planes_give_dalis_pixels(made_shards: Path, out: Any, views: Any) -> None:
    for other, dali in zip(loader(made_shards, out=out, views=views, decoder="turbojpeg"), loader(made_shards, out=out, views=views), strict=True):
        assert torch.equal(other.images, dali.images)
        assert other.labels.tolist() == dali.labels.tolist()


def test_a_batch_kept_is_not_overwritten(made_shards: Path) -> None:
    train = loader(made_shards, batch=4)
    kept = list(train)
    copies = [batch.images.clone() for batch in kept]
    list(train)
    for batch, copy in zip(kept, copies, strict=True):
        torch.testing.assert_close(batch.images, copy, rtol=0, atol=0)


def test_left_early_and_started_again(made_shards: Path) -> None:
    train = loader(made_shards)
    for batch in train:
        first = batch.ids.tolist()
        break
    train.position = 0
    assert next(iter(train)).ids.tolist() == first


def test_window_shared_by_32_as_in_the_authors_program(made_shards: Path) -> None:
    train = loader(made_shards, augmentation=Augmentation(crop=64, window_shared_by=32))
    draws, _ = train.draws_of(np.arange(48), np.arange(48))
    assert len(set(draws.x[:32])) == len(set(draws.y[:32])) == len(set(draws.flip[:32])) == 1
    assert (draws.x[0], draws.y[0]) != (draws.x[40], draws.y[40])
    assert len(set(draws.normals[:, 0])) == 48


def test_plain_webdataset_reads_the_same(made_shards: Path) -> None:
    shards = ShardSet(made_shards, "train")
    urls = [str(made_shards / shard.name) for shard in shards.manifest.splits["train"].shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len(found) == len(shards)
    for i, sample in enumerate(found):
        jpeg, label = shards.read(i)
        assert (sample["__key__"], sample["jpg"], int(sample["cls"])) == (shards.place(i)[1], jpeg.tobytes(), label)


def test_dalis_own_reader_reads_the_same(made_shards: Path) -> None:
    from nvidia.dali import fn, pipeline_def

    shards = ShardSet(made_shards, "train")
    paths = [made_shards / shard.name for shard in shards.manifest.splits["train"].shards]

    @pipeline_def(batch_size=len(shards), num_threads=1, device_id=None)
    def graph() -> Any:
        tars, indexes = [str(path) for path in paths], [str(path.with_suffix(".idx")) for path in paths]
        outputs: Any = fn.readers.webdataset(paths=tars, index_paths=indexes, ext=["jpg", "cls"])
        return outputs[0], outputs[1]

    jpegs, labels = graph().run()
    for i in range(len(shards)):
        jpeg, label = shards.read(i)
        np.testing.assert_array_equal(jpegs.at(i), jpeg)
        assert int(bytes(labels.at(i))) == label


# --- a pair that shares a batch


def pair(rank: int, shards: str, split: Any, views: Any, world: int) -> list[Any]:
    groups = [dist.new_group([2 * k, 2 * k + 1]) for k in range(world // 2)]
    one = loader(Path(shards), split, views=views, batch=12, rank=rank, world=world, group=groups[rank // 2])
    reads: list[int] = []
    inner = one.shards.read

    def counted(sample: int) -> tuple[np.ndarray, int]:
        reads.append(sample)
        return inner(sample)

    one.shards.read = counted  # type: ignore[method-assign]
    batches = [(b.ids.tolist(), b.labels.tolist(), b.images.contiguous()) for b in one]
    return [batches, reads]


@pytest.mark.parametrize(("split", "views", "world"), [("train", "train", 2), ("train", "train", 4), ("val", "ten", 2), ("val", "centre", 4)])
def test_a_pair_decodes_each_image_once_and_sees_all(made_shards: Path, tmp_path: Path, split: Any, views: Any, world: int) -> None:
    alone = [(b.ids.tolist(), b.labels.tolist(), b.images) for b in loader(made_shards, split, views=views, batch=12)]
    results = on_ranks(pair, world, tmp_path, str(made_shards), split, views, world)
    reads = [i for _, mine in results for i in mine]
    assert len(reads) == len(set(reads)) == sum(len(ids) for ids, _, _ in alone)
    for first, second in zip(results[0::2], results[1::2], strict=True):
        for (ids, labels, images), (ids2, labels2, images2) in zip(first[0], second[0], strict=True):
            assert (ids, labels) == (ids2, labels2)
            torch.testing.assert_close(images, images2, rtol=0, atol=0)
    for step, (ids, labels, images) in enumerate(alone):
        pairs = [result[0][step] for result in results[0::2]]
        assert ([i for p in pairs for i in p[0]], [n for p in pairs for n in p[1]]) == (ids, labels)
        torch.testing.assert_close(torch.cat([p[2] for p in pairs]), images, rtol=0, atol=0)


# --- bad shards


def refused(shards: Path, *words: str, **options: Any) -> None:
    with pytest.raises(InputError) as caught:
        list(loader(shards, **options))
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


def test_truncated_missing_or_swapped_shards_are_named_before_the_first_batch(shards: Path) -> None:
    path = shards / "train-000001.tar"
    content = path.read_bytes()
    os.truncate(path, len(content) // 2)
    refused(shards, "train-000001.tar", "samples from n", "are lost")
    path.unlink()
    refused(shards, "train-000001.tar is missing")
    path.write_bytes(content)
    index = path.with_suffix(".idx")
    kept = index.read_bytes()
    index.write_bytes((shards / "train-000002.idx").read_bytes())
    refused(shards, "train-000001.idx", "disagree")
    index.unlink()
    refused(shards, "train-000001.idx is missing")
    index.write_bytes(kept)
    manifest = shards / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace("n9", "n8", 1))
    refused(shards, "class table")
    manifest.write_text(whole[: len(whole) // 2])
    refused(shards, "manifest.json")
    manifest.unlink()
    refused(shards, "stopped before its end")


def test_flipped_bytes_and_a_tar_cut_while_reading_are_named_at_the_sample(shards: Path) -> None:
    path = shards / "train-000001.tar"
    content = bytearray(path.read_bytes())
    content[3000] ^= 16
    path.write_bytes(content)
    refused(shards, "train-000001.tar", "sample n", "CRC-32C", prefetch=1)
    train = loader(shards, batch=1, seed=1)
    stream = iter(train)
    next(stream)
    os.truncate(path, 600)
    with pytest.raises(InputError, match=r"train-000001\.tar: sample n\S+ at offset \d+: the tar ends at 600"):
        list(stream)


def test_a_picture_that_dali_cannot_decode_is_named(shards: Path) -> None:
    """Bytes that are wrong although their CRC is right: only decoding can tell, and DALI often does not say which."""
    train = ShardSet(shards, "train")
    place = shards / "train-000003.tar"
    samples = [(train.place(i)[1], train.read(i)[0].tobytes(), train.read(i)[1]) for i in range(len(train)) if train.place(i)[0] == place]
    key, jpeg, label = samples[5]
    tables = jpeg.index(b"\xff\xc4") + 5
    samples[5] = (key, jpeg[:tables] + b"\xff" * 16 + jpeg[tables + 16 :], label)
    written = write_shard(place, samples)
    manifest = shards / "manifest.json"
    old = next(s for s in train.manifest.splits["train"].shards if s.name == place.name)
    manifest.write_text(manifest.read_text().replace(old.sha256, written.sha256).replace(f'"bytes": {old.bytes}', f'"bytes": {written.bytes}'))
    digest = ShardSet(shards, "train").digest
    (shards / "pca.json").write_text((shards / "pca.json").read_text().replace(train.digest, digest))
    refused(shards, "train-000003.tar", key, "it cannot be decoded", batch=16)


def test_impossible_batches_are_refused(shards: Path) -> None:
    refused(shards, "batch 2 is smaller than the 4 ranks", batch=2, world=4)
    refused(shards, "batch 10 does not divide over 4 ranks", batch=10, world=4)
    refused(shards, "larger than the 48 samples", batch=64)
    refused(shards, "300 crop", augmentation=Augmentation(crop=300))


def test_no_statistics_says_which_command_to_run(shards: Path) -> None:
    (shards / "pca.json").unlink()
    refused(shards, "pca.json", "python tools/compute_pca.py --shards")


def test_another_shard_set_or_seed_is_refused_on_resume(made_shards: Path) -> None:
    state = loader(made_shards).state_dict()
    with pytest.raises(InputError, match="another shard set"):
        loader(made_shards).load_state_dict({**state, "digest": "0" * 64})
    with pytest.raises(InputError, match="seed"):
        loader(made_shards, seed=4).load_state_dict(state)


def test_pictures_are_rgb(made_shards: Path) -> None:
    """Decoded channels are not swapped: the loader's centre view plus the mean is Pillow's picture."""
    val = loader(made_shards, "val", views="centre", batch=20)
    batch = next(iter(val))
    mean = np.load(made_shards / "mean.npy")[96:160, 96:160]
    jpeg, _ = val.shards.read(int(batch.ids[3]))
    picture = np.asarray(Image.open(io.BytesIO(jpeg.tobytes())))[96:160, 96:160].astype(np.float32)
    np.testing.assert_allclose(batch.images[3].numpy().transpose(1, 2, 0) + mean, picture, atol=1e-3)


WRONG = {
    "views": ("foo", "views must be one of train, centre, ten, not 'foo'"),
    "out": ("float16", "out must be one of float32, uint8"),
    "decoder": ("foo", "decoder must be one of dali, turbojpeg"),
    "order": ("winowed", "order must be one of global, windowed"),
    "on_bad_sample": ("foo", "on_bad_sample must be one of stop, skip"),
    "window": (0, "window must be at least 1"),
    "prefetch": (0, "prefetch must be at least 1"),
    "threads": (-1, "threads must be at least 1"),
    "world": (0, "world must be at least 1"),
    "augmentation": (Augmentation(crop=64, mean_window="pixel"), "mean_window must be one of same, centre, channel"),  # type: ignore[arg-type]
    "crop": (0, "crop must be at least 1"),
    "rank": (1, "rank must be from 0 to 0"),
    "seed": (-1, "seed must be from 0"),
    "epoch": (-1, "epoch from 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_that_makes_no_sense_is_named(made_shards: Path, name: str) -> None:
    value, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        loader(made_shards, **{name: value})


@pytest.mark.parametrize("change", [{"position": -8}, {"position": 49}, {"position": "8"}, {"epoch": 1.5}, {"epoch": -1}, {"seed": None}])
def test_what_is_no_state_is_refused(made_shards: Path, change: dict[str, Any]) -> None:
    one = loader(made_shards)
    with pytest.raises(InputError, match="state"):
        one.load_state_dict({**one.state_dict(), **change})


def test_a_validation_batch_beyond_the_split_costs_no_more_memory(made_shards: Path) -> None:
    (batch,) = loader(made_shards, "val", views="centre", batch=10**9)
    assert sorted(batch.ids.tolist()) == list(range(20))


def test_the_wait_for_a_batch_can_be_given_up(made_shards: Path) -> None:
    """A store that has died: reading hangs until whoever waits for it gives up, and then the loader can be used again."""
    one = loader(made_shards, order="windowed", window=2)
    inner = one.shards.bring

    def dead(shard: int, stop: threading.Event) -> None:
        assert stop.wait(60), "nobody said that it should give up"

    first = next(iter(one)).ids.tolist()
    one.position, one.shards.bring = 0, dead  # type: ignore[method-assign]
    one.given_up = lambda: True
    with pytest.raises(LoadingGivenUp):
        next(iter(one))
    one.given_up, one.shards.bring = lambda: False, inner  # type: ignore[method-assign]
    assert next(iter(one)).ids.tolist() == first
