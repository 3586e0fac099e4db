"""What a VGG net is made of (Simonyan and Zisserman, arXiv 1409.1556, table 1). The defaults are net A for ImageNet."""

from __future__ import annotations

from math import sqrt
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from model.design import Lrn
from model.net_design import NetDesign

Name = Literal["A", "A-LRN", "B", "C", "D", "E"]
STAGES: dict[Name, tuple[int, int, int, int, int]] = {  # convolutions before each of the five poolings
    "A": (1, 1, 2, 2, 2),
    "A-LRN": (1, 1, 2, 2, 2),
    "B": (2, 2, 2, 2, 2),
    "C": (2, 2, 3, 3, 3),
    "D": (2, 2, 3, 3, 3),
    "E": (2, 2, 4, 4, 4),
}
ONE_BY_ONE = ("conv3_3", "conv4_3", "conv5_3")  # of C
CONNECTED = ("fc6", "fc7", "fc8")
FROM_A = ("conv1_1", "conv2_1", "conv3_1", "conv3_2", *CONNECTED)  # with which deeper nets begin (section 3.1)


class VggDesign(BaseModel, NetDesign):
    """A net of the VGG paper: 3x3 convolutions in five stages with a pooling of 2, stride 2, behind each; conv1_1 ... conv5_4, fc6, fc7, fc8.

    maps: of each stage. lrn: of A-LRN, behind conv1_1. init: of the weights, normal with deviation init_std (the paper's variance is
    0.01), or with that of Glorot's rule, by which, the paper adds, deep nets need not begin with the weights of A. Biases begin at 0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    vgg: Name
    maps: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
    hidden: tuple[int, int] = (4096, 4096)
    input: int = Field(default=224, ge=32)
    lrn: Lrn = Lrn()
    dropout: float = Field(default=0.5, ge=0, lt=1)
    init: Literal["normal", "glorot"] = "normal"
    init_std: float = Field(default=0.1, gt=0)

    @model_validator(mode="after")
    def _possible(self) -> VggDesign:
        for value in (*self.maps, *self.hidden):
            if value < 1:
                raise ValueError(f"maps and hidden must be positive, not {value}")
        return self

    @property
    def columns(self) -> int:
        return 1

    @property
    def activation(self) -> str:
        return "relu"

    def stages(self) -> list[tuple[str, ...]]:
        """Names of the convolutions before each pooling."""
        return [tuple(f"conv{stage}_{place}" for place in range(1, count + 1)) for stage, count in enumerate(STAGES[self.vgg], 1)]

    def layers(self) -> tuple[str, ...]:
        return (*(layer for stage in self.stages() for layer in stage), *CONNECTED)

    def initial(self, layer: str, classes: int) -> tuple[float, float]:
        if self.init == "normal":
            return self.init_std, 0.0
        out, read, *kernel = self.shapes(classes)[layer]
        area = kernel[0] ** 2 if kernel else 1
        return sqrt(2 / (area * (read + out))), 0.0

    def reads_all(self, layer: str) -> bool:
        return True

    def kernel(self, layer: str) -> int:
        return 1 if self.vgg == "C" and layer in ONE_BY_ONE else 3

    def outputs(self, classes: int) -> dict[str, int]:
        convolutions = {layer: maps for stage, maps in zip(self.stages(), self.maps, strict=True) for layer in stage}
        return {**convolutions, **dict(zip(CONNECTED, (*self.hidden, classes), strict=True))}

    def map_sides(self) -> dict[str, int]:
        return {layer: self.input >> number for number, stage in enumerate(self.stages()) for layer in stage}

    def last_side(self) -> int:
        return self.input >> 5
