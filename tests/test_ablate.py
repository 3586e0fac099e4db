from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import one_line, run_here
from training import TINY

from model.ablate import ABLATIONS, SENT, WHOLE, Outcome, chosen, main, table
from model.alexnet import AlexNet
from model.recipe import change_recipe, read_recipe
from model.run_lines import read_run
from model.traffic import exchanged
from pipeline import InputError


@pytest.mark.parametrize("recipe", ["alexnet", "alexnet-2012", "small"])
def test_every_ablation_is_a_net_that_can_be_built(recipe: str) -> None:
    whole = read_recipe(recipe, ["model.hidden=[8, 8]"])
    seen = {}
    for one in chosen(None, whole):
        seen[one.name] = change_recipe(whole, one.keys(whole))
        AlexNet(3, seen[one.name].alexnet)
    assert len({changed.model_dump_json() for changed in seen.values()}) == len(seen)
    assert seen[WHOLE] == whole
    assert {one.name for one in ABLATIONS} - set(seen) == ({"input-224"} if recipe == "alexnet-2012" else set())  # which has it already


def test_the_printed_window_gives_as_many_places() -> None:
    whole = read_recipe("alexnet", [])
    (window,) = [one for one in ABLATIONS if one.name == "input-224"]
    assert window.keys(whole) == ["model.input=224", "model.conv1_padding=[2, 2]"]
    assert change_recipe(whole, window.keys(whole)).alexnet.sides() == (55, 27, 13, 6)
    assert window.keys(change_recipe(whole, ["model.input=226"])) == []  # 54 places, and 55 of 223 with padding
    assert window.keys(change_recipe(whole, ["model.conv1_padding=[2, 2]"])) == []


def test_batches_and_their_rates() -> None:
    whole = read_recipe("alexnet", [])
    changed = {one.name: change_recipe(whole, one.keys(whole)).train for one in ABLATIONS if one.name.startswith("batch")}
    assert {name: (train.batch, train.rate) for name, train in changed.items()} == {
        "batch-half": (64, 0.01),
        "batch-double": (256, 0.01),
        "batch-double-scaled": (256, 0.02),
    }


def test_what_changes_nothing_is_not_trained() -> None:
    recipe = read_recipe("alexnet", ["model.dropout=0", "train.batch=1"])
    assert {one.name for one in ABLATIONS} - {one.name for one in chosen(None, recipe)} == {"no-dropout", "batch-half"}
    with pytest.raises(InputError, match="no-dropout changes nothing"):
        chosen("tanh,no-dropout", recipe)


def test_two_trainings_and_their_table(made_shards: Path, tmp_path: Path) -> None:
    options = ["--shards", made_shards, *TINY, "--set", "train.epochs=1"]
    command = ["--out", tmp_path, "--only", "tanh", *options]
    ran = run_here(main, *command)
    assert ran.returncode == 0, ran.stderr
    outcomes = json.loads((tmp_path / "ablations.json").read_text())
    assert [one["name"] for one in outcomes] == [WHOLE, "tanh"]
    for one in outcomes:
        run = read_run(tmp_path / f"{one['name']}-0")
        assert one["top1"] == [run.final["val_ten_view_top1_error_percent"]]
        assert (run.recipe.alexnet.activation == "relu") == (one["name"] == WHOLE)
        assert one["sent"] == list(exchanged(run.recipe.model, 4))
    assert table([Outcome(**one) for one in outcomes]) in ran.stdout
    began = (tmp_path / "tanh-0" / "metrics.jsonl").stat().st_mtime_ns
    assert run_here(main, *command).stdout.splitlines()[-4:] == ran.stdout.splitlines()[-4:]  # from what is there
    assert (tmp_path / "tanh-0" / "metrics.jsonl").stat().st_mtime_ns == began
    assert run_here(main, *command, "--set", "data.decoder=turbojpeg").returncode == 0  # which changes no bit
    other = run_here(main, *command, "--set", "train.rate=0.002")
    assert other.returncode == 2
    assert "whole-0 was trained by another recipe; name another folder by --out" in other.stderr
    (tmp_path / "no-flips-0").write_text("a file where the run should be")
    failing = run_here(main, "--out", tmp_path, "--only", "no-flips,tanh", *options)
    assert failing.returncode == 2
    assert "not in the table: no-flips" in failing.stderr
    assert "3 of 3: no mirror images" in failing.stdout
    assert failing.stdout.splitlines()[-1] == ran.stdout.splitlines()[-1]  # the others are in it


def test_differences_are_from_the_whole_net_of_the_same_seed() -> None:
    whole = Outcome(WHOLE, "nothing taken away", [40.0, 42.0], [18.0, 19.0], (123_344, 121_344), (None, None), "")
    without = Outcome("no-lrn", "no LRN", [41.0, 45.0], [19.0, 20.0], (5, 6), (1.4, 1.2), "section 3.3")
    first, second, last = table([whole, without]).splitlines()[1:]
    assert first.split() == ["nothing", "taken", "away", "41.00", "18.50", "244,688"]
    assert second.split() == ["no", "LRN", "43.00", "19.50", "11", "+2.00", "/", "+1.00", "+-1.41", "+1.4", "/", "+1.2", "section", "3.3"]
    assert last == SENT


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--only", "conv9"], "conv9 is not one of whole, one-column"),
        (["--only", "input-224", "--recipe", "alexnet-2012"], "input-224 changes nothing in this recipe"),
        (["--set", "model={vgg: A}"], "AlexNet"),
        (["--seeds", "a"], "--seeds must be"),
        (["--run", "x"], "name a folder for all by --out"),
        (["--recipe", "nothing"], "no recipe nothing"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str) -> None:
    one_line(run_here(main, *options), words)


def test_the_list_shows_the_keys_and_what_is_left_out() -> None:
    shown = run_here(main, "--list").stdout
    assert "model.maps=[48, 128, 192, 192, 256]" in shown
    assert [line.split()[0] for line in shown.splitlines()] == [*(one.name for one in ABLATIONS), "all"]
    shown = run_here(main, "--list", "--recipe", "alexnet-2012").stdout
    assert shown.splitlines()[-1] == "all of these are trained, unless --only names some; input-224 would change nothing in this recipe"
