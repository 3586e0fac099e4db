from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import one_line, run_here

from tools.bench_step import main, summary, table
from tools.bench_step_rows import rows
from tools.roofline_machine import Machine


def test_rows_beside_each_other_and_the_parts(tmp_path: Path) -> None:
    out = tmp_path / "step.json"
    options = ["--batch", 2, "--rounds", 1, "--seconds", 0.1, "--threads", 1, "--rows", "eager-float32,fast-bfloat16", "--out", out]
    ran = run_here(main, *options)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(out.read_text())
    assert [row["key"] for row in result["rows"]] == ["eager-float32", "fast-bfloat16"]
    for row in result["rows"]:
        assert row["batch"] == 2
        assert row["images_per_s"] == pytest.approx(2000 / row["step_ms"])
        assert 0 < row["roof_share"] < 1
        assert row["busy_percent"] is row["power_w"] is None  # there is no GPU
    assert [(part["part"], part["precision"]) for part in result["parts"]] == [
        ("ReLU, LRN, pool", "float32"),
        ("ReLU, LRN, pool", "bfloat16"),
        ("update", "float32"),
    ]
    assert result["versions"]["torch"] == torch.__version__
    assert table(result) in ran.stdout


@pytest.mark.parametrize("gpu", [False, True])
def test_each_row_has_a_name_of_its_own(gpu: bool) -> None:
    keys = [row.key for row in rows(torch.device("cuda" if gpu else "cpu"))]
    assert len(set(keys)) == len(keys)
    assert {"eager-float32", "plain-float32", "fast-float32", "fast-bfloat16", "fast-bfloat16-unfused"} <= set(keys)
    assert ("fast-bfloat16-ungraphed" in keys) == gpu


def test_the_result_is_the_median_of_the_rounds_and_its_roof_that_of_its_precision() -> None:
    machines = {"float32": Machine("slow", 1e9, 1e9), "bfloat16": Machine("fast", 1e12, 1e12)}
    there = {row.key: row for row in rows(torch.device("cpu"))}
    rounds = [{"step_s": seconds, "busy_percent": None, "power_w": None} for seconds in (3e6, 1e6, 2e6)]
    slow, fast = (summary(there[key], 128, rounds, machines) for key in ("fast-float32", "fast-bfloat16"))
    assert slow["step_ms"] == fast["step_ms"] == 2e9
    assert slow["step_ms_rounds"] == [3e9, 1e9, 2e9]
    assert slow["roof_share"] > 500 * fast["roof_share"]
    failed = summary(there["fast-float32"], 128, [{"error": "the device's memory is too small"}], machines)
    assert "too small" in table({"rows": [failed], "parts": []})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "0"], "--batch must be"),
        (["--rows", "fast"], "--rows must be all, or"),
        (["--seconds", "0"], "--seconds must be"),
        (["--rounds", "0"], "--rounds must be"),
        (["--device", "cuda"], "torch sees no GPU"),
        (["--out", "nowhere/step.json"], "cannot be written"),
    ],
)
def test_bad_options_are_one_line(options: list[str], words: str) -> None:
    one_line(run_here(main, *options), words)
