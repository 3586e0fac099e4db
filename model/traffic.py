"""How many bytes the ranks of a layout send each other in a training step, layer by layer: arithmetic only."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from model.columns import COLUMNS
from model.hybrid import is_split
from model.layout import Layout
from model.net_design import NetDesign

GRADIENT, LABEL = 4, 8  # bytes: gradients are float32 also where layers compute in bf16; labels are int64


@dataclass(frozen=True)
class Row:
    """Bytes that rank 0 sends in one step for what a layer reads (`logits`: for the loss), in the forward and the backward pass."""

    layer: str
    forward: int
    backward: int


def traffic(design: NetDesign, classes: int, batch: int, columns: int, replicas: int, hybrid: bool = False, element: int = 4) -> list[Row]:
    """Rows in forward order; none for one device. batch: over all ranks; element: bytes of an activation.

    Counted is the payload that must leave rank 0, the least that any algorithm sends: to gather, its part to each other
    rank; to sum parts, each other rank's share of what it has; to sum the whole on all r ranks, 2 (r - 1) / r of it, rounded
    down. Parts of unequal length travel filled up to the longest. Headers, and words that are no tensors of the net
    (signals, pictures, losses), are not counted.
    """
    rows = []
    if hybrid and replicas > 1:
        rows = _hybrid_rows(design, classes, batch, replicas, element)
    elif columns == COLUMNS:
        rows = _column_rows(design, classes, batch // replicas, element)
    if replicas > 1:
        held = {layer: shape for layer, shape in design.shapes(classes).items() if not (hybrid and is_split(layer))}
        gradients = GRADIENT * sum(-(-shape[0] // columns) * (prod(shape[1:]) + 1) for shape in held.values())
        rows.append(Row("gradients", 0, 2 * (replicas - 1) * gradients // replicas))
    return rows


def exchanged(design: NetDesign, classes: int, element: int = 4) -> tuple[int, int]:
    """Bytes that each of two columns, on a device each, sends the other for a picture, in the forward and the backward pass."""
    rows = traffic(design, classes, 1, COLUMNS, 1, element=element) if design.columns == COLUMNS else []
    return sum(row.forward for row in rows), sum(row.backward for row in rows)


def table(layout: Layout, design: NetDesign, classes: int, batch: int) -> list[str]:
    """Lines for a user: bytes for each picture of the batch, and MB a step. On GPUs layers compute in bf16."""
    element = 2 if layout.device.type == "cuda" else 4
    columns = layout.world // layout.data_count
    rows = traffic(design, classes, batch, columns, layout.data_count, layout.hybrid, element)
    if not rows:
        return ["  nothing is exchanged between devices"]
    total = Row("all", sum(row.forward for row in rows), sum(row.backward for row in rows))
    lines = [f"  bytes that a rank sends for each picture of the batch ({8 * element} bits a value; gradients: 32, once a step)"]
    lines.append(f"  {'read by':<12}{'forward':>14}{'backward':>14}{'MB a step':>14}")
    for row in (*rows, total):
        step = (row.forward + row.backward) / 1e6
        lines.append(f"  {row.layer:<12}{row.forward / batch:>14,.0f}{row.backward / batch:>14,.0f}{step:>14,.2f}")
    return lines


def _inputs(design: NetDesign) -> dict[str, int]:
    """Values of one picture that the layers which read all of the layer before have as input."""
    inputs, sides = design.inputs(), design.map_sides()
    return {layer: inputs[layer] * sides.get(layer, 1) ** 2 for layer in design.exchanged()}


def _column_rows(design: NetDesign, classes: int, pictures: int, element: int) -> list[Row]:
    """Each column sends its half of a layer's input, and backward what it asks of the other's half."""
    halves = {layer: pictures * values // COLUMNS * element for layer, values in _inputs(design).items()}
    logits = pictures * -(-classes // COLUMNS) * element
    return [*(Row(layer, half, half) for layer, half in halves.items()), Row("logits", logits, 0)]


def _hybrid_rows(design: NetDesign, classes: int, batch: int, ranks: int, element: int) -> list[Row]:
    """Maps of a rank's pictures to each other rank, then its features of all pictures; backward what it asks of each other rank's."""
    others, inputs = ranks - 1, design.inputs()
    first, *rest = (layer for layer in design.layers() if is_split(layer))
    maps = others * (batch // ranks) * inputs[first] * element
    rows = [Row("labels", others * (batch // ranks) * LABEL, 0), Row(first, maps, maps)]
    for layer in rest:
        part = others * batch * -(-inputs[layer] // ranks) * element
        rows.append(Row(layer, part, part))
    return [*rows, Row("logits", others * batch * -(-classes // ranks) * element, 0)]
