"""Training as users run it: one device and several ranks, and given what it cannot use."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import one_line, run_command
from training import here, losses, metrics, refused, train, weights

from model.evaluate import main as evaluate_main
from model.replay import main as replay_main
from model.train import main


def test_a_run_leaves_what_it_should(finished: Path) -> None:
    lines = metrics(finished)
    assert sorted(losses(finished)) == list(range(1, 13))
    step = next(line for line in lines if line["step"] == 1)
    loader = {f"loader_{stage}_percent" for stage in ("read", "decode", "augment", "copy", "idle")}
    assert set(step) == {"step", "epoch", "loss_nats", "rate", "images_per_second", "data_wait_percent"} | loader
    assert 0 <= step["data_wait_percent"] <= 100
    assert [line["rate"] for line in lines if "rate" in line] == pytest.approx([1e-3] * 6 + [1e-4] * 6)
    assert [line["val_images"] for line in lines if "val_images" in line] == [20, 20]
    assert "val_ten_view_top1_error_percent" in lines[-1]
    assert len(json.loads((finished / "predictions.json").read_text())) == 8
    assert any((finished / "tensorboard").iterdir())
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step-00000006", "step-00000012", "best", "latest"}
    said = (finished / "said.txt").read_text()
    assert re.search(r"epoch   1  step      3  loss +\d+\.\d+  rate 0.001 +[\d.]+ images/s  waiting for data +[\d.]+ %", said)


def test_two_ranks_train_the_same_curve(finished: Path, finished_pair: Path) -> None:
    assert "2 x cpu, one column a device, 1 replica" in (finished_pair / "said.txt").read_text()
    np.testing.assert_allclose(list(losses(finished_pair).values()), list(losses(finished).values()), rtol=1e-4)
    ours, theirs = weights(finished_pair), weights(finished)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)


def test_evaluate_repeats_the_runs_own_figures(finished: Path, made_shards: Path) -> None:
    said = (finished / "said.txt").read_text()
    newest = finished / "checkpoints" / "latest"
    for views, line in ((10, "finished   validation, ten views:"), (1, "epoch   2  validation, centre view:")):
        words = ["--checkpoint", str(newest), "--shards", str(made_shards), "--views", str(views), "--batch", "7"]
        result = here(evaluate_main, words)
        assert result.returncode == 0, result.stderr
        figures = next(text for text in said.splitlines() if text.startswith(line)).split(":", 1)[1].strip()
        assert figures in result.stdout
        assert "of 20)" in figures


@pytest.mark.parametrize("layout", [("--devices", 4, "--columns", 2), ("--devices", 2, "--hybrid")], ids=["two pairs", "hybrid"])
def test_other_layouts_train_the_same_net(finished: Path, made_shards: Path, tmp_path: Path, layout: tuple[object, ...]) -> None:
    run = tmp_path / "run"
    result = train(made_shards, run, *layout)
    assert result.returncode == 0, result.stderr
    assert ("2 replicas" if "--columns" in layout else "hybrid") in result.stdout
    np.testing.assert_allclose(list(losses(run).values()), list(losses(finished).values()), rtol=1e-4)
    assert [line["val_images"] for line in metrics(run) if "val_images" in line] == [20, 20]
    for name, value in weights(run).items():  # whole in the checkpoint, whatever part a rank held
        torch.testing.assert_close(value, weights(finished)[name], rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_no_number_stops_and_can_be_repeated(made_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one_line(train(made_shards, run, "--set", "train.rate=1e12"), "nan", "step", "rate 1e+12", "--set train.rate=1e+11")
    kept = next((run / "spikes").iterdir())
    spike = json.loads((kept / "spike.json").read_text())
    assert (spike["loss"], spike["rate"], len(spike["ids"]), spike["checkpoint"]) == ("nan", 1e12, 8, None)
    again = here(replay_main, ["--run", str(run), "--shards", str(made_shards)])
    assert again.returncode == 0, again.stderr
    assert f"step {spike['step']}: loss nan nats; the run had nan" in again.stdout
    assert json.loads((kept / "replay.json").read_text())["ids"] == spike["ids"]


def test_any_step_can_be_repeated_to_the_last_bit(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    """From the checkpoint of the first epoch's end, through two steps to the ninth."""
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    result = here(replay_main, ["--run", str(copy), "--step", "9", "--shards", str(made_shards)])
    assert result.returncode == 0, result.stderr
    answer = json.loads((copy / "spikes" / "step-00000009" / "replay.json").read_text())
    assert answer["loss_nats"] == losses(finished)[9]
    assert np.mean([picture["loss_nats"] for picture in answer["worst_pictures"]]) == pytest.approx(answer["loss_nats"], rel=1e-5)  # all eight
    assert min(size["gradient"] for size in answer["parameters"].values()) > 0


def test_evaluation_on_several_ranks_counts_each_picture_once(finished: Path, made_shards: Path) -> None:
    said = (finished / "said.txt").read_text()
    figures = next(text for text in said.splitlines() if text.startswith("finished   validation")).split(":", 1)[1].strip()
    words = ("--checkpoint", finished / "checkpoints" / "latest", "--shards", made_shards, "--devices", 3, "--batch", 7)
    result = run_command("-m", "model.evaluate", *words)
    assert result.returncode == 0, result.stderr
    assert figures in result.stdout


def still_settings(bias: float) -> list[str]:
    """A net that cannot move, with these biases where the paper has 1."""
    biases = [0, bias, 0, bias, bias, bias, bias, 0]
    return ["--set", "train.rate=1e-9", "--set", f"model.init_std={[1e-4] * 8}", "--set", f"model.bias={biases}"]


def test_a_loss_that_stays_at_chance_is_warned_of(made_shards: Path, tmp_path: Path) -> None:
    still = train(made_shards, tmp_path / "run", *still_settings(1.0), epochs=1)
    assert "the loss stays at ln(4) = 1.39" in still.stdout
    assert "model.bias=[0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]" in still.stdout
    cured = train(made_shards, tmp_path / "cured", *still_settings(0.1), epochs=1)
    assert cured.returncode == 0, cured.stderr
    assert "warning" not in cured.stdout


def test_the_authors_program_runs(made_shards: Path, tmp_path: Path) -> None:
    small = ["--set", "model.maps=[4, 8, 8, 8, 8]", "--set", "model.hidden=[16, 16]", "--set", "train.batch=16", "--set", "train.log_every=1"]
    late = ["--set", "train.epochs=2", "--set", "data.colour_stop_epoch=1", "--set", "train.drop_epochs=[1]", "--set", "train.conv1_freeze_epoch=1"]
    words = ["--shards", str(made_shards), "--run", str(tmp_path / "run"), "--recipe", "alexnet-2012", "--threads", "1"]
    result = here(main, [*words, *small, *late, "--set", "train.conv1_slow_epoch=1"])
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 6


def test_groups_rates_and_decays_of_the_authors_program(made_shards: Path, tmp_path: Path) -> None:
    from model.layout import Layout
    from model.loop import enter_epoch
    from model.pictures import Source
    from model.recipe import read_recipe
    from model.run import build_run

    small = ["model.maps=[4, 8, 8, 8, 8]", "model.hidden=[16, 16]", "train.batch=16"]
    run = build_run(tmp_path / "run", read_recipe("alexnet-2012", small), Layout(), Source(str(made_shards), 1))
    groups = {group["name"]: group for group in run.optimiser.param_groups}
    assert {name: (len(g["params"]), g["weight_decay"]) for name, g in groups.items()} == {
        "conv1.weight": (1, 0.0005),
        "conv1.bias": (1, 0.0),
        "weight": (7, 0.0005),
        "bias": (7, 0.0),
    }
    for epoch, noise, rates in ((66, "stddev", [1e-4, 0.02, 1e-4, 0.02]), (67, "none", [1e-5, 0.02, 1e-4, 0.02]), (72, "none", [0, 0, 1e-4, 0.02])):
        run.train.epoch = epoch
        enter_epoch(run)
        assert [group["rate"] for group in run.optimiser.param_groups] == pytest.approx(rates)
        assert (run.train.augmentation.colour, run.train.augmentation.divisor) == (noise, 1.1 if noise == "stddev" else 1.0)
        assert run.train.epoch == epoch
    run.metrics.close()


# --- bad input


def test_shards_that_cannot_be_used(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for columns in (1, 2):
        assert "make_shards.py" in refused(tmp_path / "none", run, "--columns", columns)
    assert "holds no shards" in refused(tmp_path, run)
    (shards / "mean.npy").unlink()
    for columns in (1, 2):
        line = refused(shards, run, "--columns", columns)
        assert "mean.npy" in line
        assert "python tools/compute_pca.py --shards" in line
    assert not run.exists()


def test_a_flipped_byte_ends_two_ranks_with_the_samples_name(shards: Path, tmp_path: Path) -> None:
    path = shards / "train-000004.tar"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    line = one_line(train(shards, tmp_path / "run", "--columns", 2), "train-000004.tar", "CRC-32C")
    assert re.search(r"sample n\S+ at offset \d+", line)


def test_impossible_layouts(made_shards: Path, tmp_path: Path) -> None:
    def line(*more: object) -> str:
        return refused(made_shards, tmp_path / "run", *more)

    assert "batch 8 is smaller than the 16 ranks" in line("--devices", 16)
    assert "batch 8 does not divide over 3 ranks" in line("--devices", 3, "--columns", 1)
    assert "cannot be paired" in line("--devices", 3, "--columns", 2)
    assert "larger than the 48 samples" in line("--set", "train.batch=64")
    assert "unknown key train.rat" in line("--set", "train.rat=1")
    assert not (tmp_path / "run").exists()
