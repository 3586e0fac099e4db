"""Colour of the columns' kernels: made nets whose columns differ are found, random ones are not."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line, run_here
from PIL import Image

from model.alexnet import AlexNet
from model.colour_content import EXACT, colour_content, compare, learned, shuffled
from model.recipe import Recipe, read_recipe
from model.saving import Saver
from model.specialise import NAME, main, measure, read_kernels, together

SETTINGS = ["model.maps=[16, 8, 8, 8, 8]", "model.hidden=[16, 16]", "model.input=99"]
MAPS = 16


def recipe_of(seed: int, *more: str) -> Recipe:
    return read_recipe("small", [*SETTINGS, f"train.seed={seed}", *more])


def drawn(content: np.ndarray, seed: int) -> np.ndarray:
    """(n, 3, 11, 11) kernels with these colour contents, larger than initial ones."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(len(content), 3, 11, 11))
    grey = np.repeat(noise.mean(axis=1, keepdims=True), 3, axis=1)
    parts = [part / np.sqrt((part**2).sum(axis=(1, 2, 3), keepdims=True)) for part in (grey, noise - grey)]
    share = content[:, None, None, None]
    return (np.sqrt(1 - share) * parts[0] + np.sqrt(share) * parts[1]).astype(np.float32)


def made(folder: Path, seed: int, kernels: np.ndarray | None, *more: str, step: int = 500) -> Path:
    """A run with a checkpoint of these conv1 kernels, or of its initial ones."""
    recipe = recipe_of(seed, *more)
    tensors = {name: value.detach() for name, value in AlexNet(4, recipe.alexnet, seed=seed).named_parameters()}
    if kernels is not None:
        tensors["conv1.weight"] = torch.from_numpy(kernels)
    state = {"step": step, "recipe": recipe.model_dump(mode="json"), "classes": 4, "wnids": list("abcd"), "schedule": {}, "loader": {}}
    saver = Saver(folder / "checkpoints", None, True)
    assert saver.begin(step, tensors, {**state, "unvalidated": False, "metrics_bytes": 0}, best=False) is None
    assert saver.settle() is None
    return folder


def two_kinds(coloured: int, seed: int) -> np.ndarray:
    """One column's content about 0.1, that of column `coloured` about 0.8."""
    content = np.random.default_rng(seed).uniform(-0.08, 0.08, MAPS) + 0.1
    content[MAPS // 2 * coloured : MAPS // 2 * (coloured + 1)] += 0.7
    return drawn(content, seed)


def test_content_is_the_share_of_energy_off_the_grey_axis() -> None:
    kernels = np.zeros((6, 3, 2, 2))
    kernels[0] = 0.3  # grey
    kernels[1, 0], kernels[1, 1] = 1, -1  # opponent
    kernels[2, 0] = 5  # red alone: a third of it is grey
    kernels[3, :, 0, 0], kernels[3, 2, 1, 1] = (1, 1, 1), 3  # a grey weight of energy 3 and a blue one of 9, of which 6 are colour
    kernels[5] = np.nan
    assert colour_content(kernels[:4]) == pytest.approx([0, 1, 2 / 3, 0.5])
    assert np.isnan(colour_content(kernels[4:])).all()
    random = np.random.default_rng(0).normal(size=(2000, 3, 11, 11))
    assert colour_content(random).mean() == pytest.approx(2 / 3, abs=2e-3)
    wanted = np.linspace(0, 1, 9)
    assert colour_content(drawn(wanted, 1)) == pytest.approx(wanted, abs=1e-6)


def test_a_kernel_without_colour_sees_no_difference_to_the_grey_copy() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 11, 11, generator=generator, dtype=torch.float64)
    grey = picture.mean(dim=1, keepdim=True).expand_as(picture)
    none, full = torch.from_numpy(drawn(np.array([0.0, 1.0]), 3)).double()
    assert (none * picture).sum().item() == pytest.approx((none * grey).sum().item())
    assert (full * grey).sum().item() == pytest.approx(0, abs=1e-6)
    assert abs((full * picture).sum().item()) > 0.01


def test_what_has_only_its_initial_weights_has_not_learned() -> None:
    weights = np.random.default_rng(1).normal(0, 0.01, (4000, 3, 11, 11))
    assert 0 < learned(weights, 0.01).mean() < 0.005  # three deviations, of one side
    assert learned(1.4 * weights, 0.01).all()
    assert not learned(np.stack((np.full((3, 11, 11), np.nan), np.full((3, 11, 11), np.inf))), 0.01).any()


def test_the_test_is_exact_for_few_kernels() -> None:
    values = np.array([0.1, 0.2, 0.15, 0.9, 0.8])
    sizes, exact = shuffled(values, 2, 0)
    assert exact
    by_hand = [abs(np.delete(values, pair).mean() - values[list(pair)].mean()) for pair in combinations(range(5), 2)]
    assert sizes == pytest.approx(by_hand)
    kernels = drawn(np.array([0.1, 0.2, 0.15, 0.9, 0.8, 0.7]), 0)
    found, sizes = compare(kernels, np.array([True] * 6))
    assert found.p == pytest.approx(2 / 20)  # the three least in either column, of 20 ways
    assert len(sizes) == 20
    without, _ = compare(kernels, np.array([True, True, True, False, True, True]))
    assert [column.kernels for column in without.columns] == [3, 2]
    assert without.p == pytest.approx(1 / 10)


def test_many_kernels_are_shuffled_at_random_with_the_same_result() -> None:
    values = np.random.default_rng(2).normal(size=16)
    values[:8] += 0.9
    exact, whole = shuffled(values, 8, 0)
    assert whole
    assert len(exact) < EXACT
    many, drawn_ones = shuffled(np.concatenate((values, np.random.default_rng(3).normal(size=80))), 48, 0)
    assert not drawn_ones
    again, _ = shuffled(np.concatenate((values, np.random.default_rng(3).normal(size=80))), 48, 0)
    assert np.array_equal(many, again)
    assert exact.mean() == pytest.approx(values.std() * np.sqrt(2 / np.pi) * np.sqrt(4 / 15), rel=0.05)  # of a normal difference
    deviation = np.concatenate((values, np.random.default_rng(3).normal(size=80))).std() * np.sqrt(4 / 95)
    assert many.mean() == pytest.approx(deviation * np.sqrt(2 / np.pi), rel=0.02)


def test_coloured_columns_are_found_whichever_they_are(tmp_path: Path) -> None:
    runs = [made(tmp_path / f"run-{seed}", seed, two_kinds(int(seed == 1), seed)) for seed in (0, 1, 2)]
    ran = run_here(main, *runs, "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    found = json.loads((tmp_path / "out" / f"{NAME}.json").read_text())
    assert [one["seed"] for one in found["runs"]] == [0, 1, 2]
    for one, sign in zip(found["runs"], (-1, 1, -1), strict=True):
        assert one["clear"]
        assert sign * one["now"]["difference"] == pytest.approx(0.7, abs=0.05)
        assert [column["kernels"] for column in one["now"]["columns"]] == [8, 8]
        assert sorted(column["coloured"] for column in one["now"]["columns"]) == [0, 1]
        assert one["now"]["exact"]
        assert one["before"]["p"] > 1e-3
        assert abs(one["before"]["difference"]) < 0.05
    now = found["now"]
    assert (now["clear"], now["column0"], now["column1"]) == (3, 2, 1)
    assert now["size"] > 3 * now["chance"]
    assert now["p"] < 1e-4 < found["before"]["p"]
    assert "in 3 of 3 runs: column 0 in 2, column 1 in 1." in ran.stdout
    with Image.open(tmp_path / "out" / f"{NAME}.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10


def test_random_columns_are_not_found(tmp_path: Path) -> None:
    """Of 40 nets whose kernels are alike in both columns, one in a hundred would have p < 0.01."""
    comparisons, sizes = [], []
    for seed in range(40):
        kernels = drawn(np.random.default_rng(seed).uniform(0, 1, MAPS), seed)
        found, its = compare(kernels, learned(kernels, 0.01), seed)
        comparisons.append(found)
        sizes.append(its)
    p = [one.p for one in comparisons if one.p is not None]
    assert len(p) == 40
    assert sum(one < 0.01 for one in p) <= 2
    assert 0.35 < np.mean(p) < 0.65
    both = together(comparisons, sizes)
    assert both is not None
    assert both.size == pytest.approx(both.chance, rel=0.3)
    assert both.p > 0.01


def test_a_run_that_has_not_learned_says_so(tmp_path: Path) -> None:
    ran = run_here(main, made(tmp_path / "run", 3, None), "--out", tmp_path / "out")
    assert ran.returncode == 0, ran.stderr
    assert "too few have learned" in ran.stdout
    assert "train longer" in ran.stdout
    assert json.loads((tmp_path / "out" / f"{NAME}.json").read_text())["now"] is None


def test_initial_kernels_are_those_of_the_run(tmp_path: Path) -> None:
    folder = made(tmp_path / "run", 7, two_kinds(0, 0))
    recipe = recipe_of(7)
    read = read_kernels(folder)
    whole = AlexNet(4, recipe.alexnet, seed=7).conv1.weight.detach().numpy()
    assert np.array_equal(read.initial, whole)
    assert (read.name, read.step, read.seed) == ("run", 500, 7)
    assert read_kernels(folder / "checkpoints" / "latest").name == "run/step-00000500"
    began = two_kinds(1, 5)  # of a run with --init-from
    made(folder, 7, began, step=0)
    read = read_kernels(folder / "checkpoints" / "step-00000500")
    assert np.array_equal(read.initial, began)
    measured, _, _ = measure(read)
    assert measured.before.difference == pytest.approx(0.7, abs=0.05)


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    one_line(run_here(main, made(tmp_path / "one", 0, None, "model.columns=1"), "--out", tmp_path / "out"), "one column")
    one_line(run_here(main, tmp_path, "--out", tmp_path / "out"), "not a checkpoint")
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    one_line(run_here(main, tmp_path / "begun", "--out", tmp_path / "out"), "no checkpoint yet")
    run = made(tmp_path / "run", 0, None)
    one_line(run_here(main, run, run, "--out", tmp_path / "out"), "named twice")
    one_line(run_here(main, run, run / "checkpoints" / "latest", "--out", tmp_path / "out"), "both began with seed 0")
    assert not (tmp_path / "out").exists()
