"""MD5 of the official archives."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pipeline.errors import InputError
from tools.source_sums import PUBLISHED, verify_sums


def test_sums(tmp_path: Path) -> None:
    val, devkit = tmp_path / "ILSVRC2012_img_val.tar", tmp_path / "ILSVRC2010_devkit-1.0.tar.gz"
    val.write_bytes(b"validation pictures" * 1_000_000)
    devkit.write_bytes(b"devkit")
    (tmp_path / "notes.txt").write_text("not an archive")
    right = {val.name: hashlib.md5(val.read_bytes()).hexdigest()}
    lines = [f"no published MD5 is known for {devkit.name}", f"{val.name}: MD5 is right"]
    assert list(verify_sums(tmp_path, right)) == lines
    assert list(verify_sums(val, right)) == lines
    with open(val, "r+b") as file:
        file.seek(1_234_567)
        file.write(b"!")
    with pytest.raises(InputError) as caught:
        list(verify_sums(tmp_path, right))
    for word in (str(val), hashlib.md5(val.read_bytes()).hexdigest(), right[val.name], "fetch it again"):
        assert word in str(caught.value)


def test_nothing_to_compare_with(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert list(verify_sums(tmp_path)) == [f"{tmp_path} has no official archive: there is no published MD5 to compare with"]


def test_a_toy_is_not_the_real_archive(archives: Path) -> None:
    with pytest.raises(InputError, match=PUBLISHED["ILSVRC2012_devkit_t12.tar.gz"]):
        list(verify_sums(archives))
