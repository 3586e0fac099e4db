"""What designs of nets have in common: sizes that follow from their layers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING


class NetDesign(ABC):
    """Layers are named conv... and fc..., fc8 the last; kernels are square, and convolutions keep the side of their input but for conv1."""

    if TYPE_CHECKING:  # fields of the designs, in their own order
        input: int
        hidden: tuple[int, int]
        dropout: float

        @property
        def columns(self) -> int: ...

        @property
        def activation(self) -> str: ...

    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """The layers that there are, in order."""

    @abstractmethod
    def initial(self, layer: str, classes: int) -> tuple[float, float]:
        """Spread of a layer's normal initial weights, and its initial biases."""

    @abstractmethod
    def reads_all(self, layer: str) -> bool:
        """Whether a layer reads all outputs of the one before, not those of its own column only."""

    @abstractmethod
    def kernel(self, layer: str) -> int:
        """Side of a convolution's kernels."""

    def stride(self, layer: str) -> int:
        """Of a convolution. One that is not of 1 brings its padding elsewhere."""
        return 1

    @abstractmethod
    def outputs(self, classes: int) -> dict[str, int]:
        """Maps or features that a layer gives, both columns together."""

    @abstractmethod
    def map_sides(self) -> dict[str, int]:
        """Side of a convolution's outputs, by layer."""

    @abstractmethod
    def last_side(self) -> int:
        """Side of the maps that the first fully connected layer reads."""

    def exchanged(self) -> tuple[str, ...]:
        """Layers before which two columns on two devices have to exchange their outputs."""
        return tuple(layer for layer in self.layers()[1:] if self.columns == 2 and self.reads_all(layer))

    def inputs(self, classes: int = 2) -> dict[str, int]:
        """Maps or features that come before a layer, both columns together: of a picture, of maps, or of flattened maps."""
        widths, before = self.outputs(classes), 3
        found: dict[str, int] = {}
        for layer in self.layers():
            if layer.startswith("fc") and not any(one.startswith("fc") for one in found):
                before *= self.last_side() ** 2
            found[layer], before = before, widths[layer]
        return found

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Canonical weight shapes of the whole net by layer: (out, in, k, k) or (out, in)."""
        found: dict[str, tuple[int, ...]] = {}
        outputs = self.outputs(classes)
        for layer, before in self.inputs(classes).items():
            read = before if self.reads_all(layer) else before // 2
            kernel = () if layer.startswith("fc") else (self.kernel(layer),) * 2
            found[layer] = (outputs[layer], read, *kernel)
        return found

    def parameters(self, classes: int) -> dict[str, int]:
        """Weights and biases of the whole net by layer."""
        return {layer: prod(shape) + shape[0] for layer, shape in self.shapes(classes).items()}

    def two_column_shapes(self, pictures: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], int]]:
        """Of each convolution that reads its own column only: shape of its input, of its weights, padding."""
        inputs, shapes, sides = self.inputs(), self.shapes(2), self.map_sides()
        return {
            layer: ((pictures, inputs[layer], side, side), shapes[layer], shapes[layer][-1] // 2)
            for layer, side in sides.items()
            if not self.reads_all(layer)
        }

    def multiply_adds(self, classes: int) -> dict[str, int]:
        """Forward multiply-adds of one picture, by layer."""
        sides = self.map_sides()
        return {layer: prod(shape) * sides.get(layer, 1) ** 2 for layer, shape in self.shapes(classes).items()}
