"""What a training run leaves in its folder, read without the model: metrics, the picture of the kernels, predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import InputError


class Guess(BaseModel):
    """A class and the probability given to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: int = Field(alias="class", ge=0)
    probability: float = Field(ge=0, le=1.001)  # averaged softmax outputs: 1 but for rounding


class Prediction(BaseModel):
    """A validation picture's id, its class, and the best guesses in falling order."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: int = Field(ge=0)
    label: int = Field(ge=0)
    best: tuple[Guess, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Kernels:
    """The newest picture of the first layer's kernels. sheet: (height, width, 3) uint8, column 0 above column 1."""

    step: int
    sheet: np.ndarray


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl; one that is still being written is left out. Raises InputError."""
    path = run / "metrics.jsonl"
    if not run.is_dir():
        raise InputError(f"there is no run {run}; give the folder that model.train wrote (--run)")
    try:
        content = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        raise InputError(f"{path} is missing, so {run} is not the folder of a run; give the one that model.train wrote (--run)") from None
    lines = []
    for number, line in enumerate(content.split("\n")[:-1], start=1):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict) or not isinstance(values.get("step"), int):
            raise InputError(f"{path}: line {number} is not a line of metrics; remove it, or train the run again")
        lines.append(values)
    if not any("loss_nats" in line for line in lines):
        raise InputError(f"{path} has no loss yet; wait for the first log line of the training")
    return lines


def read_wnids(run: Path) -> list[str]:
    """The classes of the run's newest checkpoint, in the order of its net's outputs. Raises InputError."""
    folder = run / "checkpoints"
    found = sorted(folder.glob("step-*"))
    if not found:
        raise InputError(f"{folder} has no checkpoint yet; one is written at the end of every epoch")
    path = found[-1]
    try:
        return TypeAdapter(list[str]).validate_python(json.loads((path / "state.json").read_text("utf-8"))["wnids"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a checkpoint that can be read ({type(error).__name__}); move it away, so that another is used") from None


def read_kernels(run: Path) -> Kernels:
    """The newest picture of the kernels that the training made. Raises InputError."""
    found = sorted((run / "kernels").glob("step-*.png"))
    if not found:
        raise InputError(f"{run / 'kernels'} has no picture yet; one is made after the first step and after every epoch")
    try:
        return Kernels(int(found[-1].stem.removeprefix("step-")), np.asarray(Image.open(found[-1]).convert("RGB")))
    except (OSError, ValueError, SyntaxError) as error:
        raise InputError(f"{found[-1]} is not a picture that can be read ({type(error).__name__}); move it away, so that another is used") from None


def read_predictions(run: Path) -> list[Prediction]:
    """The predictions kept at the end of a training. Raises InputError."""
    path = run / "predictions.json"
    try:
        predictions = TypeAdapter(list[Prediction]).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path} is missing: it is written when the training ends; go on with model.train --resume") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc'])) or 'the whole file'}: {first['msg']}; train the run again") from None
    if not predictions:
        raise InputError(f"{path} holds no predictions, so there is nothing to draw; train with shards that have validation pictures")
    return predictions
