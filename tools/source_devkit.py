"""The devkit of a year's challenge: which classes there are, in which order, and the labels of the validation pictures."""

from __future__ import annotations

import io
import tarfile
import zlib
from pathlib import Path

from pipeline.errors import InputError
from pipeline.manifest import ClassEntry
from tools.source_entries import class_table

META = "meta.mat"


def ground_truth(year: int) -> str:
    return f"ILSVRC{year}_validation_ground_truth.txt"


def read_devkit(path: Path, year: int) -> tuple[tuple[ClassEntry, ...], list[int]]:
    """Class table in sorted-wnid order, and the devkit's class number of each validation picture in file-name order.

    path: the devkit's archive, or the folder that it was unpacked to. Raises InputError.
    """
    import scipy.io  # not above: of all sources only this one needs it, and every worker process would load it
    from scipy.io.matlab import MatReadError

    wanted = (META, ground_truth(year))
    found = _from_folder(path, wanted) if path.is_dir() else _from_archive(path, wanted)
    for base in wanted:
        if base not in found:
            raise InputError(f"{path} has no data/{base}; download the devkit of ILSVRC{year} again")
    try:
        truth = [int(line) for line in found[ground_truth(year)].split()]
        synsets = scipy.io.loadmat(io.BytesIO(found[META]), squeeze_me=True)["synsets"]
        leaves = [(str(s["WNID"]), int(s[f"ILSVRC{year}_ID"]), str(s["words"])) for s in synsets.reshape(-1) if int(s["num_children"]) == 0]
    except (ValueError, KeyError, TypeError, IndexError, zlib.error, MatReadError) as error:
        raise InputError(f"{path}: {META} or {ground_truth(year)} cannot be read ({error}); download it again") from None
    if len({wnid for wnid, _, _ in leaves}) != len(leaves):
        raise InputError(f"{path}: {META} has a class twice; download it again")
    words, ids = {wnid: words for wnid, _, words in leaves}, {wnid: number for wnid, number, _ in leaves}
    return class_table(words, words, ids), truth


def read_labels(path: Path) -> list[int]:
    """Class numbers, one a line, as in ILSVRC2010_test_ground_truth.txt. Raises InputError."""
    try:
        return [int(line) for line in path.read_bytes().split()]
    except ValueError as error:
        raise InputError(f"{path}: {error}; it should have one class number a line: fetch it again") from None


def _from_folder(folder: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    return {base: (folder / "data" / base).read_bytes() for base in wanted if (folder / "data" / base).is_file()}


def _from_archive(path: Path, wanted: tuple[str, ...]) -> dict[str, bytes]:
    """Gzipped or not: macOS unpacks the first layer without a word."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                base = member.name.rsplit("/", 1)[-1]
                if base in wanted and member.isfile():
                    file = tar.extractfile(member)
                    assert file is not None, f"{member.name} is a file"
                    found[base] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: {error}; download it again") from None
    return found
