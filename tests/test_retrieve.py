"""Features of a split on disk, nearest pictures by them, short codes, and what is drawn of it all."""

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

from model import retrieve, retrieve_index, retrieve_table
from model.evaluate import load_net
from model.retrieve_codes import Coded, coded, hamming, learn, read_coded, reranked, write_coded
from model.retrieve_features import Clock, Features, Origin, checkpoint_digest, open_features, saved_features, write_features
from model.retrieve_index import exact, inverted_file, measured, nearest, probing
from model.retrieve_map import map_rows, placed
from model.retrieve_sheet import Shown, draw_sheet, shown_queries, write_png
from model.retrieve_table import Questions, compare, questions, recall, without
from pipeline import Augmentation, ImageLoader, InputError

CPU = torch.device("cpu")
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


def drawn(count: int, seed: int = 0, width: int = 64) -> np.ndarray:
    """Features that are a bent surface of six dimensions, and none below 0, as after ReLU."""
    weights = np.random.default_rng(99).normal(size=(6, width))
    return np.maximum(np.random.default_rng(seed).normal(size=(count, 6)) @ weights, 0).astype(np.float32)


def by_numpy(features: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    far = np.sqrt(((queries[:, None].astype(np.float64) - features[None]) ** 2).sum(axis=2))
    order = np.argsort(far, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(far, order, 1), order


# --- features


@pytest.mark.parametrize(("split", "count"), [("train", TRAIN), ("val", VAL)])
@torch.no_grad()
def test_features_are_those_of_a_plain_forward_pass(finished: Path, made_shards: Path, told: tuple[Path, str], split: str, count: int) -> None:
    net, recipe, _ = load_net(finished / "checkpoints" / "best")
    fired: list[torch.Tensor] = []
    net.fc7.register_forward_hook(lambda module, given, out: fired.append(out))
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
        net.fc7.bias[3] = torch.nan
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


# --- searches


@pytest.mark.parametrize("block", [7, 300, 1000])
def test_exact_search_is_that_of_numpy(block: int) -> None:
    features, queries = drawn(700), drawn(60, seed=1)
    features[5] = features[400]  # two at the same distance
    queries[0] = features[5]
    far, rows = nearest(features, queries, 6, block)
    want_far, want = by_numpy(features, queries, 6)
    np.testing.assert_array_equal(rows, want)
    np.testing.assert_allclose(far, want_far, rtol=1e-5, atol=1e-6)
    assert rows[0, :2].tolist() == [5, 400]


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


def test_own_row_is_left_out() -> None:
    found = np.array([[4, 2, 9], [7, 8, 1], [3, 5, 6]])
    np.testing.assert_array_equal(without(found, np.array([4, 8, 0])), [[2, 9], [7, 1], [3, 5]])


def test_measured_leaves_out_candidates_that_are_none() -> None:
    features = drawn(20)
    far, rows = measured(features, features[:1], np.array([[3, -1, 0]]), 2)
    assert rows.tolist() == [[0, 3]]
    assert far[0, 0] == 0


def test_inverted_file_finds_all_in_all_its_lists() -> None:
    features, queries = drawn(3000), drawn(50, seed=1)
    index = inverted_file(features, 0)
    truth = by_numpy(features, queries, 6)[1]
    shares = [recall(probing(index, lists)(queries, 6), truth) for lists in (1, 4, index.nlist)]
    assert index.nlist == 46
    assert 0.3 < shares[0] < shares[1] < shares[2] == 1


@pytest.mark.parametrize("count", [1, 4, 30])
def test_a_split_too_small_for_many_lists(count: int, capfd: pytest.CaptureFixture[str]) -> None:
    features = drawn(count)
    index = inverted_file(features, 0)
    assert index.nlist == 1
    assert probing(index, 1)(features, 1)[:, 0].tolist() == list(range(count))
    assert "WARNING" not in capfd.readouterr().err


def test_an_inverted_file_that_does_not_fit_is_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(retrieve_index, "free_memory", lambda: 1000.0)
    features = Features(drawn(200), np.arange(200), np.arange(200) % 4)
    rows = list(compare(features, questions(features, True, 0), coded(features.values, 16, 0, CPU), 0))
    assert not [row for row in rows if "inverted" in row.method]
    assert "left out: an inverted file" in capsys.readouterr().err


# --- codes


@pytest.fixture(scope="module")
def made() -> Coded:
    coder, lost = learn(drawn(3000), 64, 0, CPU, epochs=30)
    return Coded(coder, coder.codes(drawn(3000)), lost, 1.5)


def test_codes_are_short_and_find_neighbours(made: Coded) -> None:
    """Nearer than codes that learn nothing, and with features to put the best in order nearly all."""
    features, queries = drawn(3000), drawn(100, seed=1)
    assert made.codes.shape == (3000, 8)
    assert made.codes.dtype == np.uint8
    truth, search = by_numpy(features, queries, 6)[1], hamming(made)
    plain = recall(retrieve_table.hyperplanes(features, 64)(queries, 6), truth)
    learned, ordered = recall(search(queries, 6), truth), recall(reranked(search, features)(queries, 6), truth)
    assert 6 / 3000 < plain < learned < ordered
    assert ordered > 0.9


def test_hamming_distance_by_hand(made: Coded) -> None:
    queries = drawn(20, seed=1)
    apart = np.unpackbits(made.coder.codes(queries)[:, None] ^ made.codes[None], axis=2).sum(axis=2)
    found = hamming(made)(queries, 6)
    np.testing.assert_array_equal(np.take_along_axis(apart, found, 1), np.sort(apart, axis=1)[:, :6])


def test_learning_is_a_function_of_the_seed() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    (one, lost), (again, _), (other, _) = (learn(drawn(300), 16, seed, CPU, epochs=3) for seed in (1, 1, 2))
    features = drawn(50, seed=4)
    np.testing.assert_array_equal(one.codes(features), again.codes(features))
    assert (one.codes(features) != other.codes(features)).any()
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < lost < learn(drawn(300), 16, 1, CPU, epochs=1)[1]


@pytest.mark.parametrize("count", [1, 129])
def test_a_last_batch_of_one(count: int) -> None:
    assert coded(drawn(count), 8, 0, CPU).codes.shape == (count, 1)


def test_codes_are_read_back_only_where_they_belong(made: Coded, tmp_path: Path) -> None:
    origin = Origin("train", "fc7", "a" * 64, "b" * 64)
    write_coded(tmp_path, origin, 0, made)
    found = read_coded(tmp_path, origin, 64, 0)
    assert found is not None
    np.testing.assert_array_equal(found.codes, made.codes)
    np.testing.assert_array_equal(found.coder.codes(drawn(10, seed=5)), made.coder.codes(drawn(10, seed=5)))
    assert (found.lost, found.seconds) == (made.lost, made.seconds)
    assert read_coded(tmp_path, origin, 64, 1) is None
    assert read_coded(tmp_path, origin, 32, 0) is None
    assert read_coded(tmp_path, Origin("train", "fc7", "c" * 64, "b" * 64), 64, 0) is None
    path = tmp_path / "train-fc7-codes-64.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert read_coded(tmp_path, origin, 64, 0) is None


# --- the table, the sheet and the map


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


def test_recall_and_class_by_hand() -> None:
    features = Features(np.arange(8, dtype=np.float32)[:, None].repeat(8, 1), np.arange(8), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    asked = Questions(features.some(np.array([0, 7])), np.array([0, 7]))
    first = next(iter(compare(features, asked, coded(features.values, 8, 0, CPU), 0)))
    assert first.recall == 1
    assert first.same_class == 0.5  # of the six nearest to either end three
    assert recall(np.array([[1, 2, 3], [9, 5, 4]]), np.array([[1, 2, 3], [4, 5, 6]])) == pytest.approx(5 / 6)


def png(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def test_the_sheet_and_the_map_are_drawn(told: tuple[Path, str]) -> None:
    sheet, plane = png(told[0] / "neighbours.png"), png(told[0] / "map.png")
    assert abs(sheet.shape[0] - 2120) <= 1  # eight lines of a picture and its words
    assert sheet.shape[1] == 1600
    assert plane.shape == (1120, 1600, 3)
    for drawn in (sheet, plane):
        assert len(np.unique(drawn.astype(int) @ [1, 256, 65536])) > 50


def test_the_sheet_has_the_query_left_of_its_neighbours(tmp_path: Path) -> None:
    def plain(*colour: int) -> np.ndarray:
        return np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3))

    near = [Shown(plain(0, 0, 40 * i), "", str(i), i == 2) for i in range(6)]
    write_png(draw_sheet([(Shown(plain(255, 0, 0), "cat"), near), (Shown(plain(0, 255, 0), "dog"), near[:3])], ("q", "n")), tmp_path / "sheet.png")
    sheet = png(tmp_path / "sheet.png")
    middles = {(tuple(sheet[y, x])) for y in (150, 400) for x in range(120, 1600, 228)}
    assert tuple(sheet[150, 100]) == (255, 0, 0)
    assert tuple(sheet[400, 100]) == (0, 255, 0)
    assert {(0, 0, 40 * i) for i in range(6)} <= middles
    assert tuple(sheet[400, 1500]) == (255, 255, 255)  # the second has three


def test_queries_of_different_classes_are_shown() -> None:
    labels = np.arange(300) % 30
    assert len(set(labels[shown_queries(labels, 0)])) == 8
    few = np.array([2, 2, 2, 1, 1])
    assert sorted(shown_queries(few, 0).tolist()) == [0, 1, 2, 3, 4]


def test_the_map_is_of_some_of_each_class() -> None:
    labels = np.repeat(np.arange(100), 150)
    rows = map_rows(labels, 0)
    there, counts = np.unique(labels[rows], return_counts=True)
    assert (len(rows), len(there), there[0], there[-1], set(counts)) == (2000, 20, 0, 99, {100})
    assert map_rows(np.full(50, -1), 0).tolist() == list(range(50))


def test_the_map_keeps_apart_what_is_apart() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=(30, 12)) + 20 * middle for middle in rng.normal(size=(3, 12))]).astype(np.float32)
    places, labels = placed(values, 0), np.repeat(np.arange(3), 30)
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (labels[apart.argmin(axis=1)] == labels).mean() == 1


# --- what cannot be


def test_neither_a_map_of_a_few_pictures_nor_of_equal_features() -> None:
    with pytest.raises(InputError, match="8 pictures"):
        placed(drawn(7), 0)
    with pytest.raises(InputError, match="same features"):
        placed(np.ones((20, 4), np.float32), 0)


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


def test_one_picture_has_no_neighbours() -> None:
    one = Features(drawn(1), np.arange(1), np.zeros(1))
    with pytest.raises(InputError, match="one picture"):
        questions(one, True, 0)
