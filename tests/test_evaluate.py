"""Several nets and their average (paper, Table 2: 5 and 7 CNNs)."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import one_line
from training import here, train

from model.evaluate import load_net
from model.evaluate import main as evaluate_main
from pipeline import Augmentation, ImageLoader

WRONG = re.compile(r"top-1 error \S+ % \((\d+) of (\d+)\), top-5 error \S+ % \((\d+) of")


def counts(text: str) -> list[tuple[int, ...]]:
    """(wrong top-1, images, wrong top-5) of each line that has them."""
    return [tuple(map(int, found)) for found in WRONG.findall(text)]


@pytest.fixture(scope="module")
def other(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net of another seed and width, trained for a while."""
    run = tmp_path_factory.mktemp("other") / "run"
    result = train(made_shards, run, "--set", "train.seed=5", "--set", "model.hidden=[24, 40]")
    assert result.returncode == 0, result.stderr
    return run / "checkpoints" / "latest"


def evaluated(shards: Path, views: int, *nets: Path) -> subprocess.CompletedProcess[str]:
    return here(evaluate_main, ["--shards", str(shards), "--views", str(views), "--checkpoint", *map(str, nets)])


@torch.no_grad()
def by_hand(paths: list[Path], shards: Path) -> tuple[int, int, int]:
    """The same counts, from each net's softmax of all pictures at once."""
    total = torch.zeros(())
    for path in paths:
        net, recipe, _ = load_net(path)
        batch = next(iter(ImageLoader(shards, "val", batch=20, augmentation=Augmentation(crop=recipe.model.input))))
        total = total + net.eval()(batch.images).softmax(1)
    best = total.topk(4, dim=1).indices
    return int((best[:, 0] != batch.labels).sum()), len(batch.labels), 0  # four classes: the right one is always among five


@pytest.mark.parametrize("views", [1, 10])
def test_each_net_and_the_average_of_all(finished: Path, other: Path, made_shards: Path, views: int) -> None:
    nets = [finished / "checkpoints" / "best", other, finished / "checkpoints" / "latest"]
    ran = evaluated(made_shards, views, *nets)
    assert ran.returncode == 0, ran.stderr
    alone = [evaluated(made_shards, views, net).stdout for net in nets]
    lines = ran.stdout.splitlines()
    assert [line + "\n" for line in lines[:3]] == alone
    assert lines[3].startswith("average of the 3 nets, ")
    if views == 1:
        assert counts(ran.stdout)[3] == by_hand(nets, made_shards)


def test_the_same_net_twice_is_that_net(other: Path, made_shards: Path) -> None:
    ran = evaluated(made_shards, 1, other, other)
    assert len(set(counts(ran.stdout))) == 1
    assert len(counts(ran.stdout)) == 3


def test_one_of_them_is_not_there(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    one_line(evaluated(made_shards, 1, finished / "checkpoints" / "best", tmp_path), str(tmp_path))
