"""Archives of drawn pictures in the true formats of CIFAR-10's two, but with fewer pictures a file."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import InputError, read_cifar
from pipeline.cifar import RECORDS, VALUES

FEW = 20
FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


def drawn(records: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of five files, (5, records, 3072) uint8, and labels, (5, records)."""
    rng = np.random.default_rng(5)
    one = np.frombuffer(rng.bytes(records * VALUES), np.uint8).reshape(1, records, VALUES)
    return one + np.arange(5, dtype=np.uint8)[:, None, None], rng.integers(0, 10, (5, records))


def python_2(pixels: np.ndarray, labels: list[int]) -> bytes:
    """What Python 2's cPickle wrote of {"data": array, "labels": list}, protocol 2: the published files, opcode by opcode."""
    text = lambda words: b"U" + bytes([len(words)]) + words  # noqa: E731  SHORT_BINSTRING
    number = lambda value: b"J" + struct.pack("<i", value)  # noqa: E731  BININT
    shape = number(pixels.shape[0]) + number(pixels.shape[1]) + b"\x86"
    made = b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85" + text(b"b") + b"\x87R"
    kind = b"cnumpy\ndtype\nq\x04" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + 2 * number(-1) + b"K\x00tb"
    state = b"(K\x01" + shape + kind + b"\x89T" + struct.pack("<i", pixels.nbytes) + pixels.tobytes() + b"tb"
    listed = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items = text(b"data") + made + state + text(b"labels") + listed + text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}q\x01(" + items + b"u."


def python_3(pixels: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2)


def binary(pixels: np.ndarray, labels: list[int]) -> bytes:
    return np.concatenate((np.array(labels, np.uint8)[:, None], pixels), axis=1).tobytes()


def unpacked(folder: Path, kind: str = "python", records: int = FEW, written: Callable[[np.ndarray, list[int]], bytes] | None = None) -> Path:
    """The folder that an archive unpacks to, in `folder`."""
    out = folder / FOLDERS[kind]
    out.mkdir(parents=True)
    write = written or (python_2 if kind == "python" else binary)
    for i, (pixels, labels) in enumerate(zip(*drawn(records), strict=True), start=1):
        (out / f"data_batch_{i}{'.bin' if kind == 'binary' else ''}").write_bytes(write(pixels, labels.tolist()))
    (out / "batches.meta").write_bytes(b"names")
    return out


def packed(folder: Path, kind: str = "python") -> Path:
    """The archive itself, in `folder`."""
    path = folder / f"cifar-10-{kind}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.add(unpacked(folder / "unpacked", kind), FOLDERS[kind])
    return path


def check(place: Path, records: int = FEW) -> None:
    pixels, labels = drawn(records)
    pictures, found = read_cifar(place, records)
    assert pictures.shape == (5 * records, 32, 32, 3)
    assert pictures.dtype == np.uint8
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, labels.reshape(-1))
    some = slice(None, None, max(1, records // 100))  # of 50,000, every hundredth
    np.testing.assert_array_equal(pictures[some].transpose(0, 3, 1, 2).reshape(-1, VALUES), pixels.reshape(-1, VALUES)[some])


def refused(place: Path, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_cifar(place, FEW)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_wherever_it_lies(kind: str, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    archive, folder = packed(tmp_path / "packed", kind), unpacked(tmp_path / "plain", kind)
    for place in (archive, archive.parent, folder, folder.parent):
        check(place)
    (tmp_path / "bare.tar").write_bytes(gzip.decompress(archive.read_bytes()))
    check(tmp_path / "bare.tar")


def test_pickled_by_python_3(tmp_path: Path) -> None:
    check(unpacked(tmp_path, written=python_3))


@pytest.mark.parametrize("kind", ["python", "binary"])
def test_files_of_their_true_size(kind: str, tmp_path: Path) -> None:
    check(unpacked(tmp_path, kind, RECORDS), RECORDS)


def test_the_pickles_drawn_here_are_pickles(tmp_path: Path) -> None:
    """Else reading them would show nothing."""
    pixels, labels = drawn(3)
    found = pickle.loads(python_2(pixels[0], labels[0].tolist()), encoding="bytes")
    np.testing.assert_array_equal(found[b"data"], pixels[0])
    assert found[b"labels"] == labels[0].tolist()


class Calls:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, what: Callable[..., object], *given: object) -> None:
        self.what, self.given = what, given

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.what, self.given


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(("what", "name"), [(os.system, "system"), (subprocess.Popen, "Popen"), (eval, "eval")])
def test_a_pickle_that_runs_something_is_refused(what: Callable[..., object], name: str, protocol: int, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    command = f"open({str(ran)!r}, 'w')" if what is eval else f"touch {ran}"
    folder = unpacked(tmp_path)
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Calls(what, command), b"labels": []}, protocol=protocol))
    refused(folder, "data_batch_3", name, "not run")
    assert not ran.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02}q\x01(U\x04data",  # ends early
        b"\x80\x02]q\x01.",  # a list
        b"\x80\x02r\xff\xff\xff\x7f.",  # a place in the memo that C's reader would make 32 GB for
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",  # bytes longer than any memory
        b"cnumpy\nndarray\n" + b"(U\x01xU\x01yub.",  # changes a name itself
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        b"\x80\x02cnumpy\ndtype\n)\x81.",
        b"not a pickle at all",
    ],
)
def test_a_damaged_pickle_is_one_line(data: bytes, tmp_path: Path) -> None:
    folder = unpacked(tmp_path)
    (folder / "data_batch_2").write_bytes(data)
    refused(folder, "data_batch_2", "fetch")


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("label", [10, 255])
def test_a_label_above_nine(kind: str, label: int, tmp_path: Path) -> None:
    folder, (pixels, labels) = unpacked(tmp_path, kind), drawn(FEW)
    write = python_2 if kind == "python" else binary
    (folder / f"data_batch_4{'.bin' if kind == 'binary' else ''}").write_bytes(write(pixels[3], [*labels[3, 1:].tolist(), label]))
    refused(folder, "data_batch_4", f"a label is {label}", "0 to 9")


def test_other_counts_and_kinds(tmp_path: Path) -> None:
    folder, (pixels, labels) = unpacked(tmp_path), drawn(FEW)
    right = labels[0].tolist()
    wrong = [
        (python_2(pixels[0, 1:], right), "20 x 3,072"),
        (python_2(pixels[0], right[1:]), "20 whole numbers"),
        (python_3(pixels[0].view(np.int8), right), "20 x 3,072"),
        (python_3(pixels[0], [*right[1:], -1]), "a label is -1"),
        (python_3(pixels[0], [*right[1:], 2**200]), "a huge number"),
        (python_3(pixels[0], [str(label) for label in right]), "whole numbers"),  # type: ignore[misc]
        (pickle.dumps({b"fine_labels": right}), "20 x 3,072"),
    ]
    for data, words in wrong:
        (folder / "data_batch_1").write_bytes(data)
        refused(folder, "data_batch_1", words, "fetch it again")
    np.testing.assert_array_equal(read_one(folder, python_3(np.asfortranarray(pixels[0]), right)), pixels[0])


def read_one(folder: Path, data: bytes) -> np.ndarray:
    """Pixels of the first file as written."""
    (folder / "data_batch_1").write_bytes(data)
    return read_cifar(folder, FEW)[0][:FEW].transpose(0, 3, 1, 2).reshape(FEW, VALUES)


def test_short_and_missing_files(tmp_path: Path) -> None:
    folder = unpacked(tmp_path, "binary")
    whole = (folder / "data_batch_5.bin").read_bytes()
    (folder / "data_batch_5.bin").write_bytes(whole[:-1])
    refused(folder, "data_batch_5.bin", "61,459 bytes", "61,460")
    (folder / "data_batch_5.bin").write_bytes(whole * 9)
    refused(folder, "data_batch_5.bin", "553,140 bytes, more than")
    (folder / "data_batch_5.bin").unlink()
    refused(folder, "no data_batch_5.bin")
    os.mkfifo(folder / "data_batch_5.bin")
    refused(folder, "not a regular file")
    refused(tmp_path / "nowhere", "is not there")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither cifar-10-python.tar.gz nor cifar-10-batches-py/ nor cifar-10-binary.tar.gz")


def test_damaged_archives(tmp_path: Path) -> None:
    archive = packed(tmp_path)
    whole = archive.read_bytes()
    for data, words in (
        (whole[: len(whole) // 2], "damaged"),
        (whole[:100] + bytes(50) + whole[150:], "damaged"),
        (b"\x1f\x8bnonsense", "damaged"),
        (b"nonsense", "damaged"),
        (gzip.compress(bytes(1 << 23), 1), "more than"),  # unpacks to more than six files
    ):
        archive.write_bytes(data)
        refused(archive, words)
    for names, words in ((["data_batch_1", "data_batch_2"], "no data_batch_3"), (["train"], "is not CIFAR-10")):
        with tarfile.open(archive, "w:gz") as tar:
            for name in names:
                tar.addfile(tarfile.TarInfo(f"cifar/{name}"), io.BytesIO())
        refused(archive, words)
