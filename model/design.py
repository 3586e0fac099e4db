"""What an AlexNet is made of. The defaults are the paper's net."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.net_design import NetDesign

LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
ALL = (*LAYERS[:5], "conv6", *LAYERS[5:])  # with the layer that only the pretrained net has
POOLED = ("conv1", "conv2", "conv5")  # layers that pooling follows; without conv5 it is where conv5 would be
MIDDLE = ("conv3", "conv4", "conv5", "fc6", "fc7")  # layers that can be left out

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


class Design(BaseModel, NetDesign):
    """Sizes are totals over both columns; lists of eight go by layer: conv1 ... conv5, fc6, fc7, fc8.

    input: side of the picture in pixels; conv1_padding: zeros (before, after) each side of it; relu_after_pool: layers whose
    ReLU comes after their pooling; within_map_norm: the 2012 program's second normalisation after conv2's; lrn: None, a net without;
    init_std: of the normal initial weights; bias: initial biases. What the paper takes away to see what it is worth: columns, 1: all
    layers read all of the one before; reads_both: of two columns, the layers that do, from conv2 on (conv1 reads the picture); pool: side of the
    pooling windows, whose stride is 2; without: layers that are left out; activation. conv6: maps of a sixth convolution, 3x3 over the last
    pooling's maps of both columns, with the initial values of conv5 (section 6: of the net trained on all of ImageNet first).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    maps: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
    hidden: tuple[int, int] = (4096, 4096)
    input: int = Field(default=227, ge=1)
    conv1_padding: tuple[int, int] = (0, 0)
    lrn: Lrn | None = Lrn()
    relu_after_pool: tuple[str, ...] = ()
    within_map_norm: bool = False
    dropout: float = Field(default=0.5, ge=0, lt=1)
    init_std: Eight = (0.01,) * 8
    bias: Eight = (0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    columns: Literal[1, 2] = 2
    reads_both: tuple[str, ...] = ("conv3", "fc6", "fc7", "fc8")
    pool: Literal[2, 3] = 3
    without: tuple[str, ...] = ()
    conv6: int | None = None
    activation: Literal["relu", "tanh"] = "relu"

    @model_validator(mode="after")
    def _possible(self) -> Design:
        for value in (*self.maps, *self.hidden, *([] if self.conv6 is None else [self.conv6])):
            if value < 2 or value % 2:
                raise ValueError(f"maps and hidden must be even and positive, since two columns share them, not {value}")
        if min(self.conv1_padding) < 0 or max(self.conv1_padding) > 10:
            raise ValueError(f"conv1_padding must be from 0 to 10, not {list(self.conv1_padding)}")
        if self.sides()[-1] < 1:
            raise ValueError(f"input {self.input} is too small: nothing is left after the last pooling")
        if set(self.relu_after_pool) - set(POOLED):
            raise ValueError(f"relu_after_pool names layers that are followed by pooling: {', '.join(POOLED)}")
        if min(self.init_std) <= 0:
            raise ValueError("init_std must be above 0")
        return self

    @model_validator(mode="after")
    def _known_layers(self) -> Design:
        if set(self.without) - set(MIDDLE):
            raise ValueError(f"without names layers of {', '.join(MIDDLE)}, not {list(self.without)}")
        if "fc8" not in self.reads_both or set(self.reads_both) - set(LAYERS[1:]):
            raise ValueError(f"reads_both names layers of {', '.join(LAYERS[1:])}, fc8 among them, not {list(self.reads_both)}")
        if self.within_map_norm and self.lrn is None:
            raise ValueError("within_map_norm comes after conv2's lrn, which is null here")
        return self

    def layers(self) -> tuple[str, ...]:
        return tuple(layer for layer in ALL if layer not in self.without and (layer != "conv6" or self.conv6))

    def initial(self, layer: str, classes: int) -> tuple[float, float]:
        place = LAYERS.index("conv5" if layer == "conv6" else layer)
        return self.init_std[place], self.bias[place]

    def reads_all(self, layer: str) -> bool:
        return layer in ("conv1", "conv6") or self.columns == 1 or layer in self.reads_both

    def kernel(self, layer: str) -> int:
        return {"conv1": 11, "conv2": 5}.get(layer, 3)

    def stride(self, layer: str) -> int:
        return 4 if layer == "conv1" else 1

    def last_side(self) -> int:
        return self.sides()[-1]

    def outputs(self, classes: int) -> dict[str, int]:
        widths = dict(zip(ALL, (*self.maps, self.conv6 or 0, *self.hidden, classes), strict=True))
        return {layer: widths[layer] for layer in self.layers()}

    def sides(self) -> tuple[int, int, int, int]:
        """Side of the maps after conv1 and after the three poolings: 55, 27, 13, 6 for the paper."""
        after_conv1 = (self.input + sum(self.conv1_padding) - 11) // 4 + 1
        first = (after_conv1 - self.pool) // 2 + 1
        second = (first - self.pool) // 2 + 1
        return after_conv1, first, second, (second - self.pool) // 2 + 1

    def map_sides(self) -> dict[str, int]:
        side1, side2, side3, side4 = self.sides()
        sides = {"conv1": side1, "conv2": side2, "conv3": side3, "conv4": side3, "conv5": side3, "conv6": side4}
        return {layer: side for layer, side in sides.items() if layer in self.layers()}
