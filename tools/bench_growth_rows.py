"""What costs at growing sizes are kept as, and how fast they grow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

LINEAR = 1.15  # an exponent above it is worse than linear: a tenth and more is left to the noise of a machine
APART = 2  # the exponent is taken between the last size and the largest that is at least this many times smaller

How = Literal["measured", "processes", "in process", "arithmetic"]


@dataclass(frozen=True)
class Row:
    """A cost at growing sizes. by: what grows; how: measured in a process of its own, among real gloo processes, in one process that
    does what a rank of so many would do, or counted."""

    by: str
    cost: str
    unit: str
    how: How
    sizes: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def exponent(self) -> float | None:
        """p of cost ~ size^p at the large end: log of the costs' ratio over that of the sizes'; None without two sizes apart, or without a cost."""
        smaller = [k for k, size in enumerate(self.sizes) if size * APART <= self.sizes[-1]]
        if not smaller or min(self.costs[smaller[-1]], self.costs[-1]) <= 0:
            return None
        return math.log(self.costs[-1] / self.costs[smaller[-1]]) / math.log(self.sizes[-1] / self.sizes[smaller[-1]])

    @property
    def worse(self) -> bool:
        """Whether it grows worse than linear."""
        return self.exponent is not None and self.exponent > LINEAR

    def as_json(self) -> dict[str, Any]:
        found = self.exponent
        return {**asdict(self), "exponent": None if found is None else round(found, 3), "worse_than_linear": self.worse}


def rows_of(by: str, costs: Mapping[str, tuple[str, str, How]], found: Mapping[int, Mapping[str, float]]) -> list[Row]:
    """A row for each of `costs`, key: (name, unit, how), from what was found at each size."""
    sizes = tuple(found)
    return [Row(by, name, unit, how, sizes, tuple(found[size][key] for size in sizes)) for key, (name, unit, how) in costs.items()]


def least(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of several runs the least of each cost, which the machine's other work disturbed least."""
    return {key: min(run[key] for run in runs) for key in runs[0]}


def table(rows: Sequence[Row]) -> list[str]:
    """Lines for the user; a head wherever rows of other sizes begin."""
    lines, head = [], None
    for row in rows:
        if (row.by, row.sizes) != head:
            head = row.by, row.sizes
            lines += ["", f"{row.by:<54}{'how':<12}{''.join(f'{size:>10,}' for size in row.sizes)}{'exponent':>11}"]
        exponent = "-" if row.exponent is None else f"{row.exponent:.2f}"
        costs = "".join(f"{_short(cost):>10}" for cost in row.costs)
        lines.append(f"  {f'{row.cost}, {row.unit}':<52}{row.how:<12}{costs}{exponent:>11}{'  worse than linear' if row.worse else ''}")
    return lines[1:]


def _short(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 100 else f"{cost:.3g}"
