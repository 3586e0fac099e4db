"""Nets in other programs' files: the same function there, and the same weights when they come back."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import one_line
from torch import nn
from training import TINY, here, losses, train, weights

from model.alexnet import AlexNet, whole_state
from model.design import Design, Lrn
from model.export import caffe, main, torchvision
from model.formats import read_weights
from model.onnx_graph import to_onnx
from model.recipe import read_recipe
from pipeline import InputError

SMALL = {"maps": (4, 8, 8, 8, 8), "hidden": (16, 12)}
TORCHVISION = Design(maps=(64, 192, 384, 256, 256), input=224, conv1_padding=(2, 2), lrn=Lrn(k=1, alpha=0))


def net_of(design: Design, classes: int = 7) -> AlexNet:
    return AlexNet(classes, design.model_copy(update={"init_std": (0.02, *[0.1] * 7)}), seed=3).eval()


def pictures(side: int, n: int = 3) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1)) * 60


@pytest.mark.parametrize("recipe", ["alexnet", "alexnet-2012", "small"])
def test_the_onnx_graph_is_the_net(recipe: str) -> None:
    """LRN that is not a rounding error (alpha 0.01), the 2012 program's order, padding and second normalisation included."""
    design = read_recipe(recipe, []).model.model_copy(update=SMALL)
    design = design.model_copy(update={"lrn": design.lrn.model_copy(update={"alpha": 0.01})})
    net, images = net_of(design), pictures(design.input)
    session = onnxruntime.InferenceSession(to_onnx(whole_state(net), net.design), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        ours = net(images).numpy()
    bound = 1e-5 * np.abs(ours).max()
    assert np.abs(ours[0] - ours[1]).max() > 100 * bound  # a net that looks at its pictures
    np.testing.assert_allclose(logits, ours, rtol=0, atol=bound)


def torchvision_net(classes: int) -> nn.Module:
    """torchvision's alexnet, from its published shapes."""
    net = nn.Module()
    pool = [nn.MaxPool2d(3, 2)]
    net.features = nn.Sequential(
        *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), *pool, nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), *pool),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), *pool),
    )
    net.classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, classes))
    )
    return net.eval()


def test_torchvisions_alexnet_computes_the_same(tmp_path: Path) -> None:
    ours, theirs = net_of(TORCHVISION), torchvision_net(7)
    table = torchvision(whole_state(ours), TORCHVISION)
    theirs.load_state_dict(table)
    images = pictures(224, 1)
    with torch.no_grad():
        scaled = images / (255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))  # grey levels around the mean, in its units
        logits = theirs.classifier(theirs.features(scaled).flatten(1))  # type: ignore[operator]
        torch.testing.assert_close(logits, ours(images), rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    path = tmp_path / "torchvision.pth"
    torch.save(table, path)
    for name, value in read_weights(path, TORCHVISION, 7).items():
        torch.testing.assert_close(value, whole_state(ours)[name], rtol=3e-7 if name == "conv1.weight" else 0, atol=0)  # scaled there and back
    torch.save(torchvision_net(7).state_dict(), path)
    with pytest.raises(InputError, match=r"features\.3\.weight reads both columns"):
        read_weights(path, TORCHVISION, 7)


def test_caffes_conv1_reads_bgr() -> None:
    net = net_of(Design(**SMALL))
    swapped = net_of(Design(**SMALL))
    swapped.load_state_dict(caffe(whole_state(net)))
    images = pictures(227)
    with torch.no_grad():
        torch.testing.assert_close(swapped(images.flip(1)), net(images), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(swapped(images), net(images), rtol=1e-2)


def toy_design() -> Design:
    """Of the nets that the tests of training train."""
    return read_recipe("small", [str(word) for word in TINY if str(word).startswith("model.")]).model


@pytest.mark.parametrize("name", ["net.safetensors", "net.pth", "net.onnx"])
def test_a_run_begins_with_what_another_ended_with(finished: Path, made_shards: Path, tmp_path: Path, name: str) -> None:
    """Exported and read again, bit for bit, by the command that trains."""
    made = here(main, ["--checkpoint", str(finished / "checkpoints" / "latest"), "--out", str(tmp_path / name)])
    assert made.returncode == 0, made.stderr
    design = toy_design()
    for key, value in read_weights(tmp_path / name, design, 4).items():
        assert torch.equal(value, weights(finished)[key]), key
    again = train(made_shards, tmp_path / "run", "--init-from", tmp_path / name, "--set", "train.rate=1e-9", epochs=1)
    assert again.returncode == 0, again.stderr
    for key, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, weights(finished)[key], rtol=1e-3, atol=1e-6)
    assert losses(tmp_path / "run")[1] != losses(finished)[1]


def line(words: list[Any]) -> str:
    return one_line(here(main, [str(word) for word in words]))


def test_what_cannot_be_written_or_read(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    newest, design = finished / "checkpoints" / "latest", Design(**SMALL)
    assert "torchvision's alexnet is another net" in line(["--checkpoint", newest, "--out", tmp_path / "a.pth", "--style", "torchvision"])
    assert "ends in none of" in line(["--checkpoint", newest, "--out", tmp_path / "a.bin"])
    assert "there is no checkpoint" in line(["--checkpoint", tmp_path / "none", "--out", tmp_path / "a.pth"])
    assert list(tmp_path.iterdir()) == []
    for name in ("a.safetensors", "a.pth", "a.onnx"):
        path = tmp_path / name
        with pytest.raises(InputError, match="a\\."):
            read_weights(path, design, 7)
        path.write_bytes(b"\x0a\x99 not one of these")
        with pytest.raises(InputError, match="cannot be read"):
            read_weights(path, design, 7)
    torch.save(caffe(whole_state(net_of(design))), tmp_path / "a.pth")
    with pytest.raises(InputError, match="of 7 classes, and the shards have 8"):
        read_weights(tmp_path / "a.pth", design, 8)
    with pytest.raises(InputError, match=r"conv1.weight is \(4, 3, 11, 11\), and the recipe's \(96, 3, 11, 11\)"):
        read_weights(tmp_path / "a.pth", Design(), 7)
    torch.save({"a": 1}, tmp_path / "b.pth")
    with pytest.raises(InputError, match="no table of tensors"):
        read_weights(tmp_path / "b.pth", design, 7)
    torch.save(caffe(whole_state(net_of(toy_design()))), tmp_path / "a.pth")
    result = train(made_shards, tmp_path / "run", "--init-from", tmp_path / "a.pth")
    assert "of 7 classes, and the shards have 4" in one_line(subprocess.CompletedProcess([], result.returncode, "", result.stderr))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this was run",)


def test_no_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": Code()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        read_weights(tmp_path / "a.pth", Design(), 7)
    assert "this was run" not in capsys.readouterr().out
