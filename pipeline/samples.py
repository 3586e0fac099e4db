"""Samples of an epoch by position, with bad ones named or skipped."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.errors import BadSample, InputError
from pipeline.shards import ShardSet

OnBadSample = Literal["stop", "skip"]
MOST_IN_A_ROW = 100  # bad samples skipped for one; more is no bad sample, but a bad disk or a bad set
PAUSES = (0.1, 1.0)  # seconds before a read that the system could not do is tried again
NOT_COUNTED = -1  # label of a sample of a validation that cannot be used


@dataclass(frozen=True)
class Skipped:
    """A sample that was left out: its place (see BadSample), when, and the id of the one that took its place, None for none."""

    split: str
    id: int
    shard: str
    key: str
    offset: int
    reason: str
    epoch: int
    replaced_by: int | None


class Samples:
    """Reads by position of the present epoch.

    "skip": a bad sample is replaced by that of the next position of the epoch, which then comes twice; a pure function of
    the shards, so that a resumed run and any ranks replace it alike. Without `replace` (validation) its label is
    NOT_COUNTED instead, and its pixels are those of the next.
    """

    def __init__(self, shards: ShardSet, on_bad: OnBadSample, replace: bool) -> None:
        self.shards, self._on_bad, self._replace = shards, on_bad, replace
        self._order, self._epoch = np.empty(0, np.int64), 0
        self._bad: dict[int, BadSample] = {}
        self._listed = set[int]()
        self.skipped: list[Skipped] = []  # grows; a picture is listed once

    def begin(self, order: np.ndarray, epoch: int) -> None:
        self._order, self._epoch = order, epoch

    def known_bad(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the ids are known to be bad."""
        return np.array([sample in self._bad for sample in ids.tolist()], bool) if self._bad else np.zeros(len(ids), bool)

    def reject(self, sample: int, reason: str) -> None:
        """A sample that was read, and could not be decoded. Raises BadSample under "stop"."""
        self._note(sample, BadSample(*self.shards.place(sample), f"it cannot be decoded ({reason})", "make this shard again"))

    def _note(self, sample: int, error: BadSample) -> None:
        if self._on_bad == "stop":
            raise error
        self._bad[sample] = error

    def read(self, position: int) -> tuple[int, np.ndarray, int]:
        """Id, encoded picture and label at a position, or of what takes its place; the label NOT_COUNTED without `replace`.

        Raises BadSample under "stop".
        """
        wanted = int(self._order[position])
        for further in range(min(MOST_IN_A_ROW, len(self._order))):
            sample = int(self._order[(position + further) % len(self._order)])
            if sample in self._bad:
                continue
            try:
                jpeg, label = self._patiently(sample)
            except BadSample as error:
                self._note(sample, error)
                continue
            return sample, jpeg, label if self._replace or not further else NOT_COUNTED
        raise InputError(
            f"{self._bad[wanted]}; neither it nor the {min(MOST_IN_A_ROW, len(self._order)) - 1} samples that come after it in epoch "
            f"{self._epoch + 1} can be used: this is no bad sample, but a bad disk or a bad set of shards"
        )

    def _patiently(self, sample: int) -> tuple[np.ndarray, int]:
        """Read, and again after a pause where the system could not: a network file system's hiccup is no bad sample."""
        for pause in PAUSES:
            try:
                return self.shards.read(sample)
            except BadSample as error:
                if not error.passing:
                    raise
                time.sleep(pause)
        return self.shards.read(sample)

    def settle(self, position: int, used: int) -> None:
        """The picture of sample `used` was decoded for a position: list the position's own sample if it is another. Not earlier,
        since what stands in for a bad sample may turn out to be bad itself."""
        sample = int(self._order[position])
        if sample == used or sample in self._listed:
            return
        self._listed.add(sample)
        fault = self._bad[sample]
        place = (fault.shard.name, fault.key, fault.offset, fault.reason)
        self.skipped.append(Skipped(self.shards.split, sample, *place, self._epoch, used if self._replace else None))
