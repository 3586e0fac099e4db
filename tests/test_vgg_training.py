"""A VGG net on the whole road of a training, at scales that are drawn: gone on with in the middle of an epoch, then a deeper net from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from training import here, losses, newest, weights

from model.evaluate import main as evaluate
from model.train import main

SMALL = ("model.maps=[4, 6, 8, 8, 8]", "model.hidden=[16, 12]", "model.input=32", "data.scale=[32, 60]")
SHORT = ("train.batch=8", "train.log_every=1", "train.rate=0.0001", "train.schedule=fixed", "train.drop_epochs=[1]", "train.epochs=2")


def train(shards: Path, run: Path, *more: str) -> str:
    ran = here(main, ["--shards", str(shards), "--run", str(run), "--threads", "1", *more])
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def recipe(*more: str) -> list[str]:
    return ["--recipe", "vgg", *(word for key in (*SMALL, *SHORT, *more) for word in ("--set", key))]


@pytest.fixture(scope="module")
def trained(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("vgg") / "run"
    train(made_shards, run, *recipe(), "--save-every", "5")
    return run


def test_a_run_gone_on_with_is_the_run(trained: Path, made_shards: Path, tmp_path: Path) -> None:
    """Scales, windows, dropout and rate are those of the step, to the last bit."""
    begun = Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))
    end = newest(begun)
    shutil.rmtree(end)
    assert newest(begun).name < end.name
    train(made_shards, begun, "--resume")
    assert newest(begun) == end
    assert losses(begun) == losses(trained)
    assert all(torch.equal(value, weights(trained)[name]) for name, value in weights(begun).items())


def test_a_deeper_net_begins_with_a(trained: Path, made_shards: Path, tmp_path: Path) -> None:
    said = train(made_shards, tmp_path / "b", *recipe("model.vgg=B", "train.rate=1e-12", "train.epochs=1"), "--init-from", str(newest(trained)))
    assert "by the recipe: conv1_2, conv2_2, conv4_1, conv4_2, conv5_1, conv5_2" in said
    a, b = weights(trained), weights(tmp_path / "b")
    for layer in ("conv1_1", "conv2_1", "conv3_1", "conv3_2", "fc6", "fc7", "fc8"):
        assert torch.allclose(b[f"{layer}.weight"], a[f"{layer}.weight"], atol=1e-9)
    assert not torch.allclose(b["conv4_1.weight"], a["conv4_1.weight"])
    nets = [str(newest(run)) for run in (trained, tmp_path / "b")]
    ran = here(evaluate, ["--shards", str(made_shards), "--views", "dense", "--scales", "32,64", "--checkpoint", *nets])
    assert ran.returncode == 0, ran.stderr
    assert "average of the 2 nets, dense at scales 32, 64: top-1 error" in ran.stdout
