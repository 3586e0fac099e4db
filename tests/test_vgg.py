"""The VGG nets: shapes and counts of the paper's tables, equal to torchvision's, dense scores, layouts, and what deeper nets take from A."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from conftest import on_ranks

from model.export import torchvision as to_torchvision
from model.formats import read_weights, torchvision_scale
from model.hybrid import parallel
from model.layout import Layout, take_place
from model.lrn import lrn
from model.net import MaskDraw, whole_net, whole_state
from model.nets import make_net
from model.onnx_graph import to_onnx
from model.recipe import Recipe, read_recipe
from model.sgd import PaperSGD
from model.step import PlainStep
from model.vgg import Vgg
from model.vgg_design import FROM_A, Name, VggDesign
from pipeline import InputError

SMALL: dict[str, Any] = {"maps": (4, 6, 8, 10, 12), "hidden": (16, 14), "input": 64, "init": "glorot"}
# Table 2, in millions; the exact counts are those of torchvision's nets, of C by hand.
MILLIONS = {"A": 133, "A-LRN": 133, "B": 133, "C": 134, "D": 138, "E": 144}
EXACT = {"A": 132_863_336, "A-LRN": 132_863_336, "B": 133_047_848, "C": 133_638_952, "D": 138_357_544, "E": 143_667_240}
DEPTH = {"A": 11, "A-LRN": 11, "B": 13, "C": 16, "D": 16, "E": 19}  # table 1
LAYOUTS = ((2, False), (2, True))  # ranks, hybrid
BATCH = 6


def small(name: Name, **more: Any) -> VggDesign:
    return VggDesign(vgg=name, **{**SMALL, **more})


def pictures(side: int, n: int = 3, other: int | None = None) -> torch.Tensor:
    return torch.randn(n, 3, side, other or side, generator=torch.Generator().manual_seed(1)) * 60


@pytest.mark.parametrize("name", get_args(Name))
def test_the_nets_of_tables_1_and_2(name: Name) -> None:
    design = VggDesign(vgg=name)
    counts = design.parameters(1000)
    assert sum(counts.values()) == EXACT[name]
    assert round(EXACT[name] / 1e6) == MILLIONS[name]
    assert len(design.layers()) == DEPTH[name]
    assert design.last_side() == 7
    shapes = design.shapes(1000)
    assert shapes["conv1_1"] == (64, 3, 3, 3)
    assert shapes["fc6"] == (4096, 512 * 49)
    ones = [layer for layer, shape in shapes.items() if shape[2:] == (1, 1)]
    assert ones == (["conv3_3", "conv4_3", "conv5_3"] if name == "C" else [])


def test_a_net_is_what_its_design_says() -> None:
    for name in get_args(Name):
        design = small(name)
        net = make_net(5, design)
        assert isinstance(net, Vgg)
        assert {layer: tuple(getattr(net, layer).weight.shape) for layer in design.layers()} == design.shapes(5)
        assert sum(p.numel() for p in net.parameters()) == sum(design.parameters(5).values())
        assert net(pictures(64)).shape == (3, 5)
        assert sum(design.multiply_adds(5).values()) > 0


def test_initial_weights() -> None:
    normal = make_net(100, VggDesign(vgg="A", maps=(8, 16, 32, 64, 64), hidden=(256, 256), input=64)).state_dict()
    glorot = make_net(100, VggDesign(vgg="A", maps=(8, 16, 32, 64, 64), hidden=(256, 256), input=64, init="glorot")).state_dict()
    for layer, wide in {"conv4_1": 9 * (32 + 64), "fc7": 512, "fc8": 356}.items():
        assert normal[f"{layer}.weight"].std().item() == pytest.approx(0.1, rel=0.03)
        assert glorot[f"{layer}.weight"].std().item() == pytest.approx((2 / wide) ** 0.5, rel=0.03)
        assert not glorot[f"{layer}.bias"].any()


def test_lrn_of_a_lrn_comes_behind_the_first_layer() -> None:
    net = make_net(5, small("A-LRN", lrn={"alpha": 0.01}))
    without = make_net(5, small("A"))
    without.load_state_dict(net.state_dict())
    images = pictures(64)
    assert not torch.allclose(net(images), without(images), rtol=1e-2)
    x = lrn(F.relu(F.conv2d(images, net.first.weight, net.first.bias, padding=1)), columns=1, k=2.0, n=5, alpha=0.01, beta=0.75)
    seen = F.relu(without.conv2_1(F.max_pool2d(x, 2)))  # type: ignore[operator]
    shown: dict[str, torch.Tensor] = {}
    net.look = shown.__setitem__
    net(images)
    assert torch.allclose(shown["conv2_1"], seen, atol=1e-4)


def torchvision_models() -> Any:
    """torchvision's nets; its compiled operators load beside torch's CUDA builds only, and none of these nets has one."""
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import models

    return models


@pytest.mark.parametrize(("name", "theirs"), [("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")])
def test_equal_to_torchvision(name: Name, theirs: str, tmp_path: Path) -> None:
    """Its layers made narrow, since eight nets of 140 M parameters take a minute; table 1's own widths are counted above."""
    design, vgg = small(name, input=224), getattr(torchvision_models(), theirs)
    with torch.random.fork_rng():
        full = vgg(init_weights=False)
        narrow, read = [], 3
        widths = iter(design.outputs(5).values())
        for module in full.features:
            if isinstance(module, torch.nn.Conv2d):
                read, before = next(widths), read
                module = torch.nn.Conv2d(before, read, 3, padding=1)
            narrow.append(module)
        full.features = torch.nn.Sequential(*narrow)
        for place, (into, out) in zip((0, 3, 6), ((12 * 49, 16), (16, 14), (14, 5)), strict=True):
            full.classifier[place] = torch.nn.Linear(into, out)
    full.eval()
    torch.save(full.state_dict(), tmp_path / "theirs.pth")
    net = make_net(5, design).eval()
    net.load_state_dict(read_weights(tmp_path / "theirs.pth", design, 5))
    images = pictures(224, n=2)
    wanted = full(images / torchvision_scale())
    assert torch.allclose(net(images), wanted, rtol=1e-4, atol=1e-5 * wanted.abs().max().item())
    back = to_torchvision(whole_state(net), design)
    assert set(back) == set(full.state_dict())
    assert all(torch.allclose(back[key], value, rtol=1e-6) for key, value in full.state_dict().items())


def test_torchvisions_own_counts() -> None:
    models = torchvision_models()
    with torch.device("meta"):
        for name, theirs in (("A", "vgg11"), ("B", "vgg13"), ("D", "vgg16"), ("E", "vgg19")):
            shapes = {key: tuple(value.shape) for key, value in getattr(models, theirs)(init_weights=False).state_dict().items()}
            ours = to_torchvision({f"{k}.weight": torch.empty(s) for k, s in VggDesign(vgg=name).shapes(1000).items()}, VggDesign(vgg=name))
            assert {key: tuple(value.shape) for key, value in ours.items()} == {key: s for key, s in shapes.items() if key.endswith("weight")}


def test_no_torchvision_net_is_c(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "c.pth")
    with pytest.raises(InputError, match="no VGG net C, only A, B, D and E"):
        read_weights(tmp_path / "c.pth", small("C"), 5)
    with pytest.raises(InputError, match="read 224 pixels, and the recipe's 64"):
        read_weights(tmp_path / "c.pth", small("A"), 5)


@pytest.mark.parametrize("name", ["A-LRN", "C"])
def test_the_onnx_graph_is_the_net(name: Name) -> None:
    net = make_net(5, small(name, lrn={"alpha": 0.01})).eval()
    session = onnxruntime.InferenceSession(to_onnx(whole_state(net), net.design), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": pictures(64).numpy()})
    ours = net(pictures(64)).detach().numpy()
    assert np.abs(logits - ours).max() < 1e-4 * np.abs(ours).max()


def test_dense_scores_of_one_crop_are_its_logits() -> None:
    for design in (small("C"), small("A", input=80)):  # 80: the last maps have 2 x 2 places, and half a place is left over
        net = make_net(5, design).double().eval()
        assert isinstance(net, Vgg)
        images = pictures(design.input).double()
        scores = net.score_map(images)
        assert scores.shape == (3, 5, 1, 1)
        assert torch.allclose(scores[:, :, 0, 0], net(images), rtol=1e-12)


def test_dense_scores_are_the_connected_layers_at_every_place() -> None:
    net = make_net(5, small("A")).double().eval()
    assert isinstance(net, Vgg)
    images = pictures(96, other=160).double()
    maps, scores = net._maps(images), net.score_map(images)
    assert scores.shape == (3, 5, 2, 4)
    for y in range(2):
        for x in range(4):
            here = net.fc8(F.relu(net.fc7(F.relu(net.fc6(maps[:, :, y : y + 2, x : x + 2].flatten(1))))))
            assert torch.allclose(scores[:, :, y, x], here, rtol=1e-10)


def test_deeper_nets_begin_with_a(tmp_path: Path) -> None:
    a = make_net(5, small("A"), seed=1)
    from safetensors.torch import save_file

    save_file(a.state_dict(), tmp_path / "a.safetensors")
    for name in ("B", "C", "D", "E"):
        taken = read_weights(tmp_path / "a.safetensors", small(name), 5)
        assert {key.split(".")[0] for key in taken} == set(FROM_A)
        assert all(torch.equal(value, a.state_dict()[key]) for key, value in taken.items())
    assert set(read_weights(tmp_path / "a.safetensors", small("A-LRN"), 5)) == set(a.state_dict())
    assert "fc8.weight" not in read_weights(tmp_path / "a.safetensors", small("D"), 7, new_last_layer=True)
    with pytest.raises(InputError, match="net of 5 classes, and the shards have 7"):
        read_weights(tmp_path / "a.safetensors", small("D"), 7)
    save_file(make_net(5, small("B")).state_dict(), tmp_path / "b.safetensors")
    with pytest.raises(InputError, match="another VGG net than D; only net A gives its layers"):
        read_weights(tmp_path / "b.safetensors", small("D"), 5)


def _curve(layout: Layout) -> tuple[list[float], dict[str, torch.Tensor], list[float]]:
    """Losses of four steps, the whole net after them, and what it says of the pictures."""
    net = make_net(5, small("A", hidden=(15, 14)), layout.columns, seed=3).to(torch.float64, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step, losses = PlainStep(parallel(net, layout), PaperSGD(net.parameters(), rate=0.001)), []
    images, labels = pictures(64, BATCH).double(), torch.arange(BATCH) % 5
    rows = BATCH // layout.data_count
    own = slice(rows * layout.data_index, rows * (layout.data_index + 1))
    for number in range(4):
        masks = MaskDraw(seed=4, step=number, batch=BATCH, first_row=own.start)
        loss = step(images[own], layout.whole_batch_labels(labels[own]), masks)
        if layout.data_group is not None:
            torch.distributed.all_reduce(loss, group=layout.data_group)
        losses.append(loss.item() / layout.data_count)
    return losses, whole_state(net), whole_net(net).eval()(images)[:, 0].tolist()


def _in_layouts(rank: int) -> list[tuple[list[float], dict[str, torch.Tensor], list[float]]]:
    return [_curve(layout) for working, hybrid in LAYOUTS if not (layout := take_place(working, 1, torch.device("cpu"), 2, hybrid)).spare]


def test_layouts_give_the_curve_of_one_device(tmp_path: Path) -> None:
    losses, state, scores = _curve(Layout())
    assert losses[-1] < losses[0]
    for of_rank in on_ranks(_in_layouts, 2, tmp_path):
        assert len(of_rank) == len(LAYOUTS)
        for their_losses, their_state, their_scores in of_rank:
            assert their_losses == pytest.approx(losses, rel=1e-9)
            assert their_scores == pytest.approx(scores, rel=1e-7)
            assert all(torch.allclose(their_state[name], value, rtol=1e-7, atol=1e-9) for name, value in state.items())


def test_recipes() -> None:
    recipe = read_recipe("vgg", [])
    assert recipe.model == VggDesign(vgg="A", init="glorot")
    assert (recipe.train.batch, recipe.train.rate, recipe.train.epochs, recipe.data.scale) == (256, 0.01, 74, (256, 256))
    assert Recipe.model_validate_json(recipe.model_dump_json(), strict=True) == recipe
    assert read_recipe("vgg", ["model.vgg=D", "data.scale=[256, 512]"]).data.scale == (256, 512)
    for change, words in {
        "model.vgg=F": "model.vgg: input should be 'A', 'A-LRN', 'B', 'C', 'D' or 'E', got \"F\"",
        "model.pool=3": "unknown key model.pool; known here: vgg, maps, hidden, input, lrn, dropout, init, init_std",
        "model.lrn.m=3": "unknown key model.lrn.m; known here: k, n, alpha, beta, divide_by_n",
        "model.maps=[1, 2]": "model.maps.2: field required",
        "train.conv1_freeze_epoch=3": "train.conv1_freeze_epoch is of AlexNet's first layer",
    }.items():
        with pytest.raises(InputError) as refused:
            read_recipe("vgg", [change])
        assert words in str(refused.value), str(refused.value)
    with pytest.raises(InputError, match="recipe is of a VGG net"):
        _ = recipe.alexnet
