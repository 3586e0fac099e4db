"""The trainings of Figure 1: each is a file, and what is there is not trained again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model.figure1_data import Small
from model.figure1_net import BATCH, MOMENTUM, Activation, Curve, Start, TrainingSet, train_epochs
from pipeline import InputError, atomic_file

FORMAT = 2  # raise when the net or its training changes, so that old curves are not taken for new


@dataclass(frozen=True)
class Plan:
    """What is to be trained. rates: rising; target: percent."""

    seeds: list[int]
    rates: list[float]
    trial_epochs: int
    epochs: int
    target: float
    start: Start = "small"

    def trial_error(self, trial: Curve) -> float:
        """Percent, at the end of the trial; of one that diverged, where it did."""
        return 100.0 if trial.diverged else trial.errors[self.trial_epochs]

    def is_tried(self, trial: Curve) -> bool:
        return trial.diverged or trial.epochs >= self.trial_epochs

    def is_ended(self, curve: Curve) -> bool:
        return curve.diverged or curve.epochs >= self.epochs or curve.errors[-1] <= self.target


class Store:
    """Curves of one set of pictures in a folder: taken from there, or trained and put there, whole or not at all."""

    def __init__(self, folder: Path, small: Small, data: TrainingSet) -> None:
        self._folder, self._data, self._classes = folder, data, small.classes
        self._of = {"format": FORMAT, "pictures": small.digest(), "batch": BATCH, "momentum": MOMENTUM, "start": data.start}

    def trial(self, activation: Activation, rate: float, plan: Plan) -> Curve:
        """A rate tried with the first seed. Raises InputError."""
        return self._there_or_trained("trials", activation, rate, plan.seeds[0], plan.is_tried)

    def curve(self, activation: Activation, rate: float, seed: int, plan: Plan) -> Curve:
        """A training up to the target or the last epoch. Raises InputError."""
        return self._there_or_trained("curves", activation, rate, seed, plan.is_ended)

    def _there_or_trained(self, kind: str, activation: Activation, rate: float, seed: int, ended: Callable[[Curve], bool]) -> Curve:
        path = self._folder / kind / f"{activation}-rate{rate!r}-seed{seed}.json"
        curve = self._read(path)
        if curve is not None and ended(curve):
            return curve
        for curve in train_epochs(self._data, self._classes, activation, rate, seed):
            print(_line(kind, curve, len(self._data)), flush=True)
            if ended(curve):
                break
        assert curve is not None, "a training has an epoch at least"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, "w") as file:
            json.dump({"of": self._of, "curve": asdict(curve)}, file)
        return curve

    def _read(self, path: Path) -> Curve | None:
        """Raises InputError for a file that is damaged, or is of other pictures."""
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text("utf-8"))
            of, curve = content["of"], Curve(**content["curve"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise InputError(f"{path} is no curve that can be read ({error}); remove it, and it is trained again") from None
        if of != self._of:
            raise InputError(f"{path} was trained on other pictures, or otherwise; name another folder by --out")
        return curve


def _line(kind: str, curve: Curve, pictures: int) -> str:
    trained, measured = curve.train_seconds[-1], curve.measure_seconds[-1]
    what = f"{'trial' if kind == 'trials' else f'seed {curve.seed}':<8} {curve.activation} rate {curve.rate:<6g} epoch {curve.epochs:>3}"
    speed = f"{trained:.1f} s training ({pictures / trained:,.0f} pictures/s), {measured:.1f} s counting errors"
    return f"{what}  {curve.errors[-1]:6.2f} % wrong  {speed}{'  diverged' if curve.diverged else ''}"
