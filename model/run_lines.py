"""A run's folder, read for people: its metrics by kind, and what run.json says."""

from __future__ import annotations

import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from model.recipe import Recipe, check_recipe
from model.record import NAME, read_record
from pipeline import InputError

Values = dict[str, Any]
NUMBERS = {"step", "epoch", "loss_nats", "rate", "images_per_second", "val_seconds"}


@dataclass(frozen=True)
class RunLines:
    """train: lines with a loss; val: with a centre-view error; final: the ten views', or nothing yet; looks: shares of silent units."""

    folder: Path
    record: Values
    recipe: Recipe
    train: list[Values]
    val: list[Values]
    final: Values
    looks: list[Values]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def batch(self) -> int:
        return self.recipe.train.batch

    @property
    def classes(self) -> int:
        return int(self.record["shards"]["classes"])

    @property
    def last_step(self) -> int:
        return int(self.train[-1]["step"])

    def epoch(self, step: float) -> float:
        """Epochs done after a step."""
        return step / max(1, self.record["shards"]["pictures"]["train"] // self.batch)

    @property
    def ended(self) -> bool:
        """Whether it trained to its end, and the ten views were seen if there was anything to see."""
        return bool(self.final) or (not self.val and self.epoch(self.last_step) >= self.recipe.train.epochs)

    @cached_property
    def _steps(self) -> list[int]:
        return [line["step"] for line in self.train]

    @cached_property
    def _seconds(self) -> list[float]:
        """In steps up to each training line."""
        found, before = list[float](), 0
        for line in self.train:
            speed = line.get("images_per_second", 0.0)
            found.append((line["step"] - before) * self.batch / speed if speed > 0 else 0.0)
            before = line["step"]
        return list(accumulate(found))

    def seconds(self, step: float | None = None) -> float:
        """In steps, up to one of them or all; validation and what came between a stop and a start are not counted."""
        place = len(self.train) - 1 if step is None else bisect_left(self._steps, step)
        return self._seconds[min(place, len(self.train) - 1)]

    def validation_seconds(self) -> float:
        return float(sum(line.get("val_seconds", 0.0) for line in self.val))

    def rate(self) -> float:
        """Images a second while training, over all steps that were logged; 0 before the first."""
        return self.last_step * self.batch / self.seconds() if self.seconds() else 0.0

    def mean(self, key: str) -> float:
        """Of a value of the training lines; of the loader's stages, over the lines in which it had anything to do."""
        values = [line.get(key, 0.0) for line in self.train if not key.startswith("loader_") or _loaded(line)]
        return fmean(values) if values else 0.0

    def drops(self) -> list[tuple[int, float]]:
        """(last step under the old rate, new rate) wherever the rate changes."""
        rated = [line for line in self.train if "rate" in line]
        return [(before["step"], after["rate"]) for before, after in pairwise(rated) if after["rate"] != before["rate"]]


def _loaded(line: Values) -> bool:
    return any(value for key, value in line.items() if key.startswith("loader_"))


def read_run(folder: Path) -> RunLines:
    """Raises InputError for a folder that is no run, or has no loss yet."""
    record, path = read_record(folder), folder / "metrics.jsonl"
    if not record or not path.is_file():
        raise InputError(f"{folder} is not the folder of a run ({NAME} or metrics.jsonl is missing or damaged); give one that model.train wrote")
    lines = _read_lines(path)
    train = [line for line in lines if "loss_nats" in line]
    if not train:
        raise InputError(f"{folder} has no loss yet; wait for the first log line of the training")
    val = [line for line in lines if "val_top1_error_percent" in line]
    final = next((line for line in reversed(lines) if "val_ten_view_top1_error_percent" in line), {})
    looks = [line for line in lines if any(key.startswith("silent_percent") for key in line)]
    return RunLines(folder, record, check_recipe(record["recipe"], str(folder / NAME)), train, val, final, looks)


def _read_lines(path: Path) -> list[Values]:
    """What comes after the last line's end is being written, and left out. Raises InputError."""
    lines = []
    for number, text in enumerate(path.read_text("utf-8", errors="replace").split("\n")[:-1], start=1):
        try:
            line = json.loads(text)
            named = all(isinstance(value, int | float) for key, value in line.items() if key in NUMBERS or key.endswith("_percent"))
            right = named and isinstance(line["step"], int)
        except (ValueError, KeyError, AttributeError):
            right = False
        if not right:
            raise InputError(f"{path}: line {number} is not one of model.train's ({text[:40]!r}); remove it, or train the run again")
        lines.append(line)
    return lines
