"""Nearest pictures by features: exact search, an index, short codes; what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import retrieve_index, retrieve_table
from model.retrieve_codes import Coded, coded, hamming, learn, read_coded, reranked, write_coded
from model.retrieve_features import Features, Origin
from model.retrieve_index import inverted_file, measured, nearest, probing
from model.retrieve_map import map_rows, placed
from model.retrieve_sheet import Shown, draw_sheet, shown_queries, write_png
from model.retrieve_table import Questions, by_chance, compare, questions, recall, without
from pipeline import InputError

CPU = torch.device("cpu")


def drawn(count: int, seed: int = 0, width: int = 64) -> np.ndarray:
    """Features that are a bent surface of six dimensions, and none below 0, as after ReLU."""
    weights = np.random.default_rng(99).normal(size=(6, width))
    return np.maximum(np.random.default_rng(seed).normal(size=(count, 6)) @ weights, 0).astype(np.float32)


def by_numpy(features: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    far = np.sqrt(((queries[:, None].astype(np.float64) - features[None]) ** 2).sum(axis=2))
    order = np.argsort(far, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(far, order, 1), order


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
    monkeypatch.setattr(retrieve_table, "LEAST_S", 0.0)
    features = Features(drawn(200), np.arange(200), np.arange(200) % 4)
    rows = list(compare(features, questions(features, True, 0), coded(features.values, 16, 0, CPU), 0))
    assert not [row for row in rows if "inverted" in row.method]
    assert "left out: an inverted file" in capsys.readouterr().err


def test_recall_and_class_by_hand() -> None:
    features = Features(np.arange(8, dtype=np.float32)[:, None].repeat(8, 1), np.arange(8), np.array([0, 0, 0, 0, 1, 1, 1, 1]))
    asked = Questions(features.some(np.array([0, 7])), np.array([0, 7]))
    first = next(iter(compare(features, asked, coded(features.values, 8, 0, CPU), 0)))
    assert first.recall == 1
    assert first.same_class == 0.5  # of the six nearest to either end three
    assert by_chance(features, asked) == pytest.approx(3 / 7)  # of the seven others
    assert by_chance(features, Questions(asked.of, None)) == 0.5
    assert recall(np.array([[1, 2, 3], [9, 5, 4]]), np.array([[1, 2, 3], [4, 5, 6]])) == pytest.approx(5 / 6)


def test_one_picture_has_no_neighbours() -> None:
    one = Features(drawn(1), np.arange(1), np.zeros(1))
    with pytest.raises(InputError, match="one picture"):
        questions(one, True, 0)


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


# --- the sheet and the map


def test_the_sheet_has_the_query_left_of_its_neighbours(tmp_path: Path) -> None:
    def plain(*colour: int) -> np.ndarray:
        return np.broadcast_to(np.array(colour, np.uint8), (8, 8, 3))

    near = [Shown(plain(0, 0, 40 * i), "", str(i), i == 2) for i in range(6)]
    write_png(draw_sheet([(Shown(plain(255, 0, 0), "cat"), near), (Shown(plain(0, 255, 0), "dog"), near[:3])], ("q", "n")), tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
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


def test_neither_a_map_of_a_few_pictures_nor_of_equal_features() -> None:
    with pytest.raises(InputError, match="8 pictures"):
        placed(drawn(7), 0)
    with pytest.raises(InputError, match="same features"):
        placed(np.ones((20, 4), np.float32), 0)
