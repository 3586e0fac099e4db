"""Several nets and their average (paper, Table 2: 5 and 7 CNNs)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import on_ranks, one_line
from damages import spoil
from training import here, train

from model.checkpoint import VELOCITY
from model.dense import crop_grid
from model.evaluate import evaluate, load_net
from model.evaluate import main as evaluate_main
from model.layout import take_place
from model.pictures import Source
from model.recipe import read_recipe
from model.saving import Saver
from model.vgg import Vgg
from model.views import loader_of, shown
from pipeline import Augmentation, ImageLoader, ShardSet, WholePictures

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


def evaluated(shards: Path, views: int | str, *nets: Path, more: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return here(evaluate_main, ["--shards", str(shards), "--views", str(views), *more, "--checkpoint", *map(str, nets)])


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


# --- VGG nets, shown whole pictures

SMALL_VGG = ["model.maps=[8, 8, 16, 16, 16]", "model.hidden=[64, 48]", "model.input=32", "train.batch=24"]
SCALED = ["data.mean_window=channel", "data.scale=[64, 101]"]


def vgg_net(folder: Path, shards: Path, seed: int, *settings: str) -> Path:
    """A checkpoint, as a training writes it, of a net with its initial weights; but for its last biases, it would call all pictures the same."""
    recipe, classes = read_recipe("vgg", [*SMALL_VGG, *settings]), ShardSet(shards, "val").manifest.classes
    net = Vgg(len(classes), recipe.model, seed=seed).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        pictures = next(iter(WholePictures(shards, "val", (67,), 20))).pictures[0]
        net.fc8.bias.sub_(torch.cat([net.score_map(picture[None]).mean(dim=(2, 3)) for picture in pictures]).mean(dim=0))
    tensors = {name: value.detach() for name, value in net.named_parameters()}
    tensors |= {VELOCITY + name: torch.zeros_like(value) for name, value in tensors.items()}
    state = {"step": 1, "recipe": recipe.model_dump(mode="json"), "classes": len(classes), "wnids": [entry.wnid for entry in classes]}
    saver = Saver(folder / f"seed{seed}" / "checkpoints", None, True)
    assert saver.begin(1, tensors, {**state, "schedule": {}, "loader": {}, "unvalidated": False, "metrics_bytes": 0}, best=True) is None
    assert saver.settle() is None
    return folder / f"seed{seed}" / "checkpoints" / "best"


@pytest.fixture(scope="module")
def vggs(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two nets; one was trained at scales whose middle is 82, the other at the shards' own."""
    folder = tmp_path_factory.mktemp("vgg")
    return [vgg_net(folder, made_shards, 1, *SCALED), vgg_net(folder, made_shards, 2, "data.scale=null", "model.vgg=B")]


def densely(net: Any, picture: torch.Tensor) -> torch.Tensor:
    scores = net.score_map(torch.stack((picture, picture.flip(2))))
    softmax: torch.Tensor = scores.mean(dim=(2, 3)).softmax(dim=1)
    return softmax.mean(dim=0)


def by_crops(net: Any, picture: torch.Tensor) -> torch.Tensor:
    softmax: torch.Tensor = net(crop_grid(picture, 32)).softmax(dim=1)
    return softmax.mean(dim=0)


WAYS: dict[str, list[Callable[[Any, torch.Tensor], torch.Tensor]]] = {"dense": [densely], "50": [by_crops], "both": [densely, by_crops]}


@torch.no_grad()
def whole_by_hand(shards: Path, views: str, nets: Mapping[Path, Sequence[int]]) -> tuple[int, int, int]:
    """Counts of the average of nets, each at its scales, shown one picture after the other."""
    total, labels = torch.zeros(20, 4), torch.empty(0)
    for path, scales in nets.items():
        net = load_net(path)[0].eval()
        for scale in scales:
            batch = next(iter(WholePictures(shards, "val", (scale,), 20)))
            labels = batch.labels
            for way in WAYS[views]:
                total += torch.stack([way(net, picture) for picture in batch.pictures[0]]) / len(scales) / len(WAYS[views])
    assert len(total.argmax(dim=1).unique()) > 1  # not all pictures are called the same
    return int((total.argmax(dim=1) != labels).sum()), len(labels), 0


@pytest.mark.parametrize("views", WAYS)
def test_whole_pictures_at_several_scales(vggs: list[Path], made_shards: Path, views: str) -> None:
    """Each net, and the average of both."""
    scales = (32, 67)
    ran = evaluated(made_shards, views, *vggs, more=["--scales", "32,67"])
    assert ran.returncode == 0, ran.stderr
    wanted = [whole_by_hand(made_shards, views, nets) for nets in ({vggs[0]: scales}, {vggs[1]: scales}, dict.fromkeys(vggs, scales))]
    assert counts(ran.stdout) == wanted
    name = {"dense": "dense", "50": "50 crops", "both": "dense and 50 crops"}[views]
    assert ran.stdout.startswith(f"{vggs[0]}, {name} at scales 32, 67: top-1 error")
    assert f"average of the 2 nets, {name} at scales 32, 67: " in ran.stdout


def test_the_scale_of_validation_is_that_of_evaluation(vggs: list[Path], made_shards: Path) -> None:
    """The middle of what was drawn in training, or the shards' own."""
    ran = evaluated(made_shards, "dense", *vggs)
    assert [line.split(":")[0] for line in ran.stdout.splitlines()] == [
        f"{vggs[0]}, dense at scale 82",
        f"{vggs[1]}, dense at scale 256",
        "average of the 2 nets, dense",
    ]
    assert counts(ran.stdout)[2] == whole_by_hand(made_shards, "dense", {vggs[0]: (82,), vggs[1]: (256,)})


def evaluate_both(rank: int, path: Path, shards: Path) -> list[int]:
    """One of two ranks' work."""
    layout = take_place(2, 1, torch.device("cpu"), 2)
    net, recipe, _ = load_net(path)
    loader = loader_of(net, Source(str(shards), 1), recipe, layout, "both", (32, 70), 7, "val")
    result = evaluate(net, loader, layout, show=shown("both"))
    return [result.wrong_top1, result.images, result.wrong_top5]


def test_two_devices_share_the_pictures(vggs: list[Path], made_shards: Path, tmp_path: Path) -> None:
    """20 pictures, 7 at a time."""
    wanted = list(whole_by_hand(made_shards, "both", {vggs[0]: (32, 70)}))
    assert on_ranks(evaluate_both, 2, tmp_path, vggs[0], made_shards) == [wanted, wanted]


def test_a_bad_picture_is_left_out(vggs: list[Path], shards: Path) -> None:
    spoil(shards, "val", 3, 4)
    path, key, offset = ShardSet(shards, "val").place(3)
    one_line(evaluated(shards, "dense", vggs[0]), f"{path}: sample {key} at offset {offset}", "make this shard again")
    ran = evaluated(shards, "dense", vggs[0], vggs[0], more=["--on-bad-sample", "skip"])
    assert {images for _, images, _ in counts(ran.stdout)} == {18}
    assert ran.stdout.count(f"not counted: {path.name}, sample {key} at offset {offset}: ") == 2  # of each net


def test_what_does_not_fit_together(finished: Path, vggs: list[Path], made_shards: Path, tmp_path: Path) -> None:
    alexnet, less_an_image = finished / "checkpoints" / "best", vgg_net(tmp_path, made_shards, 2, "data.mean_window=same", "data.scale=null")
    one_line(evaluated(made_shards, "dense", less_an_image), "mean image", "--views 10")
    for views in WAYS:
        one_line(evaluated(made_shards, views, alexnet), f"--views {views}", "AlexNet", "--views 10")
        one_line(evaluated(made_shards, views, vggs[0], more=["--scales", "128,31"]), "31 pixels", "input of 32", "--scales from 32 on")
    one_line(evaluated(made_shards, 10, alexnet, more=["--scales", "256"]), "--scales", "--views dense, 50 or both")
    one_line(evaluated(made_shards, "dense", vggs[0], more=["--scales", "64,9999"]), "16 to 2048 pixels")
    for wrong in ("", "a", "256,", "-1", "2.5"):
        ran = evaluated(made_shards, "dense", vggs[0], more=[f"--scales={wrong}"])
        assert ran.returncode == 2
        assert "is not whole numbers of pixels" in ran.stderr
