"""CIFAR-10's training pictures, from either archive as its authors publish it, or from the folder that it unpacks to.

cifar-10-python.tar.gz, cifar-10-batches-py/    data_batch_1 ... data_batch_5: pickles of {"data": (10000, 3072) uint8, "labels": list}
cifar-10-binary.tar.gz, cifar-10-batches-bin/   data_batch_1.bin ... data_batch_5.bin: 10,000 records of a label and 3,072 values

The 3,072 values are 1,024 of red, then green, then blue, by rows (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from pipeline.bounded import open_regular, read_bounded
from pipeline.cifar_pickle import byte_array, read_pickle
from pipeline.errors import InputError

CLASSES, SIDE, RECORDS = 10, 32, 10_000  # RECORDS: pictures in a file
VALUES = 3 * SIDE * SIDE
BESIDE = 256  # bytes a picture that a pickle may have beside its pixels: label, file name
AGAIN = "fetch it again from https://www.cs.toronto.edu/~kriz/cifar.html"

Batch = tuple[np.ndarray, np.ndarray]  # (n, 3072) uint8 and (n,) int64


@dataclass(frozen=True)
class _Form:
    """One of the two: its names, and what makes a batch of a file's bytes and the number of pictures that it must have."""

    folder: str
    archive: str
    suffix: str
    batch: Callable[[bytes, int], Batch]

    @property
    def names(self) -> list[str]:
        return [f"data_batch_{i}{self.suffix}" for i in range(1, 6)]


def read_cifar(place: Path, records: int = RECORDS) -> tuple[np.ndarray, np.ndarray]:
    """The training pictures, (50000, 32, 32, 3) uint8 RGB, and their labels, (50000,) int64 below 10, in their files' order.

    place: the archive, or a folder that holds it, or the one that it unpacks to, or a folder that holds that. records: pictures in
    each of the five files. Raises InputError.
    """
    try:
        form, files = _files(place, records)
    except OSError as error:
        raise InputError(f"{error.filename or place} cannot be read ({error.strerror or error}); mend it, or name another place") from None
    batches = []
    for name, data in files.items():
        try:
            batches.append(form.batch(data, records))
        except InputError as error:
            raise InputError(f"{place}, {name}: {error}") from None
    planes = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, SIDE, SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), np.concatenate([labels for _, labels in batches])


def _files(place: Path, records: int) -> tuple[_Form, dict[str, bytes]]:
    """Which form is there, and the contents of its five files by name. Raises InputError, OSError."""
    if place.is_file():
        return _in_tar(place, records)
    if not place.is_dir():
        raise InputError(f"{place} is not there; name CIFAR-10's archive, or a folder that holds it")
    for form in FORMS:
        for folder in (place, place / form.folder):
            if any((folder / name).exists() for name in form.names):
                return form, _in_folder(folder, form, records)
        for archive in (place / form.archive, (place / form.archive).with_suffix("")):
            if archive.exists():
                return _in_tar(archive, records)
    wanted = " nor ".join(f"{form.archive} nor {form.folder}/" for form in FORMS)
    raise InputError(f"{place} has neither {wanted} in it; name the folder that has one of them")


def _in_folder(folder: Path, form: _Form, records: int) -> dict[str, bytes]:
    missing = [name for name in form.names if not (folder / name).exists()]
    if missing:
        raise InputError(f"{folder} has no {missing[0]}, one of five files; unpack the archive again")
    return {name: read_bounded(folder / name, _most(records), f"a file of {records:,} pictures has at most; {AGAIN}") for name in form.names}


def _in_tar(path: Path, records: int) -> tuple[_Form, dict[str, bytes]]:
    """The files of a tar, compressed by gzip or not, by their last name; its folders may be called anything."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(_plain(path, records)), mode="r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name).name
                if member.isreg() and name.startswith("data_batch_") and member.size <= _most(records):
                    found[name] = tar.extractfile(member).read()  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged, or no archive ({error}); {AGAIN}") from None
    for form in FORMS:
        here = {name: found[name] for name in form.names if name in found}
        if here:
            missing = [name for name in form.names if name not in here]
            if missing:
                raise InputError(f"{path} has no {missing[0]} of at most {_most(records):,} bytes, one of five files; {AGAIN}")
            return form, here
    raise InputError(
        f"{path} has neither data_batch_1 nor data_batch_1.bin in it, so it is not CIFAR-10; name {' or '.join(f.archive for f in FORMS)}"
    )


def _plain(path: Path, records: int) -> bytes:
    """A tar without its compression; whatever it claims, no more is unpacked than CIFAR-10's six files and their headers can have."""
    limit = 6 * _most(records) + (1 << 20)
    with open_regular(path) as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        data = (gzip.GzipFile(fileobj=file) if compressed else file).read(limit + 1)
    if len(data) > limit:
        raise InputError(f"{path} has more than {limit:,} bytes, which CIFAR-10 has not; {AGAIN}")
    return data


def _most(records: int) -> int:
    """Bytes that a file of so many pictures can have, in either form."""
    return records * (VALUES + BESIDE) + 65_536


def _of_pickle(data: bytes, records: int) -> Batch:
    """Raises InputError, without a name of the file."""
    content = read_pickle(data)
    if not isinstance(content, dict):
        raise InputError(f"it holds no table of pictures and labels; {AGAIN}")
    pixels, labels = (content.get(key.encode(), content.get(key)) for key in ("data", "labels"))
    values = byte_array(pixels, (records, VALUES))
    if values is None:
        raise InputError(f"its data are not {records:,} x {VALUES:,} bytes; {AGAIN}")
    if not isinstance(labels, list) or len(labels) != records or not all(type(label) is int for label in labels):
        raise InputError(f"its labels are not {records:,} whole numbers; {AGAIN}")
    return _checked(values, labels)


def _of_records(data: bytes, records: int) -> Batch:
    """Raises InputError, without a name of the file."""
    if len(data) != records * (1 + VALUES):
        raise InputError(f"it has {len(data):,} bytes, {records:,} records have {records * (1 + VALUES):,}; {AGAIN}")
    table = np.frombuffer(data, np.uint8).reshape(records, 1 + VALUES)
    return _checked(table[:, 1:], table[:, 0].tolist())


def _checked(values: np.ndarray, labels: list[int]) -> Batch:
    """Raises InputError."""
    wrong = next((label for label in labels if not 0 <= label < CLASSES), None)
    if wrong is not None:
        raise InputError(f"a label is {wrong if abs(wrong) < 2**63 else 'a huge number'}, and CIFAR-10's are 0 to {CLASSES - 1}; {AGAIN}")
    return values, np.array(labels, np.int64)


FORMS = (
    _Form("cifar-10-batches-py", "cifar-10-python.tar.gz", "", _of_pickle),
    _Form("cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin", _of_records),
)
