from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from pipeline import index_lines, tarshard
from pipeline.errors import InputError
from pipeline.tarshard import Index, read_index, write_shard

SAMPLES = [("n01_1", b"first picture" * 50, 3), ("n02_7", b"x", 0), ("n03-9", bytes(1024), 999), ("Z" * 90, b"y" * 512, 12)]


@pytest.fixture
def content(tmp_path: Path) -> bytes:
    write_shard(tmp_path / "train-000000.tar", SAMPLES)
    return (tmp_path / "train-000000.idx").read_bytes()


def facts(index: Index) -> list[object]:
    return [list(index.keys), *(array.tolist() for array in (index.jpeg_offset, index.jpeg_size, index.label_offset, index.label_size))]


def line_by_line(path: Path, content: bytes) -> list[object] | str:
    """What the plain reader says: the index, or its fault."""
    try:
        return facts(tarshard._read_by_line(path, content))
    except InputError as error:
        return str(error)


def test_its_bounds_are_those_of_the_format() -> None:
    assert (index_lines._BLOCK, index_lines._MAX_JPEG, index_lines._MAX_LABEL) == (tarshard.BLOCK, tarshard.MAX_JPEG, tarshard.MAX_LABEL)
    for byte in range(128):
        assert bool(tarshard.KEY.match(chr(byte))) == bool(index_lines._OF_KEY[byte]), chr(byte)
    assert not index_lines._OF_KEY[128:].any()
    assert tarshard.KEY.match("a" * index_lines._MAX_KEY)
    assert not tarshard.KEY.match("a" * (index_lines._MAX_KEY + 1))


def test_it_reads_what_the_plain_reader_reads(content: bytes, tmp_path: Path) -> None:
    quick = tarshard._read_quickly(content)
    assert quick is not None
    assert facts(quick) == line_by_line(tmp_path / "x.idx", content)
    assert list(quick.keys) == [key for key, _, _ in SAMPLES]
    assert (quick.jpeg_offset.dtype, quick.jpeg_size.dtype, quick.label_offset.dtype) == (np.int64, np.int32, np.int64)


def test_keys_are_a_sequence(content: bytes) -> None:
    quick = tarshard._read_quickly(content)
    assert quick is not None
    keys, plain = quick.keys, [key for key, _, _ in SAMPLES]
    assert (len(keys), keys[0], keys[-1], keys[1:3], keys[::-1]) == (4, plain[0], plain[-1], plain[1:3], plain[::-1])
    assert keys[np.int64(2)] == plain[2]
    with pytest.raises(IndexError):
        keys[4]


def test_a_shard_without_samples() -> None:
    quick = tarshard._read_quickly(b"v1.2 0\n")
    assert quick is not None
    assert (len(quick.keys), tarshard.tar_bytes(quick)) == (0, 1024)


def test_any_byte_changed_left_out_or_added_is_judged_as_the_plain_reader_judges(content: bytes, tmp_path: Path) -> None:
    """The compiled reader takes no index that the plain one refuses, and reads no other numbers."""
    rng, path = random.Random(0), tmp_path / "x.idx"
    refused = 0
    for at in range(len(content)):
        for put in (b"", b"\n", b" ", b"0", bytes([rng.randrange(256)]), bytes([content[at], content[at]])):
            changed = content[:at] + put + content[at + 1 :]
            quick = tarshard._read_quickly(changed)
            expected = line_by_line(path, changed)
            refused += isinstance(expected, str)
            assert quick is None or facts(quick) == expected, changed
            assert quick is not None or changed != content
    assert refused > 2 * len(content)


def read_index_of(path: Path, content: bytes) -> Index:
    path.write_bytes(content)
    return read_index(path)


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_index_that_ends_early_is_refused(content: bytes, tmp_path: Path, cut: int) -> None:
    with pytest.raises(InputError):
        read_index_of(tmp_path / "x.idx", content[: -cut * 11])
    assert tarshard._read_quickly(content[: -cut * 11]) is None


def test_a_number_longer_than_64_bits_is_refused(content: bytes, tmp_path: Path) -> None:
    for digits in (18, 19, 20, 40):
        changed = content.replace(b"jpg 512 650", b"jpg 512 " + b"9" * digits, 1)
        assert tarshard._read_quickly(changed) is None
        with pytest.raises(InputError, match="line 2"):
            read_index_of(tmp_path / "x.idx", changed)
