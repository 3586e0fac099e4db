from __future__ import annotations

import pytest

from model.recipe import Training, read_recipe
from model.schedule import Schedule


def test_plateau_drops_three_times_then_ends() -> None:
    schedule = Schedule(Training(rate=0.01, schedule="plateau", patience=2, max_drops=3, epochs=90))
    rates, errors = [], iter([0.5, 0.4, 0.4, 0.41, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3])
    epoch = 0
    while not schedule.finished(epoch):
        rates.append(schedule.rates(epoch)["weight"])
        schedule.validated(next(errors))
        epoch += 1
    assert rates == pytest.approx([1e-2] * 4 + [1e-3] * 3 + [1e-4] * 2 + [1e-5] * 2)


def test_the_best_epoch_is_told() -> None:
    schedule = Schedule(Training())
    assert [schedule.validated(error) for error in (0.5, 0.6, 0.4, 0.4)] == [True, False, True, False]


def test_the_authors_program() -> None:
    schedule = Schedule(read_recipe("alexnet-2012", []).train)
    assert schedule.rates(0) == pytest.approx({"conv1.weight": 0.01, "conv1.bias": 0.02, "weight": 0.01, "bias": 0.02})
    assert schedule.rates(25) == pytest.approx({"conv1.weight": 1e-3, "conv1.bias": 0.02, "weight": 1e-3, "bias": 0.02})
    assert schedule.rates(67) == pytest.approx({"conv1.weight": 1e-5, "conv1.bias": 0.02, "weight": 1e-4, "bias": 0.02})
    assert schedule.rates(72) == pytest.approx({"conv1.weight": 0, "conv1.bias": 0, "weight": 1e-4, "bias": 0.02})
    assert schedule.rates(79)["weight"] == pytest.approx(1e-5)
    assert not schedule.finished(90)
    assert schedule.finished(91)


def test_state_goes_on() -> None:
    training = Training(patience=2)
    first, second = Schedule(training), Schedule(training)
    for error in (0.5, 0.6, 0.6, 0.6):
        first.validated(error)
    second.load_state_dict(first.state_dict())
    assert second.rates(0) == first.rates(0)
    assert second.state_dict() == first.state_dict() == {"best_error": 0.5, "stale_epochs": 1, "drops": 1}
