from __future__ import annotations

import numpy as np
import pytest

from pipeline.order import order


@pytest.mark.parametrize("samples", [0, 1, 2, 7, 1000])
def test_each_id_once(samples: int) -> None:
    np.testing.assert_array_equal(np.sort(order(3, 4, samples)), np.arange(samples))


def test_pure_and_different_every_epoch_and_seed() -> None:
    np.testing.assert_array_equal(order(3, 4, 500), order(3, 4, 500))
    assert (order(3, 4, 500) != order(3, 5, 500)).mean() > 0.9
    assert (order(3, 4, 500) != order(4, 4, 500)).mean() > 0.9


def test_global_permutation() -> None:
    """Every id is as likely at every position: over 4,000 epochs of 10 ids, chi-square with 81 degrees of freedom."""
    counts = np.zeros((10, 10))
    for epoch in range(4000):
        counts[np.arange(10), order(0, epoch, 10)] += 1
    chi_square = ((counts - 400) ** 2 / 400).sum()
    assert chi_square < 127.0  # 0.1 % of true permutations exceed it (81 degrees of freedom: 126.1)


def test_golden() -> None:
    """The order of a run under way must not change with a new version of this program or of NumPy."""
    assert order(0, 0, 12).tolist() == [2, 8, 0, 5, 9, 11, 7, 6, 3, 10, 4, 1]
