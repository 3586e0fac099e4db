"""The tool as users run it: archives and class folders in, shards out; odd, broken and interrupted input."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import CLASSES, ROOT, TRAIN, VAL, files_of, one_line, run_command, run_here, shard_files
from PIL import Image

from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet
from tools import compute_pca, make_shards


def make(source: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """The tool in this process, with one worker."""
    return run_here(make_shards.main, "--source", source, "--out", out, "--workers", 1, *more)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A tree of two classes with awkward names and four pictures each."""
    root = tmp_path / "source"
    for split, count in (("train", 4), ("val", 1)):
        for label, name in enumerate(("b class", "a.class")):
            (root / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = np.full((40, 50, 3), 60 * label + 10 * k, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"pic {k}.v1.jpg", "JPEG")
    return root


def test_archives_end_to_end(archives: Path, made_shards: Path) -> None:
    """Labels are sorted-wnid indexes, through the devkit's own numbering; every picture is there once."""
    manifest, _ = read_manifest(made_shards)
    wnids = [entry.wnid for entry in manifest.classes]
    assert wnids == sorted(wnids)
    assert [entry.ilsvrc_id for entry in manifest.classes] != list(range(1, CLASSES + 1))
    assert (manifest.splits["train"].samples, manifest.splits["val"].samples) == (CLASSES * TRAIN, CLASSES * VAL)

    with tarfile.open(archives / "ILSVRC2012_devkit_t12.tar.gz") as tar:
        names = {Path(name).name: name for name in tar.getnames()}
        meta, truth = tar.extractfile(names["meta.mat"]), tar.extractfile(names["ILSVRC2012_validation_ground_truth.txt"])
        assert meta is not None
        assert truth is not None
        wnid_of = {int(s["ILSVRC2012_ID"]): str(s["WNID"]) for s in scipy.io.loadmat(io.BytesIO(meta.read()), squeeze_me=True)["synsets"]}
        val_wnids = [wnid_of[int(line)] for line in truth.read().split()]
    val = ShardSet(made_shards, "val")
    found = {val.place(i)[1]: wnids[val.read(i)[1]] for i in range(len(val))}
    assert found == {f"ILSVRC2012_val_{k:08d}": wnid for k, wnid in enumerate(val_wnids, 1)}
    train = ShardSet(made_shards, "train")
    for i in range(len(train)):
        assert wnids[train.read(i)[1]] == train.place(i)[1].split("_")[0]
    assert len({train.place(i)[1] for i in range(len(train))}) == len(train)


def test_samples_are_mixed(made_shards: Path) -> None:
    train = ShardSet(made_shards, "train")
    labels = [train.read(i)[1] for i in range(len(train))]
    assert labels != sorted(labels)
    assert len(set(labels[:8])) > 1


def test_same_bytes_for_any_workers_and_other_bytes_for_another_seed(archives: Path, made_shards: Path, tmp_path: Path) -> None:
    """One worker; the shards to compare with are of two."""
    for seed in (0, 5):
        made = make(archives, tmp_path / f"seed{seed}", "--shard-size", 8, "--seed", seed)
        assert made.returncode == 0, made.stderr
    assert shard_files(tmp_path / "seed0") == shard_files(made_shards)
    assert shard_files(tmp_path / "seed5") != shard_files(made_shards)


def test_a_second_run_does_nothing_and_other_settings_are_refused(archives: Path, shards: Path, folders: Path) -> None:
    before = files_of(shards)
    again = make(archives, shards, "--shard-size", 8)
    assert again.returncode == 0, again.stderr
    assert "finished already" in again.stdout
    one_line(make(archives, shards, "--shard-size", 8, "--quality", 80), "quality", "90", "80")
    one_line(make(folders, shards, "--shard-size", 8), "another source")
    assert files_of(shards) == before


def test_class_folders_with_awkward_names(folders: Path, tmp_path: Path) -> None:
    source_before = sorted(path.stat().st_mtime_ns for path in folders.rglob("*"))
    made = make(folders, tmp_path / "out")
    assert made.returncode == 0, made.stderr
    manifest, _ = read_manifest(tmp_path / "out")
    assert [entry.wnid for entry in manifest.classes] == ["a.class", "b class"]
    train = ShardSet(tmp_path / "out", "train")
    keys = [train.place(i)[1] for i in range(8)]
    assert len(set(keys)) == 8
    assert not any("." in key or " " in key for key in keys)
    for i in range(8):
        jpeg, label = train.read(i)
        grey = np.asarray(Image.open(io.BytesIO(jpeg.tobytes()))).mean()
        assert (grey < 45) == (label == 1)  # "b class" was drawn dark
    assert sorted(path.stat().st_mtime_ns for path in folders.rglob("*")) == source_before


def test_bad_pictures_are_listed_and_the_exit_code_says_so(folders: Path, tmp_path: Path) -> None:
    (folders / "train" / "a.class" / "empty.jpg").write_bytes(b"")
    good = (folders / "train" / "a.class" / "pic 0.v1.jpg").read_bytes()
    (folders / "train" / "a.class" / "cut.jpg").write_bytes(good[: len(good) // 2])
    command = ("tools/make_shards.py", "--source", folders, "--out", tmp_path / "out")
    one_line(run_command(*command), "2 rejected", "--allow-failures 2")
    manifest, _ = read_manifest(tmp_path / "out")
    assert [(r.split, r.name) for r in manifest.rejected] == [("train", "a.class/cut.jpg"), ("train", "a.class/empty.jpg")]
    assert "empty" in manifest.rejected[1].reason
    assert manifest.splits["train"].samples == 8
    assert make(folders, tmp_path / "out", "--allow-failures", 2).returncode == 0
    assert make(folders, tmp_path / "out", "--allow-failures", 1).returncode == 1


def test_no_source(tmp_path: Path) -> None:
    result = run_command(ROOT / "tools" / "make_shards.py", cwd=tmp_path)
    one_line(result, "image-net.org", "make demo")
    assert list(tmp_path.iterdir()) == []


def damaged(archives: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(archives, tmp_path / "damaged"))


def test_truncated_archives_are_named_with_the_byte(archives: Path, tmp_path: Path) -> None:
    source = damaged(archives, tmp_path)
    for name in ("ILSVRC2012_img_val.tar", "ILSVRC2012_img_train.tar"):
        whole = (source / name).stat().st_size
        os.truncate(source / name, whole // 2 + 100)
        one_line(make(source, tmp_path / "out"), name, "incomplete", "fetch it again")
        shutil.copy(archives / name, source / name)
    with tarfile.open(source / "ILSVRC2012_img_val.tar") as tar:
        last = tar.getmembers()[-1]
    os.truncate(source / "ILSVRC2012_img_val.tar", last.offset)  # cut exactly between two members
    one_line(make(source, tmp_path / "out"), "ILSVRC2012_img_val.tar", "no end-of-archive")
    assert not (tmp_path / "out").exists()


def rewrite_tar(path: Path, change: Callable[[list[tarfile.TarInfo]], list[tarfile.TarInfo]]) -> None:
    """Write a tar again with other members."""
    with tarfile.open(path) as tar:
        content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        members = change(tar.getmembers())
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(content[member.name]))


def test_members_missing_or_twice_are_not_guessed_at(archives: Path, tmp_path: Path) -> None:
    """One validation picture twice in place of another: the count is right, and most labels would be wrong."""
    source = damaged(archives, tmp_path)
    rewrite_tar(source / "ILSVRC2012_img_val.tar", lambda members: [members[0], *members[:-1]])
    one_line(make(source, tmp_path / "out"), "ILSVRC2012_img_val.tar", "stands where picture 00000002 should be")
    shutil.copy(archives / "ILSVRC2012_img_val.tar", source)
    rewrite_tar(source / "ILSVRC2012_img_train.tar", lambda members: [*members, members[0]])
    one_line(make(source, tmp_path / "out"), "ILSVRC2012_img_train.tar", "there twice")
    rewrite_tar(source / "ILSVRC2012_img_train.tar", lambda members: members[1:-1])
    one_line(make(source, tmp_path / "out"), "ILSVRC2012_img_train.tar", "lacks 1 of the devkit's 4 classes")
    assert not (tmp_path / "out").exists()


def test_what_stands_in_class_folders_but_is_no_file(folders: Path, tmp_path: Path) -> None:
    odd = folders / "train" / "b class" / "link.jpg"
    odd.symlink_to("nowhere.jpg")
    one_line(make(folders, tmp_path / "out"), "link.jpg", "broken link")
    odd.unlink()
    (folders / "train" / "empty class").mkdir()
    one_line(make(folders, tmp_path / "out"), "empty class is empty")
    (folders / "train" / "empty class").rmdir()
    awkward = os.fsencode(folders / "train" / "b class") + b"/caf\xe9\nx.jpg"
    with open(awkward, "wb") as file:
        file.write(b"no picture")
    result = make(folders, tmp_path / "out", "--allow-failures", 1)
    assert result.returncode == 0, result.stderr
    assert [r.name for r in read_manifest(tmp_path / "out")[0].rejected] == ["b class/caf\\xe9\\nx.jpg"]
    one_line(make(folders, odd.parent / "pic 0.v1.jpg"), "pic 0.v1.jpg")


def test_defaults_and_imagenet_dir(folders: Path, tmp_path: Path) -> None:
    """The commands as the README has them: data/ -> shards/, and $IMAGENET_DIR."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "data").symlink_to(folders)
    made = run_command(ROOT / "tools" / "make_shards.py", cwd=place)
    assert made.returncode == 0, made.stderr
    computed = run_command(ROOT / "tools" / "compute_pca.py", cwd=place)
    assert computed.returncode == 0, computed.stderr
    assert {"train-000000.tar", "manifest.json", "pca.json", "mean.npy"} <= {path.name for path in (place / "shards").iterdir()}
    (place / "data").unlink()
    script = (
        f"import os, runpy, sys; os.environ['IMAGENET_DIR'] = {str(folders)!r}; sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    again = run_command("-c", script, ROOT / "tools" / "make_shards.py", cwd=place)
    assert "finished already" in again.stdout, again.stderr


def test_missing_parts_and_unknown_folders(archives: Path, folders: Path, tmp_path: Path) -> None:
    source = damaged(archives, tmp_path)
    (source / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    out = tmp_path / "out"
    one_line(make(source, out), "ILSVRC2012_devkit_t12.tar.gz")
    one_line(make(tmp_path / "nowhere", out), "is not there")
    one_line(make(folders / "val", out), "train/CLASS/")
    Image.new("RGB", (30, 30)).save(folders / "val" / "ILSVRC2012_val_00000001.JPEG")
    one_line(make(folders, out), "ILSVRC2012_val_00000001.JPEG", "class folders")
    one_line(make(folders, out, "--quality", 0), "--quality", "95")


def test_dry_run_says_all_and_writes_nothing(archives: Path, tmp_path: Path) -> None:
    result = make(archives, tmp_path / "out", "--dry-run", "--workers", 2)
    assert result.returncode == 0, result.stderr
    total = CLASSES * (TRAIN + VAL)
    for words in ("ilsvrc2012-archives", f"{CLASSES} classes of 2012", f"all {total} will take about", "MB of the", "2 processes of this machine"):
        assert words in result.stdout
    assert not (tmp_path / "out").exists()


def test_sums_taken_in_the_same_pass(shards: Path, tmp_path: Path) -> None:
    """compute_pca has nothing to decode, and says what a decoding says but for the JPEGs' loss."""
    for name in ("pca.json", "mean.npy"):
        (shards / name).unlink()
    for path in shards.glob("train-*.tar"):  # what is not read cannot be missed
        path.rename(path.with_suffix(".away"))
        path.write_bytes(b"x" * path.with_suffix(".away").stat().st_size)
    quick = run_here(compute_pca.main, "--shards", shards)
    assert quick.returncode == 0, quick.stderr
    assert "before encoding" in quick.stdout
    taken, mean = json.loads((shards / "pca.json").read_text()), np.load(shards / "mean.npy")
    for path in shards.glob("train-*.tar"):
        path.with_suffix(".away").rename(path)
    assert "has its colour statistics already" in run_here(compute_pca.main, "--shards", shards, "--workers", 1).stdout
    decoded = run_here(compute_pca.main, "--shards", shards, "--decode", "--workers", 1)
    assert decoded.returncode == 0, decoded.stderr
    exact = json.loads((shards / "pca.json").read_text())
    assert (taken["taken"], exact["taken"]) == ("before-encoding", "decoded")
    assert taken["images"] == exact["images"] == CLASSES * TRAIN
    np.testing.assert_allclose(taken["mean"], exact["mean"], atol=2e-3)
    np.testing.assert_allclose(taken["covariance"], exact["covariance"], rtol=0.05)
    assert np.abs(mean - np.load(shards / "mean.npy")).mean() < 1.0  # grey levels


def test_sums_of_other_shards_or_damaged_ones_are_not_believed(shards: Path) -> None:
    good = (shards / "sums.npz").read_bytes()
    (shards / "sums.npz").write_bytes(good[: len(good) // 2])
    assert "as decoded" in run_here(compute_pca.main, "--shards", shards, "--decode", "--workers", 1).stdout
    for name in ("pca.json", "mean.npy"):
        (shards / name).unlink()
    assert "as decoded" in run_here(compute_pca.main, "--shards", shards, "--workers", 1).stdout
