"""What a training run leaves in its folder, read without the model: metrics, first-layer kernels, predictions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from torch.distributed.checkpoint import CheckpointException, HuggingFaceStorageReader

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
class Net:
    """What is drawn of a checkpoint. conv1: (maps, 3, side, side) float32, RGB, first half of the maps is column 0."""

    path: Path
    step: int
    conv1: np.ndarray
    classes: int
    wnids: list[str]


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


def read_net(run: Path) -> Net:
    """The newest checkpoint of a run: the net that the last numbers are of. Raises InputError."""
    folder = run / "checkpoints"
    found = sorted(folder.glob("step-*"))
    if not found:
        raise InputError(f"{folder} has no checkpoint yet; one is written at the end of every epoch")
    path = found[-1]
    try:
        state = json.loads((path / "state.json").read_text("utf-8"))
        net = Net(path, state["step"], _conv1(path), state["classes"], state["wnids"])
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, CheckpointException) as error:
        raise InputError(f"{path} is not a checkpoint that can be read ({type(error).__name__}); move it away, so that another is used") from None
    if net.conv1.ndim != 4 or net.conv1.shape[1] != 3 or len(net.conv1) < 2:
        raise InputError(f"{path}: conv1.weight is {net.conv1.shape}, not (maps, 3, side, side); give a run of model.train")
    return net


def _conv1(path: Path) -> np.ndarray:
    """The whole conv1.weight, from the files of all ranks that wrote a part of it."""
    reader = HuggingFaceStorageReader(str(path))
    shape: Any = reader.read_metadata().state_dict_metadata["conv1.weight"]
    tensors = {"conv1.weight": torch.empty(shape.size)}
    dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors["conv1.weight"].numpy()


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
