"""How much colour there is in kernels, and whether two columns of them differ by more than chance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import comb, sqrt

import numpy as np

TRIES = 99_999  # shuffles drawn where there are more than EXACT ways to share kernels between the columns
EXACT = 20_000
PART = 5_000  # shuffles at once
COLOURED = 0.5  # content from which on a kernel has more colour than grey
LEAST = 2  # kernels of a column that can be compared


def colour_content(kernels: np.ndarray) -> np.ndarray:
    """(n, 3, side, side) weights -> (n,): the share of each kernel's energy off the grey axis, 1 - |projection on (1, 1, 1) / sqrt 3|^2 / |w|^2.

    0: its three channels are the same, and it gives the same for a picture as for its grey copy, each pixel the mean of its three values
    (the paper's "color-agnostic", section 6.1); 1: it gives 0 for every grey picture. Weights drawn at random have 2/3, as two of the three
    directions are off the axis. The kernel's own mean is part of it: a patch of one colour is colour too. It is of the weights alone;
    indices from activations on coloured and grey pictures (such as Rafegas, Vanrell, Vision Research 151, 2018) also weigh the pictures'
    colours. NaN for a kernel of zeros, or with what is no number.
    """
    wide = kernels.astype(np.float64)
    grey = 3 * (wide.mean(axis=1) ** 2).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        return 1 - grey / energies(wide)


def energies(kernels: np.ndarray) -> np.ndarray:
    """(n, 3, side, side) -> (n,): sums of squares."""
    total: np.ndarray = (kernels.astype(np.float64) ** 2).sum(axis=(1, 2, 3))
    return total


def learned(kernels: np.ndarray, spread: float) -> np.ndarray:
    """(n,) bool: whose norm is more than three deviations above that of m normal weights, which is spread * (sqrt(m) +- sqrt(1/2)) for large m.

    A kernel that learns nothing only decays, and keeps the 2/3 of random weights.
    """
    weights = kernels[0].size
    with np.errstate(invalid="ignore"):
        norms = np.sqrt(energies(kernels))
        return np.isfinite(norms) & (norms > spread * (sqrt(weights) + 3 * sqrt(0.5)))


@dataclass(frozen=True)
class Column:
    """Of the kernels of a column that count: their number, mean content, its deviation, and the share that is coloured.

    weighted: content of the column as a whole, those that do not count too: each kernel's by its energy. None where there is nothing to say.
    """

    kernels: int
    mean: float | None
    spread: float | None
    coloured: float | None
    weighted: float | None


@dataclass(frozen=True)
class Comparison:
    """difference: of the means, column 1's less column 0's; p: of as large a one, either way, if kernels were shuffled between the columns;
    chance: mean size of the difference when they are; exact: all ways to shuffle them were taken, not TRIES drawn ones. None: too few count.
    """

    columns: tuple[Column, Column]
    difference: float | None = None
    p: float | None = None
    chance: float | None = None
    exact: bool | None = None


def halves(count: int) -> tuple[slice, slice]:
    """The two columns' kernels."""
    half = (count + 1) // 2
    return slice(0, half), slice(half, count)


def compare(kernels: np.ndarray, counts: np.ndarray, seed: int = 0) -> tuple[Comparison, np.ndarray]:
    """Two columns of kernels, of which those of `counts` count, and the differences' sizes of the shuffles, none where too few count."""
    content, energy = colour_content(kernels), energies(kernels)
    parts = [content[part][counts[part]] for part in halves(len(kernels))]
    both = [_column(part, content[half], energy[half]) for part, half in zip(parts, halves(len(kernels)), strict=True)]
    columns = (both[0], both[1])
    if min(map(len, parts)) < LEAST:
        return Comparison(columns), np.empty(0)
    difference = float(parts[1].mean() - parts[0].mean())
    sizes, exact = shuffled(np.concatenate(parts), len(parts[0]), seed)
    return Comparison(columns, difference, p_of(abs(difference), sizes, exact), float(sizes.mean()), exact), sizes


def _column(counting: np.ndarray, content: np.ndarray, energy: np.ndarray) -> Column:
    there = np.isfinite(energy) & (energy > 0)
    weighted = float(np.average(content[there], weights=energy[there])) if there.any() else None
    if not len(counting):
        return Column(0, None, None, None, weighted)
    spread = float(counting.std(ddof=1)) if len(counting) > 1 else None
    return Column(len(counting), float(counting.mean()), spread, float((counting >= COLOURED).mean()), weighted)


def shuffled(values: np.ndarray, first: int, seed: int) -> tuple[np.ndarray, bool]:
    """Sizes of the difference between the means of `first` of the values and of the others: of all ways to choose them, or of TRIES random ones."""
    exact = comb(len(values), first) <= EXACT
    if exact:
        sums = values[np.array(list(combinations(range(len(values)), first)))].sum(axis=1)
    else:
        generator, left, found = np.random.default_rng(seed), TRIES, []
        while left:
            rows = min(PART, left)
            found.append(generator.permuted(np.tile(values, (rows, 1)), axis=1)[:, :first].sum(axis=1))
            left -= rows
        sums = np.concatenate(found)
    return np.abs((values.sum() - sums) / (len(values) - first) - sums / first), exact


def p_of(size: float, sizes: np.ndarray, exact: bool) -> float:
    """Of drawn shuffles the data count as one more, so that p is not 0 (Phipson, Smyth, Stat. Appl. Genet. Mol. Biol. 9, 2010)."""
    as_large = int((sizes >= size - 1e-12).sum())
    return as_large / len(sizes) if exact else (as_large + 1) / (len(sizes) + 1)
