"""The net as an ONNX graph, layer by layer, with ONNX's own LRN for each column."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from model.design import Design, Lrn
from model.net_design import NetDesign
from model.vgg_design import CONNECTED, VggDesign
from pipeline import InputError

OPSET = 17


class Graph:
    """Nodes in order; `x` is the name of the last one's output."""

    def __init__(self, helper: Any) -> None:
        self.helper, self.nodes, self.constants, self.x = helper, list[Any](), dict[str, np.ndarray](), "images"

    def add(self, kind: str, *more: str, inputs: tuple[str, ...] | None = None, **attributes: Any) -> str:
        """A node of the last output and `more`, or of `inputs`."""
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.helper.make_node(kind, list(inputs or (self.x, *more)), [name], name, **attributes))
        self.x = name
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name

    def halves(self, name: str | None = None, axis: int = 1) -> tuple[str, str]:
        """The two columns of the last output, or of what has this name."""
        names = (f"first{len(self.nodes)}", f"second{len(self.nodes)}")
        self.nodes.append(self.helper.make_node("Split", [name or self.x], list(names), axis=axis))
        return names

    def linear_columns(self, layer: str) -> None:
        """A linear layer whose columns read their own inputs."""
        parts = zip(self.halves(), self.halves(f"{layer}.weight", 0), self.halves(f"{layer}.bias", 0), strict=True)
        self.add("Concat", inputs=tuple(self.add("Gemm", inputs=part, transB=1) for part in [*parts]), axis=1)


def to_onnx(weights: dict[str, torch.Tensor], design: NetDesign) -> bytes:
    """(n, 3, input, input) float32 grey levels, mean subtracted -> (n, classes) logits. Initialisers have canonical names.

    Raises InputError without the package onnx.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError:
        raise InputError("a .onnx file needs the package onnx to be written; pip install onnx") from None
    graph = Graph(helper)
    if isinstance(design, VggDesign):
        _vgg_layers(graph, design)
    else:
        assert isinstance(design, Design), "there are two kinds"
        _layers(graph, design)
    graph.nodes[-1].output[0] = "logits"
    constants = {**{name: value.numpy() for name, value in weights.items()}, **graph.constants}
    initialisers = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", 3, design.input, design.input])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", len(weights["fc8.bias"])])
    made = helper.make_model(
        helper.make_graph(graph.nodes, "vgg" if isinstance(design, VggDesign) else "alexnet", [images], [logits], initialisers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=9,
    )
    onnx.checker.check_model(made, full_check=True)
    content: bytes = made.SerializeToString()
    return content


def _layers(graph: Graph, design: Design) -> None:
    (before, after), convolutions = design.conv1_padding, list(design.map_sides())
    for layer, shape in design.shapes(2).items():
        if layer == "conv1":
            graph.add("Conv", "conv1.weight", "conv1.bias", strides=[4, 4], pads=[before, before, after, after])
        elif len(shape) == 4:
            groups = 1 if design.reads_all(layer) else 2
            graph.add("Conv", f"{layer}.weight", f"{layer}.bias", pads=[shape[2] // 2] * 4, group=groups)
        if layer in ("conv1", "conv2"):
            _normalised_pool(graph, design, layer)
        elif len(shape) == 4:
            _fire(graph, design)
        if layer == [one for one in convolutions if one != "conv6"][-1]:
            graph.add("MaxPool", kernel_shape=[design.pool] * 2, strides=[2, 2])  # ReLU before or after it is the same, and tanh too
        if layer == convolutions[-1]:
            graph.add("Flatten")
        if len(shape) == 2:
            _linear(graph, design, layer)


def _vgg_layers(graph: Graph, design: VggDesign) -> None:
    for stage in design.stages():
        for layer in stage:
            graph.add("Conv", f"{layer}.weight", f"{layer}.bias", pads=[design.kernel(layer) // 2] * 4)
            graph.add("Relu")
            if layer == "conv1_1" and design.vgg == "A-LRN":
                _lrn(graph, design.lrn)
        graph.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
    graph.add("Flatten")
    for layer in CONNECTED:
        _linear(graph, design, layer)


def _linear(graph: Graph, design: NetDesign, layer: str) -> None:
    if design.reads_all(layer):
        graph.add("Gemm", f"{layer}.weight", f"{layer}.bias", transB=1)
    else:
        graph.linear_columns(layer)
    if layer != "fc8":
        _fire(graph, design)


def _fire(graph: Graph, design: NetDesign) -> None:
    graph.add("Relu" if design.activation == "relu" else "Tanh")


def _normalised_pool(graph: Graph, design: Design, layer: str) -> None:
    late, s = layer in design.relu_after_pool, design.lrn
    if not late:
        _fire(graph, design)
    if s is not None:
        parts = graph.halves() if design.columns == 2 else (graph.x,)
        graph.add("Concat", inputs=tuple([_lrn(graph, s, part) for part in parts]), axis=1)
    if layer == "conv2" and design.within_map_norm:
        _within_map(graph)
    graph.add("MaxPool", kernel_shape=[design.pool] * 2, strides=[2, 2])
    if late:
        _fire(graph, design)


def _lrn(graph: Graph, settings: Lrn, x: str | None = None) -> str:
    """ONNX divides alpha by the size of the window. x: what it reads, or the last output."""
    alpha = settings.alpha if settings.divide_by_n else settings.alpha * settings.n
    return graph.add("LRN", inputs=(x or graph.x,), size=settings.n, alpha=alpha, beta=settings.beta, bias=settings.k)


def _within_map(graph: Graph, size: int = 5, alpha: float = 0.001 / 25, beta: float = 0.75) -> None:
    """model.lrn.within_map_norm."""
    x = graph.x
    graph.add("Mul", inputs=(x, x))
    graph.add("AveragePool", kernel_shape=[size, size], pads=[size // 2] * 4, count_include_pad=1)
    graph.add("Mul", graph.constant("within_map_alpha", np.float32(alpha * size**2)))
    graph.add("Add", graph.constant("one", np.float32(1)))
    graph.add("Pow", graph.constant("within_map_power", np.float32(-beta)))
    graph.add("Mul", inputs=(x, graph.x))
