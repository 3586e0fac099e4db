"""A run's folder, read for people: its metrics by kind, and what run.json says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.record import read_record
from pipeline import InputError


@dataclass(frozen=True)
class RunLines:
    """train: lines with a loss; val: with a centre-view error; final: the ten views', or nothing yet; looks: shares of silent units."""

    folder: Path
    record: dict[str, Any]
    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    final: dict[str, Any]
    looks: list[dict[str, Any]]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = self.record.get("recipe", {})
        return found

    @property
    def batch(self) -> int:
        return int(self.recipe["train"]["batch"])

    def rate(self) -> float:
        """Images a second while training, over all steps that were logged; 0 before the first."""
        seconds = self.seconds()
        return self.train[-1]["step"] * self.batch / seconds if seconds else 0.0

    def seconds(self) -> float:
        """In steps; validation is not counted."""
        total, before = 0.0, 0
        for line in self.train:
            if line["images_per_second"] > 0:
                total += (line["step"] - before) * self.batch / line["images_per_second"]
            before = line["step"]
        return total

    def mean(self, key: str) -> float:
        """Of a value of the training lines."""
        return sum(line.get(key, 0.0) for line in self.train) / len(self.train) if self.train else 0.0


def read_run(folder: Path) -> RunLines:
    """Raises InputError for a folder that is no run, or has no loss yet."""
    record, path = read_record(folder), folder / "metrics.jsonl"
    if not record or not path.is_file():
        raise InputError(f"{folder} is not the folder of a run; give one that model.train wrote")
    lines = []
    for text in path.read_text("utf-8", errors="replace").split("\n")[:-1]:  # what comes after the last is being written
        try:
            line = json.loads(text)
        except ValueError:
            raise InputError(f"{path} has a line that is not JSON ({text[:40]!r}); remove it, or train the run again") from None
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    train = [line for line in lines if "loss_nats" in line]
    if not train:
        raise InputError(f"{folder} has no loss yet; wait for the first log line of the training")
    val = [line for line in lines if "val_top1_error_percent" in line]
    final = next((line for line in reversed(lines) if "val_ten_view_top1_error_percent" in line), {})
    return RunLines(folder, record, train, val, final, [line for line in lines if any(key.startswith("silent_percent") for key in line)])
