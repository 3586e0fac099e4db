"""When the learning rate falls."""

from __future__ import annotations

from typing import Any

from model.recipe import Training


class Schedule:
    """Rates by epoch, and by validation error under the plateau rule (paper, section 5).

    "plateau": a tenth of the rate whenever the validation error has not improved for `patience` epochs; after the last
    drop the next such time ends the training. "fixed": a tenth from each of `drop_epochs` on.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.best_error = float("inf")
        self.stale_epochs = 0
        self.drops = 0

    def rates(self, epoch: int) -> dict[str, float]:
        """Rate of each parameter group: conv1.weight, conv1.bias, weight (of the other layers), bias; fc8's where they are others."""
        t = self.training
        fallen = self.drops if t.schedule == "plateau" else sum(epoch >= at for at in t.drop_epochs)
        weight = t.rate * 0.1**fallen
        bias = t.rate * t.bias_rate_factor * (0.1**fallen if t.bias_rate_falls else 1.0)
        slow = 0.1 if t.conv1_slow_epoch is not None and epoch >= t.conv1_slow_epoch else 1.0
        if t.conv1_freeze_epoch is not None and epoch >= t.conv1_freeze_epoch:
            slow = 0.0
        rates = {"conv1.weight": weight * slow, "conv1.bias": bias * (slow if slow == 0.0 else 1.0), "weight": weight, "bias": bias}
        if t.last_rate_factor != 1:
            factor = t.last_rate_factor if t.last_rate_epochs is None or epoch < t.last_rate_epochs else 1.0
            rates |= {"fc8.weight": weight * factor, "fc8.bias": bias * factor}
        return rates

    def validated(self, error: float) -> bool:
        """Take note of an epoch's validation error (a fraction); True when it is the best so far."""
        if error < self.best_error:
            self.best_error, self.stale_epochs = error, 0
            return True
        self.stale_epochs += 1
        if self.training.schedule == "plateau" and self.stale_epochs >= self.training.patience:
            self.drops, self.stale_epochs = self.drops + 1, 0
        return False

    def finished(self, epoch: int) -> bool:
        """Whether training ends before `epoch`."""
        return epoch >= self.training.epochs or self.drops > self.training.max_drops

    def state_dict(self) -> dict[str, Any]:
        return {"best_error": self.best_error, "stale_epochs": self.stale_epochs, "drops": self.drops}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_error, self.stale_epochs, self.drops = state["best_error"], state["stale_epochs"], state["drops"]
