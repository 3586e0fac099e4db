"""A net trained on some classes goes on with others (paper, section 6)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import run_command
from training import refused, train, weights

from model.recipe import Recipe, Training
from model.schedule import Schedule


@pytest.fixture(scope="module")
def other_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of three classes that the toy has not."""
    from tools.make_lookalike import make_lookalike

    out = tmp_path_factory.mktemp("others")
    make_lookalike(out / "archives", 3, 8, 2, seed=7, side=96, workers=1)
    for words in (
        ("tools/make_shards.py", "--source", out / "archives", "--out", out / "shards", "--workers", 1),
        ("tools/compute_pca.py", "--shards", out / "shards"),
    ):
        made = run_command(*words)
        assert made.returncode == 0, made.stderr
    return out / "shards"


def test_all_but_the_last_layer_is_taken_over(made_shards: Path, other_classes: Path, tmp_path: Path) -> None:
    sixth = ("--set", "model.conv6=8")
    assert train(made_shards, tmp_path / "first", *sixth, epochs=1).returncode == 0
    newest = tmp_path / "first" / "checkpoints" / "latest"
    assert "classes" in refused(other_classes, tmp_path / "refused", *sixth, "--init-from", newest)
    still = ("--set", "train.rate=1e-9", "--set", "train.last_rate_factor=10")
    tuned = train(other_classes, tmp_path / "second", *sixth, *still, "--init-from", newest, "--new-last-layer", epochs=1)
    assert tuned.returncode == 0, tuned.stderr
    before, after = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert "conv6.weight" in after
    assert after["fc8.weight"].shape[0] == 3
    for name, value in before.items():
        if not name.startswith("fc8"):
            torch.testing.assert_close(after[name], value, rtol=1e-3, atol=1e-6)


def test_a_last_layer_of_nothing(made_shards: Path, tmp_path: Path) -> None:
    assert "name its weights by --init-from" in refused(made_shards, tmp_path / "run", "--new-last-layer")


def test_rates_of_the_last_layer() -> None:
    schedule = Schedule(Training(rate=0.01, last_rate_factor=10, last_rate_epochs=2, bias_rate_factor=2, conv1_freeze_epoch=1))
    assert schedule.rates(1) == pytest.approx({"conv1.weight": 0, "conv1.bias": 0, "weight": 0.01, "bias": 0.02, "fc8.weight": 0.1, "fc8.bias": 0.2})
    assert schedule.rates(2)["fc8.weight"] == schedule.rates(2)["weight"]
    assert "fc8.weight" not in Schedule(Recipe().train).rates(0)
