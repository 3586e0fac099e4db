"""Damage shard folders at random: what is read is what was written, or one clear error. `make soak` does it 2,000 times."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.shards import ShardSet

ROUNDS = 2000 if os.environ.get("SOAK") else 120


def read_all(folder: Path) -> list[tuple[str, bytes, int]]:
    shards = ShardSet(folder, "train")
    return [(shards.place(i)[1], *_plain(shards.read(i))) for i in range(len(shards))]


def _plain(sample: tuple[np.ndarray, int]) -> tuple[bytes, int]:
    return sample[0].tobytes(), sample[1]


def damage(path: Path, rng: np.random.Generator) -> str:
    """Damage a file in one of the ways that disks, copies and people do; what was done."""
    content = bytearray(path.read_bytes())
    at = int(rng.integers(len(content)))
    way = str(rng.choice(["flip", "truncate", "zero", "lines", "grow", "shift"]))
    if way == "flip":
        content[at] ^= 1 << int(rng.integers(8))
    elif way == "truncate":
        del content[at:]
    elif way == "zero":
        content[at : at + 512] = bytes(len(content[at : at + 512]))
    elif way == "lines" and path.suffix == ".idx":
        lines = content.splitlines(keepends=True)
        i, j = rng.integers(1, len(lines), 2)
        lines[i], lines[j] = lines[j], lines[i]
        content = bytearray(b"".join(lines))
    elif way == "grow":
        content += bytes(rng.integers(0, 256, 512, dtype=np.uint8))
    else:
        content[at:at] = b"\0" * 512
    path.write_bytes(content)
    return f"{way} at {at} of {path.name}"


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
        what = damage(path, rng)
        found, error = outcome(folder)
        if error is None:
            assert found == wanted, f"{what}: other samples than were written, without an error"
        else:
            caught += 1
            assert str(folder) in error, f"{what}: {error}"
            assert "\n" not in error
        shutil.copy(made_shards / path.name, path)
    assert caught > ROUNDS // 4 * 0.8  # nearly every damage is one that matters
