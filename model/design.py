"""What an AlexNet is made of. The defaults are the paper's net."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, model_validator

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")

Eight = tuple[float, float, float, float, float, float, float, float]


class Lrn(BaseModel):
    """Local response normalisation. divide_by_n: alpha is divided by n, as in the authors' program and in PyTorch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: float = Field(default=2.0, gt=0)
    n: int = Field(default=5, ge=1)
    alpha: float = Field(default=1e-4, ge=0)
    beta: float = Field(default=0.75, gt=0)
    divide_by_n: bool = False

    @model_validator(mode="after")
    def _odd(self) -> Lrn:
        if self.n % 2 == 0:
            raise ValueError(f"n must be odd, so that the window has a middle, not {self.n}")
        return self

    def printed(self) -> dict[str, float]:
        """k, n, alpha and beta of the formula as printed, in which alpha is not divided."""
        return {"k": self.k, "n": self.n, "alpha": self.alpha / self.n if self.divide_by_n else self.alpha, "beta": self.beta}


class Design(BaseModel):
    """Sizes are totals over both columns; lists of eight go by layer: conv1 ... conv5, fc6, fc7, fc8.

    input: side of the picture in pixels; conv1_padding: zeros (before, after) each side of it; relu_after_pool: layers whose
    ReLU comes after their pooling; within_map_norm: the 2012 program's second normalisation after conv2's;
    init_std: of the normal initial weights; bias: initial biases.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    maps: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: tuple[int, int] = (4096, 4096)
    input: int = Field(default=227, ge=1)
    conv1_padding: tuple[int, int] = (0, 0)
    lrn: Lrn = Lrn()
    relu_after_pool: tuple[str, ...] = ()
    within_map_norm: bool = False
    dropout: float = Field(default=0.5, ge=0, lt=1)
    init_std: Eight = (0.01,) * 8
    bias: Eight = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)

    @model_validator(mode="after")
    def _possible(self) -> Design:
        for value in (*self.maps, *self.hidden):
            if value < 2 or value % 2:
                raise ValueError(f"maps and hidden must be even and positive, since two columns share them, not {value}")
        if min(self.conv1_padding) < 0 or max(self.conv1_padding) > 10:
            raise ValueError(f"conv1_padding must be from 0 to 10, not {list(self.conv1_padding)}")
        if self.sides()[-1] < 1:
            raise ValueError(f"input {self.input} is too small: nothing is left after the last pooling")
        if set(self.relu_after_pool) - {"conv1", "conv2", "conv5"}:
            raise ValueError("relu_after_pool names layers that are followed by pooling: conv1, conv2, conv5")
        if min(self.init_std) <= 0:
            raise ValueError("init_std must be above 0")
        return self

    def sides(self) -> tuple[int, int, int, int]:
        """Side of the maps after conv1 and after the three poolings: 55, 27, 13, 6 for the paper."""
        after_conv1 = (self.input + sum(self.conv1_padding) - 11) // 4 + 1
        first = (after_conv1 - 3) // 2 + 1
        second = (first - 3) // 2 + 1
        return after_conv1, first, second, (second - 3) // 2 + 1

    def shapes(self, classes: int) -> dict[str, tuple[int, ...]]:
        """Canonical weight shapes of the whole net by layer: (out, in, k, k) or (out, in)."""
        m, (h6, h7) = self.maps, self.hidden
        return {
            "conv1": (m[0], 3, 11, 11),
            "conv2": (m[1], m[0] // 2, 5, 5),
            "conv3": (m[2], m[1], 3, 3),
            "conv4": (m[3], m[2] // 2, 3, 3),
            "conv5": (m[4], m[3] // 2, 3, 3),
            "fc6": (h6, m[4] * self.sides()[-1] ** 2),
            "fc7": (h7, h6),
            "fc8": (classes, h7),
        }

    def two_column_shapes(self, pictures: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], int]]:
        """Of each convolution that reads its own column only: shape of its input, of its weights, padding."""
        _, side2, side3, _ = self.sides()
        m, shapes = self.maps, self.shapes(2)
        inputs = {"conv2": (m[0], side2, 2), "conv4": (m[2], side3, 1), "conv5": (m[3], side3, 1)}
        return {layer: ((pictures, maps, side, side), shapes[layer], padding) for layer, (maps, side, padding) in inputs.items()}

    def multiply_adds(self, classes: int) -> dict[str, int]:
        """Forward multiply-adds of one picture, by layer."""
        side1, side2, side3, _ = self.sides()
        outputs = {"conv1": side1**2, "conv2": side2**2, "conv3": side3**2, "conv4": side3**2, "conv5": side3**2}
        counts = {}
        for layer, shape in self.shapes(classes).items():
            weights = 1
            for extent in shape:
                weights *= extent
            counts[layer] = weights * outputs.get(layer, 1)
        return counts
