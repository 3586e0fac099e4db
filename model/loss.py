"""What a loss says about a training that does not work."""

from __future__ import annotations

import math

from model.recipe import Recipe
from model.vgg_design import VggDesign
from pipeline import InputError

PATIENCE = 5  # epochs at chance before a run with small biases is warned
STUCK = 0.02  # nats: an epoch's mean loss this near to ln(classes) has learned nothing


def refuse_not_finite(losses: list[float], first_step: int, epoch: int, rate: float) -> None:
    """Raises InputError for a loss that is no number, with its step."""
    for i, loss in enumerate(losses):
        if not math.isfinite(loss):
            raise InputError(
                f"the loss became {loss} at step {first_step + i + 1} (epoch {epoch + 1}, rate {rate:g}); "
                f"start again with a lower one: --set train.rate={rate / 10:g}"
            )


def stuck_warning(mean_loss: float, epoch: int, classes: int, recipe: Recipe) -> str | None:
    """What to tell of an epoch whose mean loss, in nats, is that of chance; None for one that has learned something. epoch: epochs done."""
    chance = math.log(classes)
    if abs(mean_loss - chance) >= STUCK:
        return None
    if isinstance(recipe.model, VggDesign):
        glorot = "" if recipe.model.init == "glorot" else "--set model.init=glorot, "
        cure = f"try {glorot}another train.rate, or, deeper than net A, --init-from one of those"
    elif max(recipe.model.bias) > 0.1:
        cure = "the known cure is smaller biases: --set 'model.bias=[0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]'"
    elif epoch > PATIENCE:
        cure = "try larger model.init_std or another train.rate"
    else:
        return None  # with the cure in place already, small sets often need a few epochs
    return f"warning: the loss stays at ln({classes}) = {chance:.2f}, so nothing is learned yet; {cure}"
