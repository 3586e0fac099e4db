"""Runs over each other."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from conftest import one_line
from made_run import made_run
from test_report import NAMES, check_page
from training import here

from model import compare


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same name that differ in their rate, one of which has not ended."""
    place = tmp_path_factory.mktemp("runs")
    one = made_run(place / "a" / "run", NAMES, epochs=3, steps=30)
    return [one, made_run(place / "b" / "run", NAMES, epochs=2, steps=30, ended=False, settings=["train.rate=0.25"])]


def compared(runs: list[Path], out: Path) -> str:
    result = here(compare.main, [*map(str, runs), "--out", str(out)])
    assert result.returncode == 0, result.stderr
    return out.read_text()


def test_runs_over_each_other(runs: list[Path], tmp_path: Path) -> None:
    text = compared(runs, tmp_path / "compare.html")
    words = check_page(text)
    for what in ("a/run", "b/run", "2 runs compared", "train.rate 0.005 0.25", "a/run 31.25 % 14.50 %", "b/run – –", "keys are the same in all"):
        assert what in words, what
    assert "train.batch" not in words  # in which they do not differ
    assert text.count("<path class='line c0'") == text.count("<path class='line c1'") == 6


def test_layouts_versions_and_other_shards_are_told(runs: list[Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(runs[0], tmp_path / "other", symlinks=True))
    record = json.loads((other / "run.json").read_text())
    record.update(layout="one cuda, the whole net on it", versions={"torch": "9.9"})
    record["shards"]["manifest_sha256"] = "1" * 64
    (other / "run.json").write_text(json.dumps(record))
    words = check_page(compared([runs[0], other], tmp_path / "compare.html"))
    assert re.search(r"layout 2 x cpu, .* one cuda, the whole net on it", words)
    assert re.search(r"torch \S+ 9\.9", words)
    assert re.search(r"numpy \S+ –", words)
    assert "different shards" in words


def test_the_same_run_twice_differs_in_nothing(runs: list[Path], tmp_path: Path) -> None:
    words = check_page(compared([runs[0], runs[0]], tmp_path / "compare.html"))
    assert "Nothing: recipes, layouts, devices and versions are the same." in words
    assert "a/run (2)" in words


def test_mistakes_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    one_line(here(compare.main, [str(tmp_path), str(runs[0])]), str(tmp_path), "is not the folder of a run")
    one_line(here(compare.main, [str(runs[0]), "--out", str(tmp_path / "none" / "c.html")]), "folder does not exist")
    one_line(here(compare.main, [str(runs[0]), "--out", str(tmp_path)]), "no file that could be replaced")
    one_line(here(compare.main, [str(runs[0])] * (compare.MOST + 1)), "more than can be told apart")
