from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from model.design import Design, Lrn
from model.recipe import RECIPES, Recipe, read_recipe
from model.vgg_design import VggDesign
from pipeline import InputError


def test_the_paper_is_the_default() -> None:
    assert read_recipe("alexnet", []) == Recipe()


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_shipped_recipes_are_valid(name: str) -> None:
    assert read_recipe(name, []).model.last_side() >= 1


def test_overrides() -> None:
    recipe = read_recipe("alexnet", ["train.rate=1e-3", "model.lrn.k=1", "model.bias=[0, .1, 0, .1, .1, .1, .1, 0]", "data.colour=stddev"])
    assert recipe.model.lrn
    assert (recipe.train.rate, recipe.model.lrn.k, recipe.data.colour) == (1e-3, 1.0, "stddev")
    assert recipe.alexnet.bias[1] == 0.1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.rat=0.1", ["unknown key train.rat", "rate", "momentum"]),
        ("model.lrn.K=2", ["unknown key model.lrn.K", "alpha"]),
        ("data.vgg=A", ["unknown key data.vgg", "mean_window"]),
        ("optimiser.rate=0.1", ["unknown key optimiser", "train"]),
        ("train.rate=fast", ["train.rate", "number", '"fast"']),
        ("train.rate=-1", ["train.rate", "greater than 0", "-1"]),
        ("train.batch=12.5", ["train.batch", "integer", "12.5"]),
        ("train.batch=true", ["train.batch", "integer"]),
        ("data.colour=red", ["data.colour", "'eigenvalue', 'stddev' or 'none'"]),
        ("model.maps=[96, 256]", ["model.maps"]),
        ("model.maps=[95, 256, 384, 384, 256]", ["even", "95"]),
        ("model.input=40", ["too small"]),
        ("model.lrn.n=4", ["odd"]),
        ("train.drop_epochs=[5]", ["drop_epochs belongs to schedule: fixed"]),
        ("train.rate", ["expected KEY=VALUE"]),
        ("train.rate=[1", ["not YAML"]),
        ("train=5", ["train"]),
        ("train.rate.x=5", ["not a table"]),
    ],
)
def test_what_cannot_be_is_one_line_that_names_the_key(override: str, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        read_recipe("alexnet", [override])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), caught.value


def test_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="known are alexnet, alexnet-2012, small"):
        read_recipe("googlenet", [])
    (tmp_path / "mine.yaml").write_text("train:\n  rate: 1e-3\n")
    assert read_recipe(str(tmp_path / "mine.yaml"), []).train.rate == 1e-3
    (tmp_path / "mine.yaml").write_text("- a list\n")
    with pytest.raises(InputError, match="not a table"):
        read_recipe(str(tmp_path / "mine.yaml"), [])


def test_every_key_is_read_somewhere() -> None:
    """Each key's name is read off a recipe in the code that trains: a knob that nothing reads is a lie."""
    sources = "".join(path.read_text() for path in (ROOT / "model").glob("*.py") if path.stem != "recipe")
    places = {"model": r"(d|s|self|design|model|lrn)", "data": r"(d|data)", "train": r"(t|train|training)"}
    for table, owner in places.items():
        kinds: list[Any] = [Design, VggDesign, Lrn] if table == "model" else [Recipe.model_fields[table].annotation]
        names = {name for kind in kinds for name in kind.model_fields}
        for name in names:
            assert re.search(rf"\b{owner}\.{name}\b", sources), f"nothing reads {table}.{name}"
