"""The roofs of a training step: figures worked out by hand come out of the design; what PyTorch's own LRN moves is counted here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, one_line, run_here
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Annotation, Text
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model.alexnet import AlexNet
from model.design import Design
from model.ways import Ways
from tools.roofline import EAGER_LRN, Kernel, ceiling, main, parameters, result_of, roof, step_kernels, sums
from tools.roofline_machine import H200, Machine, measured_machine
from tools.roofline_plot import dots, draw, spread

LIMITS = {  # worked out by hand, batch: TFLOP, GB, compute ms, memory ms, roof ms, thousand images/s, and eager, both at 60 % and 80 %
    128: (0.529, 2.75, 0.670, 0.641, 1.09, 117, 58, 79, 42),
    256: (1.059, 3.92, 1.340, 0.912, 1.84, 139, 66, 90, 47),
    512: (2.117, 6.26, 2.680, 1.456, 3.39, 151, 70, 96, 50),
    1024: (4.235, 10.94, 5.361, 2.544, 6.50, 157, 72, 99, 51),
}


@pytest.mark.parametrize("batch", LIMITS)
def test_the_table_of_the_limits(batch: int) -> None:
    """To the digits printed there, bytes to half a percent: the limits count the values after the last pooling once, we wherever they are moved."""
    tflop, gb, compute, memory, milliseconds, thousands, eager, good, good_eager = LIMITS[batch]
    one = sums(Design(), 1000, batch, H200)
    assert one["tflop"] == pytest.approx(tflop, abs=0.0005)
    assert one["compute_ms"] == pytest.approx(compute, abs=0.001)
    assert (one["gb"], one["memory_ms"]) == pytest.approx((gb, memory), rel=0.005)
    assert one["roof_ms"] == pytest.approx(milliseconds, abs=0.005)
    assert one["images_per_s"] == pytest.approx(1000 * thousands, abs=500)
    assert one["eager_images_per_s"] == pytest.approx(1000 * eager, abs=500)
    attained = sums(Design(), 1000, batch, Machine("60 % of peak, 80 % of bandwidth", 0.6 * H200.flops, 0.8 * H200.bandwidth))
    assert attained["images_per_s"] == pytest.approx(1000 * good, rel=0.01)
    assert attained["eager_images_per_s"] == pytest.approx(1000 * good_eager, rel=0.02)


def test_the_parts_of_the_limits() -> None:
    kernels = step_kernels(Design(), 1000, 128)
    assert ceiling(Design(), 1000, H200) == pytest.approx(191_000, abs=500)
    assert parameters(Design(), 1000) == 60_965_224 == sum(Design().parameters(1000).values())
    microseconds = {(kernel.layer, kernel.work): 1e6 * kernel.seconds(H200) for kernel in kernels}
    assert microseconds["conv2", "forward"] == pytest.approx(72.6, abs=0.05)
    assert microseconds["conv3", "input gradient"] == pytest.approx(48.5, abs=0.05)
    assert microseconds["SGD", "all layers"] == pytest.approx(284, abs=0.5)
    normalised = [time for (layer, _), time in microseconds.items() if "LRN" in layer]
    assert len(normalised) == 4
    assert sum(normalised) == pytest.approx(99, abs=0.5)
    whole = sum(microseconds.values())
    fully_connected = sum(time for (layer, _), time in microseconds.items() if layer.startswith("fc"))
    assert (microseconds["SGD", "all layers"] / whole, fully_connected / whole) == pytest.approx((0.26, 0.08), abs=0.005)


def test_bytes_of_a_parameter_and_of_a_picture() -> None:
    """Of a parameter 26 with bfloat16 layers and 32 without, but for conv1, of whose weights no gradient of the input is made."""
    count, conv1 = parameters(Design(), 1000), Design().parameters(1000)["conv1"]
    for element, each in ((2, 26), (4, 32)):
        none, one, two = (sum(kernel.bytes for kernel in step_kernels(Design(), 1000, batch, element)) for batch in (0, 1, 2))
        assert none == each * count - element * conv1
        assert two - one == one - none == pytest.approx(9.13e6 * element / 2, rel=0.005)
    eager = [sum(kernel.bytes for kernel in step_kernels(Design(), 1000, batch, way="eager")) for batch in (0, 1)]
    assert eager[1] - eager[0] == pytest.approx(41e6, rel=0.02)


def test_the_net_computes_these_outputs() -> None:
    """Values counted are those of the real layers: a small design, with an input that leaves pixels over."""
    design = Design(maps=(4, 6, 8, 10, 12), hidden=(14, 16), input=103, conv1_padding=(1, 2))
    seen: dict[str, int] = {"conv1": 0}
    net = AlexNet(5, design).eval()
    net.ways = Ways(fused=False)  # the quick form would be compiled first
    for layer in design.shapes(5):
        getattr(net, layer).register_forward_hook(lambda _, inputs, out, layer=layer: seen.update({layer: out.numel() + inputs[0].numel()}))
    net(torch.zeros(1, 3, 103, 103))
    seen["conv1"] -= 3 * (106**2 - 103**2)  # the zeros around it
    empty, one = (step_kernels(design, 5, batch, element=1) for batch in (0, 1))
    moved = {b.layer: b.bytes - a.bytes for a, b in zip(empty, one, strict=True) if b.products}
    assert moved == seen


def test_a_roof_is_the_longer_of_both() -> None:
    machine = Machine("slow", flops=100.0, bandwidth=10.0)
    much, little = Kernel("a", "forward", 1000, 20), Kernel("b", "forward", 10, 20)
    assert (much.seconds(machine), much.bound(machine)) == (10.0, "compute")
    assert (little.seconds(machine), little.bound(machine)) == (2.0, "memory")
    assert roof([much, little], machine) == 12.0


class Moved(TorchDispatchMode):
    """Counts bytes that operators read and write, each tensor of a call once; views are free."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read = {t.untyped_storage().data_ptr(): t for t in _tensors((args, kwargs))}
        written = [t for t in _tensors(out) if t.untyped_storage().data_ptr() not in read]
        if written:
            self.bytes += sum(t.nbytes for t in (*read.values(), *written))
        return out


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


def test_pytorchs_lrn_moves_more_than_the_limits_say() -> None:
    """Their 25 passes are an estimate that favours the eager net; its operators make 55."""
    x = torch.randn(2, 96, 27, 27, requires_grad=True)
    gradient = torch.ones_like(x)
    with Moved() as moved:
        F.local_response_norm(x, 5, 5e-4, 0.75, 2.0).backward(gradient)
    assert EAGER_LRN < moved.bytes / x.nbytes == pytest.approx(55, abs=1)


def test_this_machine_is_measured() -> None:
    machine = measured_machine(torch.device("cpu"), torch.float32)
    assert 1e8 < machine.flops < 1e15
    assert 1e8 < machine.bandwidth < 1e13
    assert f"{torch.get_num_threads()} threads" in machine.name
    assert 0 < roof(step_kernels(Design(), 1000, 128, element=4), machine) < 3600


def test_spread() -> None:
    assert spread([], 1) == []
    assert spread([0, 5, 9], 2) == [0, 5, 9]
    assert spread([1, 1, 1], 2) == [-1, 1, 3]
    wanted = [0.1, 0.4, 0.41, 0.42, 0.5, 0.9]
    assert all(after - before > 0.05 - 1e-9 for before, after in pairwise(spread(wanted, 0.05)))


def test_no_two_labels_of_the_picture_overlap() -> None:
    figure = draw(result_of(Design(), 1000, [128, 1024], H200, "bfloat16"))
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axes in figure.axes:
        found = [child for child in axes.get_children() if isinstance(child, Annotation)]
        boxes = [Text.get_window_extent(label, renderer) for label in found]  # without its line, which may run close to others
        assert len(boxes) == 15  # 8 layers, 2 x 3 of pooling, SGD
        for (one, a), (other, b) in combinations(zip(found, boxes, strict=True), 2):
            assert not a.overlaps(b), f"{one.get_text()} lies over {other.get_text()}"


def test_kernels_at_one_place_are_one_dot() -> None:
    result = result_of(Design(), 1000, [128], H200, "bfloat16")
    found = {(dot.layer, len(dot.works)) for dot in dots(result["kernels"]["128"])}
    assert {("conv1", 2), ("conv2", 3), ("fc8", 3), ("SGD", 1)} <= found
    assert math.isclose(sum(dot.share for dot in dots(result["kernels"]["128"])), 1)


def test_the_command(tmp_path: Path) -> None:
    out = tmp_path / "roofline.json"
    said = run_here(main, "--batch", "1024,128", "--out", out)
    assert said.returncode == 0, said.stderr
    assert [line.split()[0] for line in said.stdout.splitlines()[-3:-1]] == ["128", "1024"]
    assert said.stdout.splitlines()[-1] == "ceiling of arithmetic: 191,024 images/s"
    result = json.loads(out.read_text())
    assert {row["layer"] for row in result["kernels"]["128"]} > set(Design().shapes(1000))
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "128,x"), ("--batch", "'128,x'")),
        (("--batch", "0"), ("--batch", "from 1 up")),
        (("--classes", "0"), ("--classes", "at least 1")),
        (("--precision", "float32"), ("h200", "bfloat16")),
        (("--out", "roofline.txt"), ("roofline.txt", ".json")),
        (("--out", "nowhere/roofline.json"), ("nowhere", "not a folder")),
    ],
)
def test_what_cannot_be_used(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    one_line(run_here(main, *arguments), *words)


def test_the_committed_result_is_what_the_tool_makes() -> None:
    committed = json.loads((ROOT / "docs/benchmarks/roofline.json").read_text())
    assert committed == json.loads(json.dumps(result_of(Design(), 1000, [128, 256, 512, 1024], H200, "bfloat16")))


def test_the_page_has_the_tools_figures() -> None:
    page, result = (ROOT / "docs/speed.md").read_text(), result_of(Design(), 1000, [128, 256, 512, 1024], H200, "bfloat16")
    for one in result["sums"]:
        rates = " | ".join(f"{round(one[key], -3):,.0f}" for key in ("images_per_s", "eager_images_per_s"))
        assert f"| {one['batch']} | {one['tflop']:.3f} | {one['gb']:.2f} | {one['roof_ms']:.2f} | {rates} |" in page
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "SGD"):
        line = next(line for line in page.splitlines() if line.startswith(f"| {layer} |") and line.count("%") == 2)
        for batch in ("128", "1024"):
            same = [row for row in result["kernels"][batch] if row["layer"] == layer]
            time, share = (sum(row[key] for row in same) for key in ("roof_us", "share"))
            assert f"{time:,.0f} " in line, (layer, batch, line)
            assert f"| {100 * share:.1f} % |" in line, (layer, batch, line)
