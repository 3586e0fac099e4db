"""MD5 of the official archives, against those that image-net.org publishes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import InputError
from tools.source_archives import CHALLENGE_2010, CHALLENGE_2012
from tools.source_tar import bytes_bar

PUBLISHED = {
    "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
    "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
    "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
    "ILSVRC2012_img_test.tar": "fe64ceb247e473635708aed23ab6d839",
    "ILSVRC2012_img_test_v10102019.tar": "e1b8681fff3d63731c599df9b4b6fc02",
}
_OFFICIAL = {*CHALLENGE_2012.files, *CHALLENGE_2010.files}
_BLOCK = 1 << 22


def verify_sums(path: Path, published: dict[str, str] = PUBLISHED) -> Iterator[str]:
    """One line for each official archive in a folder, or beside a file: its MD5 is right, or none is published.

    Raises InputError for one whose MD5 is wrong. Reads every byte of them.
    """
    folder = path if path.is_dir() else path.parent
    there = sorted(found for found in folder.iterdir() if found.name in _OFFICIAL and found.is_file())
    if not there:
        yield f"{folder} has no official archive: there is no published MD5 to compare with"
    for found in there:
        if found.name not in published:
            yield f"no published MD5 is known for {found.name}"
            continue
        md5, right = _md5(found), published[found.name]
        if md5 != right:
            raise InputError(f"{found}: its MD5 is {md5}, not {right}: the download is damaged; fetch it again")
        yield f"{found.name}: MD5 is right"


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file, bytes_bar(path.stat().st_size, f"MD5 of {path.name}") as bar:
        while block := file.read(_BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
