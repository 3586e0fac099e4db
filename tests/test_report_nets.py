"""The report's part on units that never fire, and reports on nets that are not the paper's."""

from __future__ import annotations

import json
from pathlib import Path

from made_run import made_run
from test_report import NAMES, check_page

from model.report import write_report


def looked_at(folder: Path, shares: dict[int, dict[str, float]]) -> str:
    """The words of a report on a run with these looks: percent by layer and column, by step."""
    with open(folder / "metrics.jsonl", "a") as file:
        for step, values in shares.items():
            file.write(json.dumps({"step": step, **{f"silent_percent_{key}": value for key, value in values.items()}}) + "\n")
    return check_page(write_report(folder, None).read_text())


def test_units_that_never_fire_are_told_by_layer_and_column(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", NAMES, epochs=2, steps=5)
    assert "Not looked at: it stopped before its first look" in check_page(write_report(folder, None).read_text())
    first = {"conv2_column0": 12.5, "fc6_column0": 0.0, "conv2_column1": 37.5, "fc6_column1": 6.25}  # one column after the other, as ranks give them
    words = looked_at(folder, {1: first})
    assert "step 1, column 0 / 1 conv2 12.5 / 37.5 % fc6 0.0 / 6.2 %" in words
    words = looked_at(folder, {5: dict.fromkeys(first, 99.0), 10: {**dict.fromkeys(first, 50.0), "conv2_column1": 75.0}})
    assert "step 1, column 0 / 1 step 10, column 0 / 1 conv2 12.5 / 37.5 % 50.0 / 75.0 % fc6 0.0 / 6.2 % 50.0 / 50.0 %" in words
    assert "at most 32 of a step's batch" in words
    assert "conv2 fc6 0.2 25 3.125 1 99 99 2 62.5 50" in words  # the curve's numbers: epoch, means of the columns


def test_nets_of_one_column_and_of_tanh_and_others_have_a_report(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "one", NAMES, epochs=1, steps=5, settings=["model.columns=1"])
    words = looked_at(folder, {1: {"conv1_column0": 25.0}})
    assert "step 1 conv1 25.0 %" in words
    assert "kernels of conv1 after step 5: each scaled" in words
    folder = made_run(tmp_path / "tanh", NAMES, epochs=1, steps=5, settings=["model.activation=tanh"])
    assert "Does not apply: this net's units give tanh" in looked_at(folder, {1: {"conv1_column0": 0.0}})
    other = ["model={vgg: A, maps: [4, 4, 4, 4, 4], hidden: [8, 8], input: 32}"]
    folder = made_run(tmp_path / "vgg", NAMES, epochs=1, steps=5, settings=other)
    words = looked_at(folder, {1: {"conv1_1_column0": 25.0, "conv5_2_column0": 50.0}})
    for what in (
        "step 1 conv1_1 25.0 % conv5_2 50.0 %",
        "kernels of conv1_1 after step 5: each scaled",
        "29.6 / 10.4 %",
        "132,863,336",
        "model.vgg A A",
        "model.input ≠ 32 224",
    ):
        assert what in words, what
