"""Steps whose loss leaps or is no number: what is needed to do them again is kept (python -m model.replay)."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import deque
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from model import checkpoint
from pipeline import InputError, atomic_file

FOLDER, WHAT, FROM = "spikes", "spike.json", "from"
LOOK_BACK, ENOUGH = 200, 50  # losses that a new one is compared with, and the fewest that say what is usual
LEAP = 6.0  # standard deviations above the mean
MOST = 10  # of a run


@dataclass(frozen=True)
class Spike:
    """A step's number (from 1), its mean loss and what was usual before it, in nats; where in the data it stood.

    epoch from 0; position: images of the epoch before it; ids: of its whole batch's pictures, as the order has them; checkpoint:
    the step that it can be repeated from, None: the beginning.
    """

    step: int
    loss: float
    usual: float
    rate: float
    epoch: int
    position: int
    ids: list[int]
    checkpoint: int | None


class Usual:
    """The losses of late, and which of new ones leap out of them."""

    def __init__(self, losses: Iterable[float] = ()) -> None:
        self._losses: deque[float] = deque(losses, maxlen=LOOK_BACK)

    def losses(self) -> list[float]:
        """For a checkpoint."""
        return list(self._losses)

    def leaps(self, losses: list[float]) -> list[tuple[int, float, float]]:
        """(place in `losses`, loss, usual loss) of each that is no number or far above the usual; takes note of the others."""
        found = []
        for place, loss in enumerate(losses):
            usual = fmean(self._losses) if self._losses else math.nan
            if not math.isfinite(loss) or (len(self._losses) >= ENOUGH and loss > usual + LEAP * stdev(self._losses)):
                found.append((place, loss, usual))
            else:
                self._losses.append(loss)
        return found


def keep(run_folder: Path, checkpoints: Path, spike: Spike) -> Path | None:
    """Write what is known of a spike, with links to the checkpoint's files; None where enough are kept already. Raises OSError."""
    folder = run_folder / FOLDER / f"step-{spike.step:08d}"
    if math.isfinite(spike.loss) and not folder.exists() and len(list(folder.parent.glob(f"step-*/{WHAT}"))) >= MOST:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    if spike.checkpoint is not None:
        _link_files(checkpoint.path_of(checkpoints, spike.checkpoint), folder / FROM)
    with atomic_file(folder / WHAT, "w") as file:
        json.dump({name: _json(value) for name, value in asdict(spike).items()}, file)
    return folder


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no such numbers


def _link_files(source: Path, target: Path) -> None:
    """Hard links: the files outlive the checkpoint, and take no space while it lives."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        (target / path.name).unlink(missing_ok=True)
        try:
            os.link(path, target / path.name)
        except OSError:  # a file system without them
            shutil.copyfile(path, target / path.name)


def before(checkpoints: Path, step: int) -> int | None:
    """Step of the newest checkpoint from which a step can be repeated; None: from the beginning."""
    return max((int(path.name[5:]) for path in checkpoint.by_step(checkpoints) if int(path.name[5:]) < step), default=None)


def read(folder: Path) -> dict[str, Any]:
    """spike.json of one spike's folder."""
    try:
        found: dict[str, Any] = json.loads((folder / WHAT).read_text("utf-8"))
    except ValueError:
        raise InputError(f"{folder / WHAT} is damaged; name the step with --step {int(folder.name[5:])}, and move the folder away") from None
    return found
