from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.tarshard import read_index, read_sample, tar_bytes, write_shard

SAMPLES = [("n01_1", b"first picture" * 50, 3), ("n02_7", b"x", 0), ("n03-9", bytes(1024), 999)]


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "train-000000.tar", SAMPLES)
    return tmp_path / "train-000000.tar"


def read_all(path: Path) -> list[tuple[str, bytes, int]]:
    index = read_index(path.with_suffix(".idx"))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        found = [(key, *read_sample(descriptor, path, index, row)) for row, key in enumerate(index.keys)]
    finally:
        os.close(descriptor)
    return [(key, jpeg.tobytes(), label) for key, jpeg, label in found]


def test_what_was_written_is_read(shard: Path) -> None:
    assert read_all(shard) == SAMPLES
    assert tar_bytes(read_index(shard.with_suffix(".idx"))) == shard.stat().st_size


def test_is_a_plain_ustar(shard: Path) -> None:
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
        assert [m.name for m in members] == ["n01_1.jpg", "n01_1.cls", "n02_7.jpg", "n02_7.cls", "n03-9.jpg", "n03-9.cls"]
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in members} == {(0, 0, 0, 0o644)}
        label = tar.extractfile("n01_1.cls")
        assert label is not None
        assert label.read() == b"3"


def test_index_is_dalis_format(shard: Path) -> None:
    lines = shard.with_suffix(".idx").read_text().splitlines()
    assert lines[:2] == ["v1.2 3", "jpg 512 650 n01_1.jpg cls 2048 1 n01_1.cls"]


@pytest.mark.parametrize(
    ("offset", "words"),
    [
        (600, ["n01_1", "CRC-32C"]),  # in the picture
        (2048, ["n01_1", "CRC-32C"]),  # the label: another class would be learned
        (3, ["n01_1", "index and tar disagree"]),  # the name in the header
        (130, ["n01_1", "another size"]),  # the size in the header
    ],
)
def test_a_flipped_bit_is_named(shard: Path, offset: int, words: list[str]) -> None:
    content = bytearray(shard.read_bytes())
    content[offset] ^= 1
    shard.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_all(shard)
    for word in [str(shard), *words]:
        assert word in str(caught.value)


def test_a_tar_that_ends_early_is_named(shard: Path) -> None:
    os.truncate(shard, 700)
    with pytest.raises(InputError, match=r"n01_1 at offset 512: the tar ends at 700"):
        read_all(shard)


@pytest.mark.parametrize(
    ("line", "text", "words"),
    [
        (0, "v1.2 4", "first line"),
        (0, "v1.1 3", "first line"),
        (1, "jpg 512 650 n01_1.jpg cls 2048 1", "line 2 is not"),
        (1, "jpg 512 650 ../n01_1.jpg cls 2048 1 ../n01_1.cls", "line 2 is not"),
        (2, "jpg 3072 9999999999999999999999 n02_7.jpg cls 4096 1 n02_7.cls", "line 3: an offset or size is not a number"),
        (2, "jpg 3584 1 n02_7.jpg cls 4608 1 n02_7.cls", r"line 3 \(sample n02_7\)"),  # shifted by a block
        (2, "jpg 3072 -1 n02_7.jpg cls 4096 1 n02_7.cls", r"line 3 \(sample n02_7\)"),
    ],
)
def test_a_wrong_index_is_refused_with_its_line(shard: Path, line: int, text: str, words: str) -> None:
    path = shard.with_suffix(".idx")
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=words):
        read_index(path)


def test_same_samples_same_bytes(shard: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar"
    written = write_shard(again, SAMPLES)
    assert again.read_bytes() == shard.read_bytes()
    assert written.bytes == again.stat().st_size


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_shard(tmp_path / "train-000000.tar", [("good", b"x", 0), ("has.dot", b"x", 0)])
    assert list(tmp_path.iterdir()) == []


def test_offsets_are_int64(shard: Path) -> None:
    index = read_index(shard.with_suffix(".idx"))
    assert index.jpeg_offset.dtype == np.int64
    assert index.jpeg_offset.tolist() == [512, 3072, 5120]
