from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import one_line, run_here
from training import TINY

from model.ablate import ABLATIONS, WHOLE, Outcome, main, table
from model.alexnet import AlexNet
from model.recipe import change_recipe, read_recipe
from model.run_lines import read_run


@pytest.mark.parametrize("recipe", ["alexnet", "alexnet-2012", "small"])
def test_every_ablation_is_a_net_that_can_be_built(recipe: str) -> None:
    whole = read_recipe(recipe, ["model.hidden=[8, 8]"])
    seen = []
    for one in ABLATIONS:
        changed = change_recipe(whole, one.keys(whole))
        AlexNet(3, changed.model)
        seen.append(changed)
    assert len({changed.model_dump_json() for changed in seen}) == len(ABLATIONS)
    assert next(changed for one, changed in zip(ABLATIONS, seen, strict=True) if one.name == WHOLE) == whole


def test_two_trainings_and_their_table(made_shards: Path, tmp_path: Path) -> None:
    options = ["--shards", made_shards, *TINY, "--set", "train.epochs=1"]
    command = ["--out", tmp_path, "--only", "no-crops", *options]
    ran = run_here(main, *command)
    assert ran.returncode == 0, ran.stderr
    outcomes = json.loads((tmp_path / "ablations.json").read_text())
    assert [one["name"] for one in outcomes] == [WHOLE, "no-crops"]
    for one in outcomes:
        run = read_run(tmp_path / f"{one['name']}-0")
        assert one["top1"] == [run.final["val_ten_view_top1_error_percent"]]
        assert run.recipe.data.crops == (one["name"] == WHOLE)
    assert table([Outcome(**one) for one in outcomes]) in ran.stdout
    began = (tmp_path / "no-crops-0" / "metrics.jsonl").stat().st_mtime_ns
    assert run_here(main, *command).stdout.splitlines()[-3:] == ran.stdout.splitlines()[-3:]  # from what is there
    assert (tmp_path / "no-crops-0" / "metrics.jsonl").stat().st_mtime_ns == began


def test_differences_are_from_the_whole_net_of_the_same_seed() -> None:
    whole = Outcome(WHOLE, "nothing taken away", [40.0, 42.0], [18.0, 19.0], (None, None), "")
    without = Outcome("no-lrn", "no LRN", [41.0, 45.0], [19.0, 20.0], (1.4, 1.2), "section 3.3")
    line = table([whole, without]).splitlines()[-1]
    assert line.split() == ["no", "LRN", "43.00", "19.50", "+2.00", "/", "+1.00", "+-1.41", "+1.4", "/", "+1.2", "section", "3.3"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "conv9"], "conv9 is not one of whole, one-column"),
        (["--seeds", "a"], "--seeds must be"),
        (["--run", "x"], "name a folder for all by --out"),
        (["--recipe", "nothing"], "no recipe nothing"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str) -> None:
    one_line(run_here(main, *options), words)


def test_the_list_shows_the_keys() -> None:
    shown = run_here(main, "--list").stdout
    assert "model.maps=[48, 128, 192, 192, 256]" in shown
    assert len(shown.splitlines()) == len(ABLATIONS)
