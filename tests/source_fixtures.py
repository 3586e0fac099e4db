"""Small sources in every layout that ImageNet is found in, with real JPEGs; the pictures of each, for what is read back."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.io
from PIL import Image

from pipeline.errors import InputError
from tools.source_entries import Entry
from tools.sources import Listing, list_source

WNIDS = ("n01440764", "n02119789", "n09193705")
WORDS = {"n01440764": "tench, Tinca tinca", "n02119789": "kit fox, Vulpes macrotis", "n09193705": "alp"}
NAMES = list(WORDS.values())  # by label
A_CLASS = 2  # training pictures
VAL = (2, 0, 1, 1)  # labels of the validation pictures

Pictures = dict[str, bytes]  # by key


def picture(name: str) -> bytes:
    """A small JPEG, another one for another name."""
    seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG")
    return data.getvalue()


def tar_of(members: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=format) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def train_pictures() -> dict[str, Pictures]:
    """By class: n01440764_10 and so on."""
    return {wnid: {f"{wnid}_{10 * k}": picture(f"{wnid} {k}") for k in range(1, A_CLASS + 1)} for wnid in WNIDS}


def flat_pictures(year: int, split: str, count: int) -> Pictures:
    return {f"ILSVRC{year}_{split}_{k:08d}": picture(f"{year} {split} {k}") for k in range(1, count + 1)}


def all_pictures(year: int, test: int = 0) -> dict[str, Pictures]:
    train = {key: data for of_class in train_pictures().values() for key, data in of_class.items()}
    splits = {"train": train, "val": flat_pictures(year, "val", len(VAL))}
    return {**splits, "test": flat_pictures(year, "test", test)} if test else splits


def class_tars() -> dict[str, bytes]:
    return {wnid: tar_of((f"{key}.JPEG", data) for key, data in of_class.items()) for wnid, of_class in train_pictures().items()}


def meta_mat(year: int, wnids: Sequence[str]) -> bytes:
    """meta.mat of classes numbered 1, 2, ... as given, and one synset above them."""
    synsets = np.empty((len(wnids) + 1, 1), [(name, object) for name in (f"ILSVRC{year}_ID", "WNID", "words", "num_children")])
    for i, wnid in enumerate(wnids):
        synsets[i, 0] = (np.int32(i + 1), wnid, WORDS.get(wnid, wnid), np.int32(0))
    synsets[-1, 0] = (np.int32(len(wnids) + 1), "n00001740", "entity", np.int32(len(wnids)))
    data = io.BytesIO()
    scipy.io.savemat(data, {"synsets": synsets})
    return data.getvalue()


IDS_2010 = (WNIDS[2], WNIDS[0], WNIDS[1])  # the devkit's numbers 1, 2, 3: not the order of the wnids


def make_2010(folder: Path) -> dict[str, Pictures]:
    """The archives of ILSVRC2010, with two test pictures; patch_images replaces one training and one test picture."""
    folder.mkdir(parents=True)
    pictures = all_pictures(2010, test=2)
    numbers = [IDS_2010.index(WNIDS[label]) + 1 for label in VAL]
    (folder / "ILSVRC2010_images_train.tar").write_bytes(tar_of((f"{wnid}.tar", data) for wnid, data in reversed(class_tars().items())))
    for split in ("val", "test"):
        in_another_order = reversed([(f"{split}/{key}.JPEG", data) for key, data in pictures[split].items()])
        (folder / f"ILSVRC2010_images_{split}.tar").write_bytes(tar_of(in_another_order))
    devkit = [
        ("devkit-1.0/data/meta.mat", meta_mat(2010, IDS_2010)),
        ("devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt", "".join(f"{number}\n" for number in numbers).encode()),
    ]
    (folder / "ILSVRC2010_devkit-1.0.tar.gz").write_bytes(gzip.compress(tar_of(devkit)))
    (folder / "ILSVRC2010_test_ground_truth.txt").write_text("3\n1\n")
    patched = [("train", f"{WNIDS[1]}_10"), ("test", "ILSVRC2010_test_00000002")]
    for split, key in patched:
        pictures[split][key] = picture(f"patch {key}")
    (folder / "patch_images.tar").write_bytes(tar_of((f"patch_images/{split}/{key}.JPEG", pictures[split][key]) for split, key in patched))
    return pictures


def make_class_folders(folder: Path) -> dict[str, Pictures]:
    pictures = all_pictures(2012)
    _write_train(folder)
    for (key, data), label in zip(pictures["val"].items(), VAL, strict=True):
        write(folder / "val" / WNIDS[label] / f"{key}.JPEG", data)
    return pictures


def make_kaggle(folder: Path) -> dict[str, Pictures]:
    """Kaggle's archive, unpacked: tables above ILSVRC/Data/CLS-LOC, val and test flat."""
    pictures, tree = all_pictures(2012, test=2), folder / "ILSVRC" / "Data" / "CLS-LOC"
    _write_train(tree)
    for split in ("val", "test"):
        for key, data in pictures[split].items():
            write(tree / split / f"{key}.JPEG", data)
    rows = "".join(f"{key},{WNIDS[label]} 85 1 499 272 \n" for key, label in zip(pictures["val"], VAL, strict=True))
    (folder / "LOC_val_solution.csv").write_text(f"ImageId,PredictionString\n{rows}")
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} {words}\n" for wnid, words in WORDS.items()))
    return pictures


def _write_train(folder: Path) -> None:
    for wnid, of_class in train_pictures().items():
        for key, data in of_class.items():
            write(folder / "train" / wnid / f"{key}.JPEG", data)


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def with_class_behind(pictures: dict[str, Pictures]) -> dict[str, list[tuple[str, bytes, int]]]:
    """Hugging Face's names, data and labels: the class stands behind the name, but not in the test split."""
    rows: dict[str, list[tuple[str, bytes, int]]] = {}
    for split, some in pictures.items():
        labels: Sequence[int] = VAL if split == "val" else [-1] * len(some)
        if split == "train":
            labels = [WNIDS.index(key.split("_")[0]) for key in some]
        behind = [f"_{WNIDS[label]}" if label >= 0 else "" for label in labels]
        rows[split] = [(f"{key}{b}.JPEG", data, label) for (key, data), b, label in zip(some.items(), behind, labels, strict=True)]
    return rows


def parquet_table(rows: Sequence[tuple[str | None, bytes, int | None]], names: Sequence[str] | None = NAMES) -> pa.Table:
    """A table as Hugging Face's datasets writes it. names: of the labels, in the schema."""
    table = pa.table(
        {
            "image": pa.array([{"bytes": data, "path": name} for name, data, _ in rows], pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array([label for *_, label in rows], pa.int64()),
        }
    )
    features: dict[str, Any] = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    described = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": described} if names else {})


def make_parquet(folder: Path) -> dict[str, Pictures]:
    """data/: two parts of training pictures in row groups of two rows, one of validation and one of test pictures."""
    pictures, data = all_pictures(2012, test=2), folder / "data"
    data.mkdir(parents=True)
    rows = with_class_behind(pictures)
    rows["train"] = rows["train"][::-1]  # not in the order of the classes
    for name, some in (
        ("train-00000-of-00002", rows["train"][:5]),
        ("train-00001-of-00002", rows["train"][5:]),
        ("validation-00000-of-00001", rows["val"]),
        ("test-00000-of-00001", rows["test"]),
    ):
        pq.write_table(parquet_table(some), data / f"{name}.parquet", row_group_size=2)
    return pictures


def make_targz(folder: Path) -> dict[str, Pictures]:
    """data/: two parts of training pictures, and classes.py above them."""
    pictures, data = all_pictures(2012, test=2), folder / "data"
    data.mkdir(parents=True)
    rows = {split: [(name, content) for name, content, _ in some] for split, some in with_class_behind(pictures).items()}
    for name, some in (
        ("train_images_0", [("._" + rows["train"][5][0], b"of macOS"), *rows["train"][5:]]),
        ("train_images_1", rows["train"][:5]),
        ("val_images", [(f"val/{name}", content) for name, content in rows["val"]]),
        ("test_images", rows["test"]),
    ):
        (data / f"{name}.tar.gz").write_bytes(gzip.compress(tar_of(some)))
    lines = "".join(f'        "{wnid}": "{words}",\n' for wnid, words in WORDS.items())
    (folder / "classes.py").write_text(f"IMAGENET2012_CLASSES = OrderedDict(\n    {{\n{lines}    }}\n)\n")
    return pictures


def make_webdataset(folder: Path, format: int = tarfile.PAX_FORMAT) -> dict[str, Pictures]:
    """Two training tars and a validation tar, with .cls."""
    folder.mkdir(parents=True)
    pictures = all_pictures(2012)
    train = [member for key, data in pictures["train"].items() for member in sample(key, data, WNIDS.index(key.split("_")[0]))]
    val = [member for (key, data), label in zip(pictures["val"].items(), VAL, strict=True) for member in sample(key, data, label)]
    for name, some in (("train-0000", train[:8]), ("train-0001", train[8:]), ("validation-00", val)):
        (folder / f"toy-{name}.tar").write_bytes(tar_of(some, format))
    return pictures


def sample(key: str, data: bytes, label: int) -> list[tuple[str, bytes]]:
    return [(f"{key}.cls", str(label).encode()), (f"{key}.jpg", data)]


def read(entry: Entry) -> bytes:
    """The bytes that an entry points at."""
    with open(entry.file, "rb") as file:
        return os.pread(file.fileno(), entry.size, entry.offset)


def check_listing(listing: Listing, pictures: dict[str, Pictures]) -> None:
    """Every picture is there once under its official name, with its own bytes and label."""
    assert list(listing.splits) == list(pictures)
    for split, entries in listing.splits.items():
        assert {entry.key: read(entry) for entry in entries} == pictures[split]
        assert len(entries) == len(pictures[split])
    check_labels(listing)


def check_labels(listing: Listing) -> None:
    assert [row.wnid for row in listing.classes] == list(WNIDS)
    assert [row.index for row in listing.classes] == [0, 1, 2]
    assert all(WNIDS[entry.label] == entry.key.split("_")[0] for entry in listing.splits["train"])
    assert {entry.key[-8:]: entry.label for entry in listing.splits["val"]} == {f"{k:08d}": label for k, label in enumerate(VAL, 1)}


def refused(path: Path, *words: str) -> str:
    """The source is refused with one line in which all `words` are; that line."""
    with pytest.raises(InputError) as caught:
        list_source(path)
    line = str(caught.value)
    assert "\n" not in line
    for word in words:
        assert word in line, f"{word!r} is not in: {line}"
    return line


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """Nothing below `folder` is changed, made or removed."""

    def state() -> dict[Path, tuple[int, int]]:
        return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted([folder, *folder.rglob("*")])}

    before = state()
    yield
    assert state() == before
