"""Nets in other programs' files: the same function there, and the same weights when they come back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import one_line
from onnx import TensorProto
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from training import TINY, here, losses, train, weights

from model import checkpoint
from model.alexnet import AlexNet
from model.design import LAYERS, Design, Lrn
from model.export import caffe, main, torchvision
from model.formats import check_torchvision, read_weights
from model.net import whole_state
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
    design = read_recipe(recipe, []).alexnet.model_copy(update=SMALL)
    assert design.lrn
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
    state = whole_state(ours)
    table = torchvision(state, TORCHVISION)
    theirs.load_state_dict(table)
    images = pictures(224, 1)
    with torch.no_grad():
        scaled = images / (255 * torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))  # grey levels around the mean, in its units
        logits = theirs.classifier(theirs.features(scaled).flatten(1))  # type: ignore[operator]
        torch.testing.assert_close(logits, ours(images), rtol=1e-4, atol=1e-4 * float(logits.abs().max()))
    path = tmp_path / "torchvision.pth"
    torch.save(table, path)
    for name, value in read_weights(path, TORCHVISION, 7).items():
        units = (value.view(torch.int32) - state[name].view(torch.int32)).abs().max()  # in the last place
        assert units <= (1 if name == "conv1.weight" else 0), name  # scaled there and back
    torch.save({name: value[:1, :1].clone() if name == "features.3.weight" else value for name, value in list(table.items())[:3]}, path)
    with pytest.raises(InputError, match=r"features\.3\.weight is \(1, 1, 5, 5\), and the recipe's \(192, 64, 5, 5\)"):
        read_weights(path, TORCHVISION, 7)
    torch.save(torchvision_net(7).state_dict(), path)
    with pytest.raises(InputError, match=r"features\.3\.weight reads both columns"):
        read_weights(path, TORCHVISION, 7)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"lrn": Lrn(k=1)}, "LRN"),
        ({"lrn": Lrn(k=2, alpha=0)}, "LRN"),
        ({"maps": (96, 256, 384, 384, 256)}, "maps"),
        ({"hidden": (512, 4096)}, "hidden"),
        ({"conv1_padding": (0, 3)}, "conv1_padding"),
        ({"input": 227}, "input 227"),
        ({"within_map_norm": True}, "second normalisation"),
    ],
)
def test_what_torchvisions_alexnet_cannot_be(change: dict[str, Any], word: str) -> None:
    check_torchvision(TORCHVISION.model_copy(update={"relu_after_pool": ("conv1", "conv5")}))  # without LRN the order is the same
    with pytest.raises(InputError, match=word):
        check_torchvision(TORCHVISION.model_copy(update=change))


def test_caffes_conv1_reads_bgr(tmp_path: Path) -> None:
    net = net_of(Design(**SMALL))
    swapped = net_of(Design(**SMALL))
    swapped.load_state_dict(caffe(whole_state(net)))
    images = pictures(227)
    with torch.no_grad():
        torch.testing.assert_close(swapped(images.flip(1)), net(images), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(swapped(images), net(images), rtol=1e-2)
    torch.save(swapped.state_dict(), tmp_path / "a.pth")
    for name, value in read_weights(tmp_path / "a.pth", net.design, 7).items():
        assert torch.equal(value, net.state_dict()[name]), name


def toy_design() -> Design:
    """Of the nets that the tests of training train."""
    return read_recipe("small", [str(word) for word in TINY if str(word).startswith("model.")]).alexnet


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
    assert "--style caffe is a form of .pth" in line(["--checkpoint", newest, "--out", tmp_path / "a.onnx", "--style", "caffe"])
    assert "none of --out is not there" in line(["--checkpoint", newest, "--out", tmp_path / "none" / "a.onnx"])
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


def test_a_checkpoint_and_what_is_written_beside_the_weights(finished: Path, tmp_path: Path) -> None:
    newest, path, design = finished / "checkpoints" / "latest", tmp_path / "a.safetensors", toy_design()
    assert here(main, ["--checkpoint", str(newest), "--out", str(path)]).returncode == 0
    state, canonical = checkpoint.load(newest), [f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")]
    for key, value in read_weights(newest, design, 4).items():
        assert torch.equal(value, state["model"][key]), key
    assert list(read_weights(path, design, None)) == canonical
    assert list(read_weights(path, design, 9, new_last_layer=True)) == canonical[:-2]
    with safe_open(path, "pt") as file:
        assert {key: json.loads(file.metadata()[key]) for key in ("recipe", "wnids", "step")} == {
            key: state[key] for key in ("recipe", "wnids", "step")
        }


CAFFE: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "grey": ({"conv1.weight": torch.zeros(4, 1, 11, 11)}, "conv1.weight is (4, 1, 11, 11)"),
    "flat": ({"conv1.weight": torch.zeros(4)}, "conv1.weight is (4,)"),
    "six channels": ({"conv1.weight": torch.zeros(4, 6, 11, 11)}, "conv1.weight is (4, 6, 11, 11)"),
    "sixth convolution": ({"conv6.weight": torch.zeros(8, 8, 3, 3)}, "has conv6.weight, which this net has not"),
    "sparse": ({"fc8.weight": torch.zeros(7, 12).to_sparse()}, "fc8.weight is no plain table"),
    "integers": ({"fc8.weight": torch.zeros(7, 12, dtype=torch.int64)}, "fc8.weight is no plain table"),
}


@pytest.mark.parametrize("name", CAFFE)
def test_a_net_that_is_not_quite_ours_is_one_line(tmp_path: Path, name: str) -> None:
    change, words = CAFFE[name]
    design = Design(**SMALL)
    torch.save({**caffe(whole_state(net_of(design))), **change}, tmp_path / "a.pth")
    with pytest.raises(InputError) as caught:
        read_weights(tmp_path / "a.pth", design, 7)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    if name != "sparse":  # which safetensors cannot hold
        save_file({**whole_state(net_of(design)), **change}, tmp_path / "a.safetensors")
        with pytest.raises(InputError) as caught:
            read_weights(tmp_path / "a.safetensors", design, 7)
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.STRING, TensorProto.BFLOAT16, 77])
def test_an_onnx_constant_that_contradicts_itself(tmp_path: Path, kind: int) -> None:
    design = Design(**SMALL)
    model = onnx.load_model_from_string(to_onnx(whole_state(net_of(design)), design))
    model.graph.initializer[0].data_type = kind
    model.graph.initializer[0].raw_data = b"abc"
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="cannot be read as ONNX"):
        read_weights(tmp_path / "a.onnx", design, 7)


def test_without_the_package_onnx(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)  # Python's own way to say that it is not installed
    assert "pip install onnx" in line(["--checkpoint", finished / "checkpoints" / "latest", "--out", tmp_path / "a.onnx"])
    with pytest.raises(InputError, match="pip install onnx"):
        read_weights(tmp_path / "a.onnx", Design(**SMALL), 7)
    assert list(tmp_path.iterdir()) == []


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this was run",)


def test_no_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"conv1.weight": Code()}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="cannot be read as tensors alone"):
        read_weights(tmp_path / "a.pth", Design(), 7)
    assert "this was run" not in capsys.readouterr().out
