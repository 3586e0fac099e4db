"""The least time that a training step can take: every kernel against a machine's arithmetic and its memory.

    python tools/roofline.py [--machine h200|here] [--precision bfloat16|float32] [--batch 128,256,512,1024] [--classes 1000]
                             [--out docs/benchmarks/roofline.json]

A kernel takes at least as long as its arithmetic at the machine's peak, and as its bytes at the machine's bandwidth; the longer of the
two is its roof, and a step's roof is the sum, since kernels run one behind the other. (The roofline model: Williams, Waterman and
Patterson, Communications of the ACM 52 (4), 2009.) Bytes are counted as if every kernel read its inputs once and wrote its outputs once, and as if
bias, ReLU of conv3 to fc7, and dropout were done on the way. Not counted: cropping, the loss, anything between devices.

--machine here measures peak and bandwidth in about two seconds. Prints rows for the smallest and the largest batch and the sums for all;
with --out (h200: docs/benchmarks/roofline.json unless given) writes them as JSON, and beside it the picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch

from model.design import Design
from pipeline.atomic import atomic_file
from pipeline.errors import InputError, one_line_errors
from tools.roofline_machine import H200, Machine, measured_machine
from tools.roofline_plot import write_plot

Way = Literal["fused", "eager"]
POOLED = ("conv1", "conv2", "conv5")
CONVOLUTIONS = ("conv1", "conv2", "conv3", "conv4", "conv5")
HALF, FLOAT, INDEX = 2, 4, 8  # bytes: bfloat16, float32, the int64 that PyTorch keeps for a pooled value
PRECISIONS = {"bfloat16": (torch.bfloat16, HALF), "float32": (torch.float32, FLOAT)}
EAGER_LRN = 25  # passes over the maps, forward and backward, an estimate that favours PyTorch; tests/test_roofline.py counts 55
EAGER_SGD = 32  # bytes a parameter: three passes, of 8, 12 and 12, in float32
SGD_FLOP = 6  # a parameter: three products, three sums
OUT = Path("docs/benchmarks/roofline.json")


@dataclass(frozen=True)
class Kernel:
    """Of one step: floating-point operations, bytes read and written. products: convolutions and matrices, what tensor cores do."""

    layer: str
    work: str
    flops: int
    bytes: int
    products: bool = False

    def seconds(self, machine: Machine) -> float:
        return max(self.flops / machine.flops, self.bytes / machine.bandwidth)

    def bound(self, machine: Machine) -> str:
        return "compute" if self.flops / machine.flops > self.bytes / machine.bandwidth else "memory"


def step_kernels(design: Design, classes: int, batch: int, element: int = HALF, way: Way = "fused") -> list[Kernel]:
    """Kernels of a step. element: bytes of an activation, and of a weight as layers read it; the weights themselves are float32.

    fused: ReLU, LRN and pooling in one kernel forward and one backward, SGD in one pass. eager: each operator by itself.
    """
    after = _fused if way == "fused" else _apart
    found: list[Kernel] = []
    for layer in design.shapes(classes):
        found += [*_products(design, classes, layer, batch, element), *after(design, layer, batch, element)]
    return [*found, _sgd(design, classes, element, way)]


def _products(design: Design, classes: int, layer: str, batch: int, element: int) -> list[Kernel]:
    """Forward, gradient of the weights, of the input: the same multiply-adds and, since inputs and outputs change places, the same bytes."""
    shape, flops = design.shapes(classes)[layer], 2 * batch * design.multiply_adds(classes)[layer]
    size = element * (batch * sum(_values(design, classes)[layer]) + prod(shape) + shape[0])
    works = ("forward", "weight gradient") + (("input gradient",) if layer != "conv1" else ())
    return [Kernel(layer, work, flops, size, products=True) for work in works]


def _values(design: Design, classes: int = 1) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of one picture, by layer. Zeros around a map are not read from memory."""
    side1, side2, side3, _ = design.sides()
    sides = {"conv1": (design.input, side1), "conv2": (side2, side2), **dict.fromkeys(("conv3", "conv4", "conv5"), (side3, side3))}
    maps, found = (3, *design.maps), {}
    for layer, shape in design.shapes(classes).items():
        if layer in sides:
            before, after = sides[layer]
            found[layer] = (maps[CONVOLUTIONS.index(layer)] * before**2, shape[0] * after**2)
        else:
            found[layer] = (shape[1], shape[0])
    return found


def _pooled(design: Design, layer: str) -> int:
    """Values of one picture after the pooling that follows a layer."""
    _, *sides = design.sides()
    return design.maps[CONVOLUTIONS.index(layer)] * sides[POOLED.index(layer)] ** 2


def _fused(design: Design, layer: str, batch: int, element: int) -> list[Kernel]:
    """Forward reads the maps and writes the pooled ones; backward reads the pooled ones' gradient and the maps, and writes the maps' gradient.

    Operations are those of model/lrn.py, a root as one; of pooling, its comparisons.
    """
    if layer not in POOLED:
        return []
    maps, pooled, n = _values(design)[layer][1], _pooled(design, layer), design.lrn.n if design.lrn else 0
    normalised = layer != "conv5"
    forward, backward = (n + 8, 2 * n + 14) if normalised else (1, 1)
    name = ("ReLU + LRN + pool " if normalised else "ReLU + pool ") + layer[-1]
    return [
        Kernel(name, "forward", batch * (forward * maps + 8 * pooled), batch * element * (maps + pooled)),
        Kernel(name, "backward", batch * (backward * maps + 8 * pooled), batch * element * (2 * maps + pooled)),
    ]


def _apart(design: Design, layer: str, batch: int, element: int) -> list[Kernel]:
    """ReLU: two passes forward, three backward; LRN: EAGER_LRN; pooling reads and writes an index for each pooled value as well."""
    if layer == "fc8":
        return []
    values, n = batch * _values(design)[layer][1], design.lrn.n if design.lrn else 0
    found = [Kernel(f"ReLU {layer}", "both ways", 2 * values, 5 * element * values)]
    if layer in ("conv1", "conv2"):
        found.append(Kernel(f"LRN {layer[-1]}", "both ways", (3 * n + 20) * values, EAGER_LRN * element * values))
    if layer in POOLED:
        pooled = batch * _pooled(design, layer)
        found.append(Kernel(f"pool {layer[-1]}", "both ways", 16 * pooled, 2 * (element * (values + pooled) + INDEX * pooled)))
    return found


def parameters(design: Design, classes: int) -> int:
    return sum(prod(shape) + shape[0] for shape in design.shapes(classes).values())


def _sgd(design: Design, classes: int, element: int, way: Way) -> Kernel:
    """Weight and velocity are read and written, the gradient read, and where layers compute in bfloat16 the weight written for them: 20 bytes."""
    count = parameters(design, classes)
    size = 4 * FLOAT + element + (element if element < FLOAT else 0)
    return Kernel("SGD", "all layers", SGD_FLOP * count, count * (size if way == "fused" else EAGER_SGD))


def roof(kernels: list[Kernel], machine: Machine) -> float:
    """Seconds."""
    return sum(kernel.seconds(machine) for kernel in kernels)


def ceiling(design: Design, classes: int, machine: Machine) -> float:
    """Images a second if nothing but the products' arithmetic took time. No gradient of the pictures is asked for."""
    counts = design.multiply_adds(classes)
    return machine.flops / (2 * (3 * sum(counts.values()) - counts["conv1"]))


def sums(design: Design, classes: int, batch: int, machine: Machine, element: int = HALF) -> dict[str, float]:
    """Of one step: TFLOP of products, GB, the two roofs if everything overlapped, the sum of the kernels' roofs fused and eager."""
    fused, eager = (step_kernels(design, classes, batch, element, way) for way in ("fused", "eager"))
    flops, moved = sum(kernel.flops for kernel in fused if kernel.products), sum(kernel.bytes for kernel in fused)
    return {
        "batch": batch,
        "tflop": flops / 1e12,
        "gb": moved / 1e9,
        "compute_ms": 1e3 * flops / machine.flops,
        "memory_ms": 1e3 * moved / machine.bandwidth,
        "roof_ms": 1e3 * roof(fused, machine),
        "images_per_s": batch / roof(fused, machine),
        "eager_roof_ms": 1e3 * roof(eager, machine),
        "eager_images_per_s": batch / roof(eager, machine),
    }


def rows(kernels: list[Kernel], machine: Machine) -> list[dict[str, Any]]:
    """As they stand in the JSON."""
    whole = roof(kernels, machine)
    return [
        {
            **asdict(kernel),
            "flop_per_byte": kernel.flops / kernel.bytes,
            "roof_us": 1e6 * kernel.seconds(machine),
            "bound": kernel.bound(machine),
            "share": kernel.seconds(machine) / whole,
        }
        for kernel in kernels
    ]


def result_of(design: Design, classes: int, batches: list[int], machine: Machine, precision: str) -> dict[str, Any]:
    element = PRECISIONS[precision][1]
    return {
        "machine": asdict(machine),
        "precision": precision,
        "classes": classes,
        "parameters": parameters(design, classes),
        "ceiling_images_per_s": ceiling(design, classes, machine),
        "sums": [sums(design, classes, batch, machine, element) for batch in batches],
        "kernels": {str(batch): rows(step_kernels(design, classes, batch, element), machine) for batch in batches},
    }


def table(result: dict[str, Any]) -> list[str]:
    """For a user: the kernels of the smallest and the largest batch, then the sums."""
    machine, batches = result["machine"], sorted(map(int, result["kernels"]))
    lines = [f"{machine['name']}: {machine['flops'] / 1e12:,.4g} TFLOP/s in {result['precision']}, {machine['bandwidth'] / 1e9:,.4g} GB/s"]
    for batch in dict.fromkeys((batches[0], batches[-1])):
        lines += ["", f"{f'batch {batch}':<38}{'GFLOP':>9}{'MB':>9}{'FLOP/B':>9}{'roof us':>10}  {'bound by':<9}{'share':>7}"]
        lines += [_row(row) for row in result["kernels"][str(batch)]]
    lines += ["", f"{'batch':>6}{'TFLOP':>8}{'GB':>8}{'roof ms':>10}{'images/s':>11}{'eager ms':>11}{'images/s':>11}"]
    for one in result["sums"]:
        ours = f"{one['roof_ms']:>10.2f}{one['images_per_s']:>11,.0f}{one['eager_roof_ms']:>11.2f}{one['eager_images_per_s']:>11,.0f}"
        lines.append(f"{one['batch']:>6}{one['tflop']:>8.3f}{one['gb']:>8.2f}{ours}")
    return [*lines, f"ceiling of arithmetic: {result['ceiling_images_per_s']:,.0f} images/s"]


def _row(row: dict[str, Any]) -> str:
    numbers = f"{row['flops'] / 1e9:>9.2f}{row['bytes'] / 1e6:>9.1f}{row['flop_per_byte']:>9.1f}{row['roof_us']:>10.1f}"
    return f"{row['layer'] + ', ' + row['work']:<38}{numbers}  {row['bound']:<9}{100 * row['share']:>5.1f} %"


def _batches(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--batch must be different numbers from 1 up with commas between, such as 128,1024, not {text!r}")
    return sorted(map(int, parts))


def write(result: dict[str, Any], out: Path) -> None:
    """JSON, and the picture beside it, each whole or not at all."""
    with atomic_file(out, "w") as file:
        file.write(json.dumps(result, indent=1) + "\n")
    write_plot(result, out.with_suffix(".png"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The least time of a training step.", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--machine", choices=("h200", "here"), default="h200", help="here: measured, on a GPU if there is one")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="bfloat16", help="what layers compute in; h200 is of bfloat16")
    parser.add_argument("--batch", default="128,256,512,1024", help="images a step")
    parser.add_argument("--classes", type=int, default=1000, help="outputs of fc8")
    parser.add_argument("--out", type=Path, help=f"JSON to write, PNG beside it (default: {OUT} for h200, nothing for here)")
    given = parser.parse_args(arguments)
    with one_line_errors():
        batches, out = _batches(given.batch), given.out or (OUT if given.machine == "h200" else None)
        if given.classes < 1:
            raise InputError(f"--classes must be at least 1, not {given.classes}")
        if given.machine == "h200" and given.precision != "bfloat16":
            raise InputError("--machine h200 knows the peak of bfloat16 only; leave --precision out")
        if out is not None and out.suffix != ".json":
            raise InputError(f"--out {out} must end in .json")
        here = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        machine = H200 if given.machine == "h200" else measured_machine(here, PRECISIONS[given.precision][0])
        result = result_of(Design(), given.classes, batches, machine, given.precision)
        print("\n".join(table(result)))
        if out is not None:
            write(result, out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
