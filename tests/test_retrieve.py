"""The command that finds nearest pictures: features of a split on disk, what it prints and draws, and what it refuses."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import one_line
from damages import flip_bit
from PIL import Image
from training import here

from model import retrieve, retrieve_table
from model.evaluate import load_net
from model.retrieve_features import Clock, Features, Origin, checkpoint_digest, open_features, saved_features, write_features
from model.retrieve_index import exact, nearest
from model.retrieve_table import questions
from pipeline import Augmentation, ImageLoader, InputError

TRAIN, VAL, WIDTH = 48, 20, 16  # pictures of the toy, and values of its net's fc7


def run(finished: Path, shards: Path, *more: object) -> subprocess.CompletedProcess[str]:
    words = ["--checkpoint", finished / "checkpoints" / "best", "--shards", shards, *more]
    return here(retrieve.main, [str(word) for word in words])


@pytest.fixture(autouse=True)
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each search is timed once, however short."""
    monkeypatch.setattr(retrieve_table, "LEAST_S", 0.0)


@pytest.fixture(scope="module")
def told(finished: Path, made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What a first call wrote, and what it said."""
    out = tmp_path_factory.mktemp("retrieval") / "out"
    ran = run(finished, made_shards, "--out", out, "--codes", 32)
    assert ran.returncode == 0, ran.stderr
    return out, ran.stdout


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("val", VAL)])
@torch.no_grad()
def test_features_are_those_of_a_plain_forward_pass(finished: Path, made_shards: Path, told: tuple[Path, str], split: str, count: int) -> None:
    net, recipe, _ = load_net(finished / "checkpoints" / "best")
    fired: list[torch.Tensor] = []
    net.get_submodule("fc7").register_forward_hook(lambda module, given, out: fired.append(out))
    loader = ImageLoader(made_shards, split, batch=count, views="centre", augmentation=Augmentation(crop=recipe.model.input))  # type: ignore[arg-type]
    batch = next(iter(loader))
    net.eval()(batch.images)
    features, _ = open_features(told[0], split, "fc7")
    assert isinstance(features.values, np.memmap)
    assert features.values.dtype == np.float32
    np.testing.assert_array_equal(features.ids, np.arange(count))
    np.testing.assert_array_equal(features.labels, batch.labels)
    torch.testing.assert_close(torch.tensor(features.values), F.relu(fired[0]), rtol=1e-5, atol=1e-6)


def test_a_second_call_takes_what_is_there(finished: Path, made_shards: Path, told: tuple[Path, str]) -> None:
    out, first = told
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")}
    ran = run(finished, made_shards, "--out", out, "--codes", 32)
    assert ran.stdout.count("there already") == 2
    assert first.count("images/s") == 2
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("*-*")} == before


def written(finished: Path, shards: Path, folder: Path, **more: Any) -> tuple[Features, Origin]:
    """Features of the validation split, as the command writes them, and what they are of."""
    net, recipe, content = load_net(finished / "checkpoints" / "best")
    loader = ImageLoader(shards, "val", batch=8, augmentation=Augmentation(crop=recipe.model.input), **more)
    origin = Origin("val", "fc7", checkpoint_digest(content), loader.shards.digest)
    return write_features(net, loader, folder, origin)[0], origin


def test_those_of_another_checkpoint_are_made_anew(finished: Path, made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".val-fc7.npy.1-00.tmp").write_bytes(b"of a killed process")
    features, origin = written(finished, made_shards, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))
    there = saved_features(tmp_path, origin)
    assert there is not None
    np.testing.assert_array_equal(there.values, features.values)
    assert saved_features(tmp_path, Origin("train", "fc7", origin.checkpoint, origin.shards)) is None
    assert not capsys.readouterr().err
    assert saved_features(tmp_path, Origin("val", "fc7", "0" * 64, origin.shards)) is None
    assert capsys.readouterr().err == f"made anew: the features of the val split in {tmp_path} are of another checkpoint\n"


@pytest.mark.parametrize("damage", ["shorter", "no ids", "json"])
def test_damaged_ones_are_not_taken(told: tuple[Path, str], tmp_path: Path, damage: str) -> None:
    for path in told[0].glob("val-fc7*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if damage == "shorter":
        (tmp_path / "val-fc7.npy").write_bytes((tmp_path / "val-fc7.npy").read_bytes()[:-64])
    elif damage == "no ids":
        np.save(tmp_path / "val-fc7-ids.npy", np.arange(3))
    else:
        (tmp_path / "val-fc7.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="the val split"):
        open_features(tmp_path, "val", "fc7")
    with pytest.raises(InputError, match="no features"):
        open_features(tmp_path, "val", "fc6")


def test_a_bad_picture_stops_it_or_is_left_out(finished: Path, shards: Path, tmp_path: Path) -> None:
    flip_bit(shards, "val", 7)
    one_line(run(finished, shards, "--out", tmp_path, "--split", "val"), "sample")
    assert not list(tmp_path.glob("*val*"))
    features, _ = written(finished, shards, tmp_path, on_bad_sample="skip")
    assert features.ids.tolist() == [i for i in range(VAL) if i != 7]
    assert len(features.labels) == len(features.values) == VAL - 1
    assert (tmp_path / "val-fc7.npy").stat().st_size == 128 + (VAL - 1) * WIDTH * 4


def test_a_net_that_came_apart_is_refused(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    net, recipe, _ = load_net(finished / "checkpoints" / "best")
    with torch.no_grad():
        net.get_parameter("fc7.bias")[3] = torch.nan
    loader = ImageLoader(made_shards, "val", batch=8, augmentation=Augmentation(crop=recipe.model.input))
    with pytest.raises(InputError, match="came apart"):
        write_features(net, loader, tmp_path, Origin("val", "fc7", "a", "b"))
    assert not list(tmp_path.iterdir())


def test_the_clock_leaves_out_the_first_batch(made_shards: Path) -> None:
    clock = Clock()
    batches = list(clock.of(ImageLoader(made_shards, "val", batch=8)))
    assert [len(batch.ids) for batch in batches] == [8, 8, 4]
    assert clock.images == 12
    assert 0 < clock.waited <= clock.seconds


def test_a_picture_is_nearest_to_itself(told: tuple[Path, str]) -> None:
    values = open_features(told[0], "train", "fc7")[0].values
    far, rows = nearest(values, np.array(values), 6)
    assert (far[:, 0] == 0).all()
    same_as_first = (values[rows[:, 0]] == values).all(axis=1)
    assert same_as_first.all()
    asked = questions(Features(values, np.arange(TRAIN), np.zeros(TRAIN)), True, 0)
    found = asked.ask(exact(values))
    assert found.shape == (TRAIN, 6)
    assert not (found == np.arange(TRAIN)[:, None]).any()


def test_the_table_that_is_printed_is_written(told: tuple[Path, str]) -> None:
    out, said = told
    about = json.loads((out / "retrieval.json").read_text())
    rows = {row["method"]: row for row in about["methods"]}
    assert (about["pictures"], about["queries"], about["k"], about["bits"]) == (TRAIN, VAL, 6, 32)
    assert about["extraction"]["train"]["timed_images"] == TRAIN - 8
    assert all(method in said for method in rows)
    assert rows["exact, features"]["bytes_a_picture"] == 4 * WIDTH
    assert rows["exact, features"]["gb_of_imagenet"] == round(1_281_167 * 64 / 1e9, 3)
    assert rows["autoencoder, 32 bits"]["bytes_a_picture"] == 4
    # One list, and a shortlist of all pictures, miss none.
    assert [rows[name]["recall"] for name in ("exact, features", "inverted file, 1 of 1 lists", "the same, best 100 by features")] == [1, 1, 1]
    assert all(row["queries_a_second"] > 0 for row in rows.values())


def test_the_sheet_and_the_map_are_drawn(told: tuple[Path, str]) -> None:
    sheet, plane = (np.asarray(Image.open(told[0] / name).convert("RGB")) for name in ("neighbours.png", "map.png"))
    assert abs(sheet.shape[0] - 2120) <= 1  # eight lines of a picture and its words
    assert sheet.shape[1] == 1600
    assert plane.shape == (1120, 1600, 3)
    for drawn in (sheet, plane):
        assert len(np.unique(drawn.astype(int) @ [1, 256, 65536])) > 50


# --- what cannot be


@pytest.mark.parametrize(("package", "name"), [("faiss", "faiss"), ("sklearn.manifold", "scikit-learn")])
def test_a_library_is_missing(finished: Path, made_shards: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    one_line(run(finished, made_shards), name, "pip install")


@pytest.mark.parametrize("bits", [0, -8, 20, 2048])
def test_codes_in_whole_bytes_only(finished: Path, made_shards: Path, bits: int) -> None:
    one_line(run(finished, made_shards, "--codes", bits), "multiple of 8", str(bits))


def test_other_classes(finished: Path, shards: Path, tmp_path: Path) -> None:
    from pipeline.manifest import classes_digest, read_manifest, write_manifest

    manifest, _ = read_manifest(shards)
    classes = tuple(entry.model_copy(update={"wnid": f"n{entry.index:08d}"}) for entry in manifest.classes)
    write_manifest(shards, manifest.model_copy(update={"classes": classes, "classes_sha256": classes_digest(classes)}))
    one_line(run(finished, shards, "--out", tmp_path), "other classes", str(shards))


def test_a_split_without_pictures_and_one_that_is_not_there(finished: Path, shards: Path, tmp_path: Path) -> None:
    one_line(run(finished, shards, "--out", tmp_path, "--split", "test"), "no test split")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["val"] = {"samples": 0, "shards": []}
    (shards / "manifest.json").write_text(json.dumps(manifest))
    one_line(run(finished, shards, "--out", tmp_path), "no pictures in its val split")


def test_a_place_that_cannot_be_written_to(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_line(run(finished, made_shards, "--out", tmp_path / "file"), str(tmp_path / "file"))
    one_line(run(finished, made_shards, "--out", tmp_path / "file" / "below"), "file")


def test_two_at_a_time_in_one_folder(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    with open(tmp_path / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line(run(finished, made_shards, "--out", tmp_path), "another model.retrieve", str(tmp_path))


def test_no_checkpoint_and_no_room(finished: Path, made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_line(run(tmp_path, made_shards, "--out", tmp_path / "o"), "there is no checkpoint")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=500))
    one_line(run(finished, made_shards, "--out", tmp_path / "o"), "free space")
