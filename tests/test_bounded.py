"""Files of a shard folder are untrusted input: what they ask for is bounded before it is read or allocated."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_line

from pipeline.bounded import read_bounded
from pipeline.colour import read_colour_stats
from pipeline.errors import InputError
from pipeline.manifest import MAX_COMMAS, ClassEntry, Manifest, classes_digest, read_manifest, write_manifest
from pipeline.shards import ShardSet
from pipeline.tarshard import MAX_JPEG, read_index, write_shard

TERABYTE = 1 << 40  # of a file with holes: no machine of ours could hold it, so it is not read when only a message comes


def manifest_of(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_hole(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, TERABYTE)


@pytest.mark.parametrize(
    ("name", "read", "words"),
    [
        ("manifest.json", read_manifest, "that a manifest may have"),
        ("train-000001.idx", lambda folder: read_index(folder / "train-000001.idx"), "index of 1,000,000 samples can have"),
        ("train-000001.idx", lambda folder: read_index(folder / "train-000001.idx", 8), "the 2,700 that the index of 8 samples can have"),
        ("train-000001.idx", lambda folder: ShardSet(folder, "train"), "samples can have"),
        ("mean.npy", lambda folder: read_colour_stats(folder, read_manifest(folder)[1], 256), "that a mean image of 256 x 256 can have"),
        ("pca.json", lambda folder: read_colour_stats(folder, read_manifest(folder)[1], 256), "that statistics can have"),
    ],
)
def test_a_file_larger_than_it_can_be_is_refused_before_it_is_read(shards: Path, name: str, read: Callable[[Path], object], words: str) -> None:
    as_hole(shards / name)
    with pytest.raises(InputError) as caught:
        read(shards)
    assert f"{shards / name} has {TERABYTE:,} bytes" in str(caught.value)
    assert words in str(caught.value)


def test_the_bounds_leave_room_for_the_largest_that_is_written(tmp_path: Path) -> None:
    """Keys of 90 letters, offsets of many digits; a manifest of 20,000 classes, 7,000 shards, 100,000 rejected files."""
    samples = [(f"{i:090d}", b"x" * 9999, 10**9) for i in range(300)]
    write_shard(tmp_path / "train-000000.tar", samples)
    assert len(read_index(tmp_path / "train-000000.idx", 300).keys) == 300
    digest = "0" * 64
    classes = [{"index": i, "wnid": f"n{i:08d}", "ilsvrc_id": i, "words": "a word, another"} for i in range(20_000)]
    shards = [{"name": f"train-{i:06d}.tar", "samples": 2000, "bytes": 45_000_000, "sha256": digest} for i in range(7000)]
    rejected = [{"split": "train", "name": f"n01440764/n01440764_{i}.JPEG", "reason": "broken data stream"} for i in range(100_000)]
    manifest = Manifest.model_validate(
        {
            "format_version": 1,
            "settings": {"size": 256, "quality": 90, "shard_size": 2000, "seed": 0},
            "source": {"kind": "class-folders", "sha256": digest},
            "classes": classes,
            "classes_sha256": classes_digest(tuple(ClassEntry.model_validate(entry) for entry in classes)),
            "splits": {"train": {"samples": 14_000_000, "shards": shards}},
            "rejected": rejected,
        }
    )
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path)[0] == manifest


READ_IN_A_GIGABYTE = """
import resource, sys
from pathlib import Path
from pipeline import one_line_errors, read_manifest
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
with one_line_errors():
    read_manifest(Path(sys.argv[1]))
"""


def test_a_manifest_of_many_small_entries_is_refused_in_little_memory(shards: Path) -> None:
    """A megabyte of {} would take a gigabyte once each of its faults is described."""
    for count, words in ((MAX_COMMAS + 1, "entries that a manifest may have"), (300_000, "entries are not those of a manifest")):
        manifest_of(shards, rejected=[{}] * count)
        ended = subprocess.run([sys.executable, "-c", READ_IN_A_GIGABYTE, shards], cwd=ROOT, capture_output=True, text=True, check=False)
        assert ended.returncode == 2, ended.stderr
        assert words in one_line(ended)


def test_a_shard_of_too_many_samples_is_refused(shards: Path) -> None:
    content = json.loads((shards / "manifest.json").read_text())
    content["splits"]["train"]["shards"][0]["samples"] = 10**6 + 1
    (shards / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"splits\.train\.shards\.0\.samples"):
        read_manifest(shards)


@pytest.mark.parametrize("size", [MAX_JPEG + 1, 2**62, 2**63 - 1])
def test_a_picture_larger_than_any_is_refused_in_the_index(tmp_path: Path, size: int) -> None:
    place = tmp_path / "train-000000.idx"
    label = 512 + (size + 511) // 512 * 512 + 512
    place.write_text(f"v1.2 1\njpg 512 {size} k.jpg cls {label % 2**63} 1 k.cls\n")
    with pytest.raises(InputError, match=r"line 2 \(sample k\)"):
        read_index(place)
    place.write_text(f"v1.2 1\njpg 512 {MAX_JPEG} k.jpg cls {512 + MAX_JPEG + 512} 1 k.cls\n")
    assert read_index(place).jpeg_size[0] == MAX_JPEG


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 256, 3), }\n"), "(1099511627776, 256, 3), not a finite"),
        (npy(b"{'descr': '<f8', 'fortran_order': False, 'shape': (256, 256, 3), }\n"), "float64"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (256, 256, 3), }\n"), "object"),  # would be unpickled
        (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (256, 256, 3), }\n", bytes(100)), "mean.npy: "),
        (npy(b"(" * 60_000), "mean.npy: "),
        (npy(b"{'descr': '<f4', 'fortran_order': " + b"-" * 900 + b"1, 'shape': (256, 256, 3), }\n"), "mean.npy: "),
        (b"\x93NUMPY\x03\x00" + bytes(100), "another version"),
        (b"PK\x03\x04" + bytes(100), "mean.npy: "),
        (b"\x80\x04N.", "mean.npy: "),
        (b"", "mean.npy: "),
    ],
)
def test_what_a_mean_image_asks_for_is_checked_before_it_is_allocated(shards: Path, content: bytes, words: str) -> None:
    (shards / "mean.npy").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_colour_stats(shards, read_manifest(shards)[1], 256)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "compute_pca.py" in str(caught.value)


def test_any_mean_image_that_numpy_writes_is_read(shards: Path) -> None:
    _, digest = read_manifest(shards)
    mean = read_colour_stats(shards, digest, 256).mean_image
    statistics = json.loads((shards / "pca.json").read_text())
    del statistics["sha256"]  # as in files of version 0.1.0
    (shards / "pca.json").write_text(json.dumps(statistics))
    for array in (mean, np.asfortranarray(mean)):
        out = io.BytesIO()
        np.save(out, array)
        (shards / "mean.npy").write_bytes(out.getvalue())
        np.testing.assert_array_equal(read_colour_stats(shards, digest, 256).mean_image, mean)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")  # says it has no bytes, and never ends
    for name in ("pipe", "zeros", "."):
        with pytest.raises(InputError, match="not a regular file"):
            read_bounded(tmp_path / name, 100, "it may have")
    (tmp_path / "file").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to("file")
    assert read_bounded(tmp_path / "link", 100, "it may have") == b"x" * 100
    with pytest.raises(InputError, match="has 100 bytes, more than the 99 that it may have"):
        read_bounded(tmp_path / "file", 99, "it may have")
