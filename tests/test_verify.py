from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.manifest import Shard, read_manifest
from pipeline.shards import ShardSet
from pipeline.tarshard import read_index, write_shard
from pipeline.verify import PIECE, check_folder_contents, check_shard, verify_folder

TERABYTE = 1 << 40  # of a file with holes: no machine of ours could hold it, so it is not read when only a message comes


def shard_of(folder: Path, number: int = 1) -> tuple[Path, Shard]:
    shard = read_manifest(folder)[0].splits["train"].shards[number]
    return folder / shard.name, shard


def change(path: Path, at: int, bit: int = 1) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


def fault_of(folder: Path, number: int = 1) -> str:
    """The fault of one shard, which must be there, one line, name the file, and stand alone in its folder."""
    path, shard = shard_of(folder, number)
    fault = check_shard(folder, shard)
    assert fault is not None
    assert "\n" not in fault
    assert path.stem in fault
    assert check_folder_contents(folder, 2) == [fault]
    with pytest.raises(InputError) as caught:
        verify_folder(folder)
    assert str(caught.value) == fault
    return fault


def test_a_whole_folder_has_no_fault_and_all_its_bytes_are_counted(made_shards: Path) -> None:
    for workers in (1, 3):
        counted: list[int] = []
        assert check_folder_contents(made_shards, workers, counted.append) == []
        assert sum(counted) == sum(path.stat().st_size for path in made_shards.glob("*.tar"))
    verify_folder(made_shards)


def test_a_bit_that_no_decoder_would_mind_is_found_and_its_sample_named(shards: Path) -> None:
    path, _ = shard_of(shards)
    index = read_index(path.with_suffix(".idx"))
    change(path, int(index.jpeg_offset[5] + index.jpeg_size[5] // 2))
    fault = fault_of(shards)
    assert f"1 of its 8 samples is damaged: {index.keys[5]} at offset {index.jpeg_offset[5]};" in fault
    assert "SHA-256" in fault
    assert all(key not in fault for key in index.keys[:5] + index.keys[6:])


@pytest.mark.parametrize("where", ["name", "size", "sum", "label"])
def test_damage_in_a_header_or_label_names_the_sample(shards: Path, where: str) -> None:
    path, _ = shard_of(shards)
    index = read_index(path.with_suffix(".idx"))
    header = int(index.jpeg_offset[2]) - 512
    change(path, {"name": header + 3, "size": header + 130, "sum": header + 305, "label": int(index.label_offset[2])}[where])
    assert f"1 of its 8 samples is damaged: {index.keys[2]} at offset {index.jpeg_offset[2]};" in fault_of(shards)


def test_many_damaged_samples_are_counted_and_five_named(shards: Path) -> None:
    path, _ = shard_of(shards)
    index = read_index(path.with_suffix(".idx"))
    for row in range(1, 8):
        change(path, int(index.jpeg_offset[row]) + 40)
    fault = fault_of(shards)
    assert "7 of its 8 samples are damaged" in fault
    assert fault.count(" at offset ") == 5
    assert "and 2 more" in fault
    assert index.keys[0] not in fault


def test_damage_outside_of_the_samples_is_told_apart(shards: Path) -> None:
    path, _ = shard_of(shards)
    index = read_index(path.with_suffix(".idx"))
    padding, mode, end = int(index.label_offset[3]) + 400, int(index.jpeg_offset[3]) - 512 + 103, path.stat().st_size - 5
    for at, said in ((padding, int(index.label_offset[3] + index.label_size[3])), (mode, int(index.jpeg_offset[3]) - 512), (end, end - 1019)):
        change(path, at)
        fault = fault_of(shards)
        assert "every sample is whole" in fault
        assert f"at offset {said}," in fault
        change(path, at)
    verify_folder(shards)


def test_a_whole_shard_of_another_set_is_told_apart(shards: Path) -> None:
    """Same keys, same sizes, another label with its right sum: only the manifest's sum can know."""
    path, _ = shard_of(shards)
    split = ShardSet(shards, "train")
    samples = [(split.place(i)[1], *split.read(i)) for i in range(8, 16)]
    label = (samples[0][2] + 1) % 4
    write_shard(path, [(key, jpeg.tobytes(), label if row == 0 else own) for row, (key, jpeg, own) in enumerate(samples)])
    fault = fault_of(shards)
    assert "every sample is whole, so it is a shard of another set" in fault


def test_a_tar_cut_short_grown_missing_or_no_file(shards: Path) -> None:
    path, shard = shard_of(shards)
    index = read_index(path.with_suffix(".idx"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(index.label_offset[5])])
    fault = fault_of(shards)
    assert f"has {int(index.label_offset[5]):,} bytes, the manifest says {shard.bytes:,}" in fault
    assert f"3 of its 8 samples are damaged: {index.keys[5]} at offset" in fault
    path.write_bytes(whole + b"x")
    assert f"every sample is whole: the damage, at offset {shard.bytes - 1024}," in fault_of(shards)
    path.unlink()
    assert "is missing" in fault_of(shards)
    os.mkfifo(path)  # opening it would wait for a writer that never comes
    assert "not a regular file" in fault_of(shards)
    path.unlink()
    path.mkdir()
    assert "not a regular file" in fault_of(shards)


@pytest.mark.parametrize("row", [0, 4, 7])
def test_an_index_that_is_possible_but_not_its_tars_is_found(shards: Path, row: int) -> None:
    path, _ = shard_of(shards)
    place = path.with_suffix(".idx")
    good = place.read_text()
    index = read_index(place)
    size = int(index.jpeg_size[row])
    other = size + 1 if size % 512 else size - 1  # ends in the same block, so that every offset still fits
    changes = {f"jpg {index.jpeg_offset[row]} {size} ": f"jpg {index.jpeg_offset[row]} {other} ", index.keys[row]: f"x{index.keys[row][1:]}"}
    for old, new in changes.items():
        place.write_text(good.replace(old, new))
        fault = fault_of(shards)
        assert f"at offset {index.jpeg_offset[row]}: the tar, which is whole, has another name or size there" in fault
    place.write_text(good)
    verify_folder(shards)


def test_headers_are_compared_in_every_piece_of_a_large_shard(tmp_path: Path) -> None:
    """A shard of several pieces, with members across their borders."""
    samples = [(f"k{i}", bytes(700_001), i) for i in range(20)]
    written = write_shard(tmp_path / "train-000000.tar", samples)
    assert written.bytes > 3 * PIECE
    shard = Shard(name="train-000000.tar", samples=20, bytes=written.bytes, sha256=written.sha256)
    assert check_shard(tmp_path, shard) is None
    place = tmp_path / "train-000000.idx"
    good = place.read_text()
    for row in range(20):
        place.write_text(good.replace(f" k{row}.", f" z{row}."))
        fault = check_shard(tmp_path, shard)
        assert fault is not None
        assert f"sample z{row} at offset" in fault


def test_a_damaged_index_is_named_and_whether_its_tar_is_whole(shards: Path) -> None:
    path, _ = shard_of(shards)
    place = path.with_suffix(".idx")
    lines = place.read_text().splitlines(keepends=True)
    place.write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert "line 2 (sample" in fault_of(shards)
    assert "the tar is whole" in fault_of(shards)
    place.write_text("".join([f"v1.2 {len(lines) - 2}\n", *lines[1:-1]]))
    assert "has 7 samples" in fault_of(shards)
    place.unlink()
    assert "is missing" in fault_of(shards)
    change(path, 3000)
    assert "its index cannot be used either" in fault_of(shards)


def test_the_loaders_check_names_the_first_and_counts_the_others(shards: Path) -> None:
    for number in (0, 2, 4):
        change(shard_of(shards, number)[0], 2000)
    faults = check_folder_contents(shards, 2)
    assert [Path(fault.split(" ")[0]).name for fault in faults] == ["train-000000.tar", "train-000002.tar", "train-000004.tar"]
    with pytest.raises(InputError) as caught:
        verify_folder(shards, "train", workers=1)
    assert str(caught.value).startswith(f"{faults[0]}; 2 more with faults")
    assert "check_shards.py" in str(caught.value)
    verify_folder(shards, "val")


def test_what_the_progress_raises_ends_the_check(made_shards: Path) -> None:
    """So does Ctrl-C."""

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_folder_contents(made_shards, 2, stop)


def test_a_tar_larger_than_the_manifest_says_is_not_read_through(shards: Path) -> None:
    path, _ = shard_of(shards)
    os.truncate(path, TERABYTE)
    assert f"has {TERABYTE:,} bytes" in fault_of(shards)
