"""--dry-run: what would run, measured, and nothing kept; what fits a GPU."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from training import TINY, here

from model.memory import batch_that_fits
from model.recipe import read_recipe
from model.train import main


def test_a_dry_run_says_what_would_run_and_keeps_nothing(made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = here(main, ["--shards", str(made_shards), "--dry-run", *map(str, TINY), "--set", "train.epochs=7"])
    assert result.returncode == 0, result.stderr
    said = result.stdout
    assert "48 for training, 20 for validation, 4 classes" in said
    assert "8, 8 decoded by each rank, 8 trained on by each replica" in said
    assert "6 an epoch, at most 7 epochs (fixed schedule), 42 in all" in said
    design = read_recipe("small", [str(word) for word in TINY if str(word).startswith("model.")]).model
    parameters = sum(design.parameters(4).values()) * 4 / 2**20
    assert f"parameters {parameters:,.1f} MiB" in said
    kept = re.search(r"activations kept for the backward pass ([\d.]+) MiB", said)
    assert kept is not None
    least = 8 * (4 * 23 * 23 * 2 + 8 * 11 * 11 * 2) * 4 / 2**20  # conv1's and conv2's outputs, and what comes of them before the pooling
    assert least < float(kept[1]) < 30 * least
    assert re.search(r"[\d.]+ ms, [\d,.]+ images/s, [\d.]+ % of it waiting for data", said)
    assert "nothing is exchanged between devices" in said
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == []  # torch's own, of any run


def test_the_batch_that_would_fit() -> None:
    """A GPU of 8 units: 1 whatever the batch, and 128 pictures had taken 7 when the memory ran out."""
    assert batch_that_fits(fixed=1, used=7, there=8, batch=128) == 64  # (0.9 * 8 - 1) / 6 * 128 = 132, and less than what failed
    assert batch_that_fits(fixed=1, used=7, there=4, batch=128) == 32  # 55
    assert batch_that_fits(fixed=1, used=7, there=1, batch=128) == 0
    assert batch_that_fits(fixed=1, used=7, there=8, batch=1) == 0
