"""Hugging Face's imagenet-1k: parquet, and the older tar.gz; listings, and pictures read as a stream."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import one_line, run_command
from source_fixtures import NAMES, WNIDS, Pictures, check_labels, make_parquet, make_targz, parquet_table, picture, refused, tar_of, untouched

from pipeline.errors import InputError
from tools.sources import Listing, list_source, read_stream, row_groups


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    make_parquet(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def targz(tmp_path: Path) -> Path:
    make_targz(tmp_path / "hf")
    return tmp_path / "hf"


def check_stream(listing: Listing, pictures: dict[str, Pictures]) -> None:
    """Read through its files, and from the middle of each, every entry is the picture of its key."""
    check_labels(listing)
    assert list(listing.splits) == list(pictures)
    for split, entries in listing.splits.items():
        files = list(dict.fromkeys(entry.file for entry in entries))
        of_file = {file: [entry for entry in entries if entry.file == file] for file in files}
        assert entries == [entry for file in files for entry in of_file[file]]
        for file, some in of_file.items():
            assert [entry.offset for entry in some] == list(range(len(some)))
            expected = [pictures[split][entry.key] for entry in some]
            for first in range(len(some)):
                for count in (0, 1, len(some) - first):
                    assert list(read_stream(file, first, count)) == expected[first : first + count]
        assert len(entries) == len(pictures[split])
    assert [entry.label for entry in listing.splits["test"]] == [-1, -1]


def test_parquet(parquet: Path, tmp_path: Path) -> None:
    pictures = make_parquet(tmp_path / "again")
    with untouched(parquet):
        listing = list_source(parquet)
        check_stream(listing, pictures)
    assert (listing.source.kind, listing.source.year, listing.streamed) == ("huggingface-parquet", 2012, "parquet")
    assert [row.words for row in listing.classes] == NAMES
    assert row_groups(listing.splits["train"][0].file) == [2, 2, 1]
    for given in (parquet / "data", parquet / "data" / "test-00000-of-00001.parquet"):
        assert list_source(given) == listing


def test_targz(targz: Path, tmp_path: Path) -> None:
    """The parts of a split stand in the order of their numbers; "._" files of macOS have no number."""
    pictures = make_targz(tmp_path / "again")
    with untouched(targz):
        listing = list_source(targz)
        check_stream(listing, pictures)
    assert (listing.source.kind, listing.source.year, listing.streamed) == ("huggingface-archives", 2012, "tar.gz")
    assert [row.words for row in listing.classes] == NAMES
    assert all(entry.size == len(pictures["val"][entry.key]) for entry in listing.splits["val"])
    assert Path(listing.splits["train"][0].file).name == "train_images_0.tar.gz"
    for given in (targz / "data", targz / "data" / "train_images_1.tar.gz"):
        assert list_source(given) == listing
    (targz / "classes.py").unlink()
    assert [row.words for row in list_source(targz).classes] == list(WNIDS)


def last_picture(file: str, first: int) -> bytes:
    return list(read_stream(file, first, 1))[-1]


def test_in_worker_processes(parquet: Path) -> None:
    """Entries and read_stream go to processes that were started anew."""
    entries = list_source(parquet).splits["train"]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        read = list(pool.map(last_picture, [entry.file for entry in entries], [entry.offset for entry in entries]))
    assert read == [last_picture(entry.file, entry.offset) for entry in entries]


def test_only_the_row_groups_that_are_asked_for_are_read(tmp_path: Path) -> None:
    """One with its bytes destroyed is no hindrance to the others, and is named by those who need it."""
    path = tmp_path / "train-00000-of-00001.parquet"
    rows = [(f"{WNIDS[0]}_{k}_{WNIDS[0]}.JPEG", picture(str(k)) * 50, 0) for k in range(9)]
    pq.write_table(parquet_table(rows), path, row_group_size=3, compression="none", use_dictionary=False)
    with pq.ParquetFile(path) as file:
        chunk = file.metadata.row_group(1).column(0)
        assert chunk.path_in_schema == "image.bytes"
        offset, size = chunk.data_page_offset, chunk.total_compressed_size
    with open(path, "r+b") as opened:
        opened.seek(offset)
        opened.write(os.urandom(size))
    for first in (0, 6):
        assert list(read_stream(str(path), first, 3)) == [data for _, data, _ in rows[first : first + 3]]
    with pytest.raises(InputError, match="row group 1") as caught:
        list(read_stream(str(path), 2, 3))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("written", [{"row_group_size": 100}, {"write_batch_size": 16}], ids=["row groups", "pages"])
def test_memory_is_that_of_a_part(tmp_path: Path, written: dict[str, int]) -> None:
    """60 MB of pictures, in row groups as Hugging Face writes them, or in one group of many pages, are not held at once."""
    path = tmp_path / "train-00000-of-00001.parquet"
    rows = [(f"{WNIDS[0]}_{k}_{WNIDS[0]}.JPEG", bytes([k % 251]) * 60_000, 0) for k in range(1000)]
    pq.write_table(parquet_table(rows), path, compression="none", use_dictionary=False, **written)
    pool = pa.default_memory_pool()
    before, most = pool.bytes_allocated(), 0
    tracemalloc.start()
    for k, data in enumerate(read_stream(str(path), 0, 1000)):
        assert data[0] == k % 251
        most = max(most, pool.bytes_allocated() - before)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()
    assert 0 < most < 20e6


Rows = list[tuple[str | None, bytes, int | None]]


def one_parquet(
    folder: Path, rows: list[tuple[str | None, bytes, int | None]], names: list[str] | None = NAMES, name: str = "train-0.parquet"
) -> Path:
    folder.mkdir(exist_ok=True)
    pq.write_table(parquet_table(rows, names), folder / name)
    return folder


def test_names_of_classes_where_pictures_have_no_wnids(tmp_path: Path) -> None:
    rows: Rows = [("a.jpg", b"a", 2), (None, b"b", 0)]
    named = list_source(one_parquet(tmp_path / "named", rows))
    assert [(row.wnid, row.words) for row in named.classes] == [(name, name) for name in NAMES]
    assert [(entry.key, entry.label) for entry in named.splits["train"]] == [("a", 2), ("train-0-1", 0)]
    assert named.source.year is None
    for line in (
        "the pictures' names do not carry wnids: classes are called by their names in the source",
        "1 of 3 classes have no training picture",
    ):
        assert any(line in check for check in named.checks), named.checks
    unnamed = list_source(one_parquet(tmp_path / "unnamed", rows, None))
    assert [row.words for row in unnamed.classes] == ["class 0", "class 1", "class 2"]
    official: Rows = [(f"{wnid}_1.JPEG", b"x", label) for label, wnid in enumerate(WNIDS)]
    listing = list_source(one_parquet(tmp_path / "official", official))
    assert [(row.wnid, row.words) for row in listing.classes] == list(zip(WNIDS, NAMES, strict=True))
    mixed: Rows = [(f"{wnid}_1_{wnid}.JPEG", b"x", 0) for wnid in WNIDS]
    listing = list_source(one_parquet(tmp_path / "mixed", mixed))
    assert "do not go with the labels one to one: classes are called by their names" in " ".join(listing.checks)
    turned: Rows = [(f"{wnid}_1_{wnid}.JPEG", b"x", 2 - k) for k, wnid in enumerate(WNIDS)]
    listing = list_source(one_parquet(tmp_path / "turned", turned))
    assert [row.wnid for row in listing.classes] == list(reversed(WNIDS))
    assert "classes are in the order of the source's labels, not by sorted wnid" in listing.checks


TRAIN_1 = "train-00001-of-00002.parquet"
PARQUET_MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a part missing": (lambda f: (f / TRAIN_1).unlink(), ("lacks 1 of 2 parts, first train-00001-of-00002.parquet",)),
    "parts of two downloads": (lambda f: (f / TRAIN_1).rename(f / "train-00001-of-00003.parquet"), ("parts of 2 and parts of 3",)),
    "a part twice": (
        lambda f: (f / "train-00001-of-00002-0a1b.parquet").write_bytes((f / TRAIN_1).read_bytes()),
        ("has 3 files for 2 parts",),
    ),
    "no training files": (lambda f: list(map(Path.unlink, f.glob("train*"))), ("has validation-00000-of-00001.parquet but no train-*.parquet",)),
    "cut": (lambda f: os.truncate(f / TRAIN_1, 700), (TRAIN_1, "incomplete or damaged")),
    "another table": (
        lambda f: pq.write_table(pa.table({"img": [b"x"], "label": [0]}), f / TRAIN_1),
        (TRAIN_1, "the columns img, label, not image.bytes"),
    ),
    "no label": (lambda f: one_parquet(f, [("a_n01440764.JPEG", b"x", None)], name=TRAIN_1), (TRAIN_1, "row 0 has None for a label")),
    "labels in words": (
        lambda f: pq.write_table(pa.table({"image": [{"bytes": b"x", "path": "a"}], "label": ["tench"]}), f / TRAIN_1),
        (TRAIN_1, "row 0 has 'tench' for a label"),
    ),
    "a hidden label": (lambda f: one_parquet(f, [("a_n01440764.JPEG", b"x", -1)], name=TRAIN_1), ("train: a training picture has label -1",)),
    "a label beyond": (lambda f: one_parquet(f, [("a_n01440764.JPEG", b"x", 3)], name=TRAIN_1), ("label 3, outside of its 3 class names",)),
    "labels of another order": (
        lambda f: one_parquet(f, [("ILSVRC2012_val_00000001_n02119789.JPEG", b"x", 0)], name="validation-00000-of-00001.parquet"),
        ("ILSVRC2012_val_00000001_n02119789.JPEG is of class n02119789 by its name, of n01440764 by its label",),
    ),
    "a validation label of no class": (
        lambda f: one_parquet(f, [("x.JPEG", b"x", -1)], name="validation-00000-of-00001.parquet"),
        ("validation-00000-of-00001.parquet/x.JPEG has label -1",),
    ),
}


@pytest.mark.parametrize("mistake", PARQUET_MISTAKES)
def test_parquet_mistakes(parquet: Path, mistake: str) -> None:
    make, words = PARQUET_MISTAKES[mistake]
    make(parquet / "data")
    refused(parquet, *words)


def test_without_pyarrow(parquet: Path) -> None:
    script = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path; from pipeline.errors import one_line_errors; "
        f"from tools.sources import list_source\nwith one_line_errors(): list_source(Path({str(parquet)!r}))"
    )
    one_line(run_command("-c", script), "train-00000-of-00002.parquet", "pip install 'pyarrow>=16'")


def test_more_rows_than_there_are(parquet: Path) -> None:
    with pytest.raises(InputError, match="has 1 rows, not the 3 that were listed"):
        list(read_stream(str(parquet / "data" / TRAIN_1), 0, 3))


def big_archive(folder: Path) -> Path:
    """Five members of 100 kB that do not compress."""
    path = folder / "train_images_1.tar.gz"
    path.write_bytes(gzip.compress(tar_of((f"{WNIDS[0]}_{k}_{WNIDS[0]}.JPEG", os.urandom(100_000)) for k in range(5))))
    return path


def cut(folder: Path) -> None:
    path = big_archive(folder)
    os.truncate(path, path.stat().st_size // 2)


def cut_between_members(folder: Path) -> None:
    """In a gzip that is whole: the archive was cut before it was compressed."""
    path = big_archive(folder)
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[: 3 * (512 + 100_352)]))


def flip_last_bytes(folder: Path) -> None:
    path = folder / "val_images.tar.gz"
    data = bytearray(path.read_bytes())
    data[-8] ^= 1  # of gzip's CRC
    path.write_bytes(data)


TARGZ_MISTAKES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a part missing": (lambda f: (f / "train_images_0.tar.gz").unlink(), ("has train_images_1.tar.gz but not train_images_0.tar.gz",)),
    "no training archives": (lambda f: list(map(Path.unlink, f.glob("train*"))), ("no pictures in train_images_0.tar.gz",)),
    "cut": (cut, ("train_images_1.tar.gz", "after n01440764_2_n01440764.JPEG", "incomplete")),
    "no gzip": (lambda f: (f / "val_images.tar.gz").write_bytes(b"<html>"), ("val_images.tar.gz", "after its beginning", "fetch it again")),
    "cut before it was compressed": (cut_between_members, ("no end-of-archive mark", "after n01440764_2_n01440764.JPEG")),
    "a wrong sum at the end": (flip_last_bytes, ("val_images.tar.gz", "CRC")),
    "no class in a name": (
        lambda f: (f / "val_images.tar.gz").write_bytes(gzip.compress(tar_of([("ILSVRC2012_val_00000001.JPEG", b"x")]))),
        ("ILSVRC2012_val_00000001.JPEG: its name does not end in _nXXXXXXXX",),
    ),
    "a class that is not trained on": (
        lambda f: (f / "val_images.tar.gz").write_bytes(gzip.compress(tar_of([("ILSVRC2012_val_00000001_n00000009.JPEG", b"x")]))),
        ("its class n00000009 is not among the training pictures",),
    ),
}


@pytest.mark.parametrize("mistake", TARGZ_MISTAKES)
def test_targz_mistakes(targz: Path, mistake: str) -> None:
    make, words = TARGZ_MISTAKES[mistake]
    make(targz / "data")
    refused(targz, *words)


def test_a_stream_that_breaks_while_it_is_read(targz: Path) -> None:
    cut(targz / "data")
    stream = read_stream(str(targz / "data" / "train_images_1.tar.gz"), 0, 5)
    assert [len(next(stream)) for _ in range(2)] == [100_000] * 2
    with pytest.raises(InputError, match=r"train_images_1\.tar\.gz.*after n01440764_2"):
        list(stream)
    with pytest.raises(InputError, match="fewer than the 9"):
        list(read_stream(str(targz / "data" / "val_images.tar.gz"), 0, 9))
