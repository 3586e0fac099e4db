"""Damage shard folders at random: what comes is what was written, or one clear error, or exactly the damaged samples are skipped.

`make soak` does it 2,000 times by reading and 5,000 times through the loader.
"""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import reseal
from damages import changed_samples, damage, damage_jpeg
from plain_loader import PlainLoader, loader

from pipeline import CacheSettings
from pipeline.errors import InputError
from pipeline.shards import ShardSet

SOAK = bool(os.environ.get("SOAK"))
ROUNDS = 2000 if SOAK else 120
ROUNDS_LOADER, ROUNDS_JPEG = (4000, 1000) if SOAK else (56, 24)
GROWTH = 20 << 20  # bytes in use that may be added over all rounds
# Bytes a round with right sums: nvImageCodec 0.9 never frees the 196,624 bytes of a picture in whose data libjpeg meets a stray marker.
LOST = 300_000


def read_all(folder: Path) -> list[tuple[str, bytes, int]]:
    shards = ShardSet(folder, "train")
    return [(shards.place(i)[1], *_plain(shards.read(i))) for i in range(len(shards))]


def _plain(sample: tuple[np.ndarray, int]) -> tuple[bytes, int]:
    return sample[0].tobytes(), sample[1]


def outcome(folder: Path) -> tuple[list[tuple[str, bytes, int]], str | None]:
    """What a folder reads as, or the message that refuses it."""
    try:
        return read_all(folder), None
    except InputError as error:
        return [], str(error)


@pytest.mark.parametrize("part", range(4))
def test_damaged_shards_give_the_truth_or_an_error(made_shards: Path, tmp_path: Path, part: int) -> None:
    wanted = read_all(made_shards)
    rng = np.random.default_rng(part)
    names = sorted(path.name for path in made_shards.iterdir() if path.name.startswith("train") or path.name == "manifest.json")
    folder = Path(shutil.copytree(made_shards, tmp_path / "shards"))
    caught = 0
    for _ in range(ROUNDS // 4):
        path = folder / str(rng.choice(names))
        what = damage(path, rng, made_shards)
        found, error = outcome(folder)
        if error is None:
            assert found == wanted, f"{what}: other samples than were written, without an error"
        else:
            caught += 1
            assert str(folder) in error, f"{what}: {error}"
            assert "\n" not in error
        shutil.copy(made_shards / path.name, path)
    assert caught > ROUNDS // 4 * 0.8  # nearly every damage is one that matters


# --- through the loader


WAYS: list[dict[str, Any]] = [
    {"split": "train", "out": "float32"},
    {"split": "train", "out": "uint8"},
    {"split": "train", "out": "uint8", "cache": CacheSettings("host")},
    {"split": "train", "out": "float32", "cache": CacheSettings("host", "yuv420")},
    {"split": "train", "out": "float32", "decoder": "turbojpeg"},
    {"split": "val", "out": "float32"},
]


def status(what: str) -> int:
    """Bytes of memory of this process, by the kernel: VmRSS now, VmHWM at most, RssShmem of files in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def resident() -> str:
    return f"{status('VmRSS') / 1e6:.0f} MB, at most {status('VmHWM') / 1e6:.0f} MB"


_FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")  # of mallinfo2


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS]


def in_use() -> int:
    """Bytes that somebody holds, by glibc (2.33 or newer, else 0). What its arenas keep for later goes up and down by hundreds of MB."""
    gc.collect()
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = _Mallinfo
    found = libc.mallinfo2()
    return int(found.uordblks + found.hblkhd) + status("RssShmem")


@pytest.fixture(scope="module")
def plain(made_shards: Path) -> dict[str, PlainLoader]:
    return {split: PlainLoader(made_shards, split) for split in ("train", "val")}


def damaged(folder: Path, sound: Path, split: str, rng: np.random.Generator) -> tuple[list[Path], str, set[int]]:
    """Damage one file of a split or two; the files, what was done, and the ids of the samples whose bytes have really changed."""
    tars = sorted(path.name for path in sound.glob(f"{split}-*.tar"))
    indexes = [name.replace(".tar", ".idx") for name in tars]
    kinds = [tars, tars, tars, indexes, ["manifest.json"], ["pca.json"], ["mean.npy"]]
    names = {str(rng.choice(kinds[int(rng.choice(7, p=[0.2, 0.2, 0.2, 0.2, 0.08, 0.07, 0.05]))])) for _ in range(1 + (rng.random() < 0.25))}
    what = "; ".join(damage(folder / name, rng, sound) for name in sorted(names))
    bad = {8 * number + row for number, name in enumerate(tars) for row in changed_samples(sound / name, folder / name)}
    return [folder / name for name in sorted(names)], what, bad


def one_round(folder: Path, sound: Path, plain: PlainLoader, way: dict[str, Any], rng: np.random.Generator) -> str:
    """What became of it: "error", "skipped" or "no effect"."""
    paths, what, bad = damaged(folder, sound, way["split"], rng)
    refused = ""
    try:
        one = loader(folder, **way)
        epochs = [list(one) for _ in range(2 if way.get("cache") else 1)]
    except InputError as error:
        refused = str(error)
    finally:
        for path in paths:
            shutil.copy(sound / path.name, path)
    try:
        if refused:
            assert "\n" not in refused
            assert any(is_named(path, refused) for path in paths)
            return "error"
        for epoch, batches in enumerate(epochs):
            assert plain.check(batches, epoch, bad, way["out"]) == len(plain)
        plain.listed(one.skipped, one.shards, 0, bad)
    except AssertionError as error:
        raise AssertionError(f"{what}, {way}: {refused}") from error
    return "skipped" if bad else "no effect"


def is_named(path: Path, error: str) -> bool:
    """By its name; a manifest also by the folder, since what it says of another file, or calls it, may be what is not so."""
    return str(path.parent) in error and (path.stem in error or path.name == "manifest.json")


def test_damaged_shards_come_through_the_loader_but_for_what_is_damaged(shards: Path, made_shards: Path, plain: dict[str, PlainLoader]) -> None:
    rng, found = np.random.default_rng(0), Counter[str]()
    for number in range(ROUNDS_LOADER):
        way = WAYS[number % len(WAYS)]
        found[one_round(shards, made_shards, plain[way["split"]], way, rng)] += 1
        if number == 50:
            before = in_use()
    growth = in_use() - before
    print(f"\nthrough the loader: {dict(found)}; memory in use {growth / 1e6:+.1f} MB since the 50th round, resident {resident()}")
    assert min(found[kind] for kind in ("error", "skipped", "no effect")) >= ROUNDS_LOADER // 30
    assert growth < GROWTH


def one_round_with_right_sums(folder: Path, sound: Path, plain: PlainLoader, way: dict[str, Any], rng: np.random.Generator) -> list[str]:
    """Up to three pictures of a shard are damaged before their sums are made; of each, whether it was "decoded" or "skipped"."""
    name = f"train-00000{rng.integers(6)}.tar"
    hurt = {8 * int(name[6:12]) + int(row) for row in rng.choice(8, int(rng.integers(1, 4)), replace=False)}

    def change(samples: list[tuple[str, bytes, int]]) -> None:
        for row in sorted(sample % 8 for sample in hurt):
            samples[row] = (samples[row][0], damage_jpeg(samples[row][1], rng), samples[row][2])

    reseal(folder, name, change)
    one = loader(folder, **way)
    first, skipped = list(one), {listed.id for listed in one.skipped}
    assert skipped <= hurt
    assert plain.check(first, 0, skipped, way["out"], free=hurt) == 48
    plain.listed(one.skipped, one.shards, 0, skipped)
    second = list(one)
    assert plain.check(second, 1, skipped, way["out"], free=hurt) == 48
    for batch, again in zip(second, loader(folder, epoch=1, **way), strict=True):
        assert batch.ids.tolist() == again.ids.tolist()
        np.testing.assert_array_equal(batch.images.numpy(), again.images.numpy())
    for file in (name, name.replace(".tar", ".idx"), "manifest.json", "pca.json"):
        shutil.copy(sound / file, folder / file)
    return ["skipped" if sample in skipped else "decoded" for sample in hurt]


def test_pictures_damaged_before_their_sums_were_made_are_decoded_or_skipped(shards: Path, made_shards: Path, plain: dict[str, PlainLoader]) -> None:
    """All other samples stay as they are, and whether one is skipped does not depend on the epoch in which it is met first."""
    rng, found = np.random.default_rng(1), Counter[str]()
    for number in range(ROUNDS_JPEG):
        found.update(one_round_with_right_sums(shards, made_shards, plain["train"], WAYS[number % 5], rng))
        if number == 15:
            before = in_use()
    growth = in_use() - before
    print(f"\npictures with right sums: {dict(found)}; memory in use {growth / 1e6:+.1f} MB since the 15th round, resident {resident()}")
    assert min(found["skipped"], found["decoded"]) >= ROUNDS_JPEG // 10
    assert growth < GROWTH + ROUNDS_JPEG * LOST


def test_what_a_header_claims_is_not_allocated(shards: Path, plain: dict[str, PlainLoader]) -> None:
    """A frame of 65,500 x 65,500 pixels has 13 GB of RGB; other sizes, colours and kinds of JPEG are no pictures of ours either."""
    claims: list[Any] = [
        (0, (65500).to_bytes(2, "big") * 2, "its JPEG header says 65500 x 65500 pixels in 3 colours, not 256 x 256 in 3"),
        (0, (256).to_bytes(2, "big") + (65500).to_bytes(2, "big"), "says 65500 x 256 pixels"),
        (0, bytes(4), "no JPEG header that can be read"),
        (0, (255).to_bytes(2, "big") * 2, "says 255 x 255 pixels"),
        (4, b"\x01", "no JPEG header that can be read"),  # the header is longer than one colour needs
        (-1, b"\x0c", "cannot be decoded"),  # 12 bits
    ]

    def change(samples: list[tuple[str, bytes, int]]) -> None:
        for row, (at, claim, _) in enumerate(claims):
            key, jpeg, label = samples[row]
            place = jpeg.index(b"\xff\xc0") + 5 + at
            samples[row] = (key, jpeg[:place] + claim + jpeg[place + len(claim) :], label)

    reseal(shards, "train-000002.tar", change)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = status("VmRSS")
    for way in WAYS[:5]:
        one, bad = loader(shards, **way), {16 + row for row in range(len(claims))}
        assert plain["train"].check(one, 0, bad, way["out"]) == 48
        plain["train"].listed(one.skipped, one.shards, 0, bad)
        for listed in one.skipped:
            assert claims[listed.id - 16][2] in listed.reason or "baseline" in listed.reason
    assert status("VmHWM") - before < 300 << 20
