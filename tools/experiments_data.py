"""The pictures of tools/experiments.py: a tar's, and by links to them its classes in two halves, and a tenth of the second half's."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError

SPLITS = ("train", "val")
FEW = 10  # one in so many training pictures


def lay_out(tar: Path, out: Path) -> None:
    """Make out/all, first, second and few, each with train/CLASS/ and val/CLASS/; what is there already is kept. Raises InputError."""
    if not (out / "all").is_dir():
        making = out / "making"
        shutil.rmtree(making, ignore_errors=True)  # of a call that was stopped
        making.mkdir(parents=True)
        unpack(tar, making)
        class_folders(making)
        making.rename(out / "all")
    classes = class_folders(out / "all")
    halves = {"first": classes[: len(classes) // 2], "second": classes[len(classes) // 2 :]}
    for name, some in halves.items():
        for split in SPLITS:
            for one in some:
                link(out / name / split / one, out / "all" / split / one)
    for one in halves["second"]:
        link(out / "few" / "val" / one, out / "all" / "val" / one)
        pictures = sorted(path.name for path in (out / "all" / "train" / one).iterdir())
        for picture in pictures[: max(1, len(pictures) // FEW)]:
            link(out / "few" / "train" / one / picture, out / "all" / "train" / one / picture)


def link(path: Path, to: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_symlink():
        path.symlink_to(to.resolve())


def unpack(tar: Path, to: Path) -> None:
    """Write the pictures .../SPLIT/CLASS/PICTURE of a tar to to/SPLIT/CLASS/PICTURE. Raises InputError."""
    try:
        with tarfile.open(tar) as opened:
            for member in opened:
                *_, split, name, picture = ("", "", *PurePosixPath(member.name).parts)
                if split not in SPLITS or not member.isfile() or ".." in (name, picture):
                    continue
                (to / split / name).mkdir(parents=True, exist_ok=True)
                file = opened.extractfile(member)
                assert file is not None, f"{member.name} is a file"
                (to / split / name / picture).write_bytes(file.read())
    except (tarfile.TarError, EOFError, FileNotFoundError, IsADirectoryError, gzip.BadGzipFile, zlib.error) as error:
        why = " ".join(str(error).split())
        raise InputError(f"--tiny {tar} is no whole tar ({why}); give one that holds train/CLASS/PICTURE and val/CLASS/PICTURE") from None


def class_folders(pictures: Path) -> list[str]:
    """Names of the classes, sorted. Raises InputError for fewer than make two halves of two, and where a split lacks one."""
    found = {split: sorted(path.name for path in (pictures / split).glob("*")) for split in SPLITS}
    if len(found["train"]) < 4 or found["train"] != found["val"]:
        counts = ", ".join(f"{len(names)} in {split}/" for split, names in found.items())
        raise InputError(f"--tiny must hold the same classes, four or more, in train/CLASS/ and val/CLASS/, not {counts}; give another tar")
    return found["train"]
