from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import one_line, run_command

from tools.bench_loader import STAGES, main, schedule

BENCH = "tools/bench_loader.py"


def test_every_row_counts_the_images_asked_for(made_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    run = run_command(BENCH, "--shards", made_shards, "--images", 32, "--batch", 16, "--rounds", 1, "--threads", 1, "--out", out)
    assert run.returncode == 0, run.stderr
    result = json.loads(out.read_text())
    assert [(row["row"], row["threads"]) for row in result["rows"]] == [("a", None), *((key, 1) for key in "bcdefgh")]
    for row in result["rows"]:
        assert row["images"] == 32, row
        rate = row["images_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"], row
        assert row["images_per_cpu_s"] > 0, row
    assert result["settings"]["images_a_round"] == 32
    assert result["machine"]["cores"] >= 1
    assert set(result["versions"]) == {"python", "numpy", "torch", "dali", "commit"}
    assert str(tmp_path.parent) not in out.read_text(), "the result names a folder of this machine"
    header, *lines = run.stdout.splitlines()
    assert "images/s" in header
    assert "images/CPU-s" in header
    assert [line.split()[0] for line in lines] == list(STAGES), "the table is printed last, a line for each row"


def test_more_images_than_the_shards_have_go_round_again(made_shards: Path, tmp_path: Path) -> None:
    """48 pictures: a batch of 32 leaves 16 over in each epoch, and 70 images are three batches, of three epochs."""
    out = tmp_path / "x.json"
    main(["--shards", str(made_shards), "--images", "70", "--batch", "32", "--rounds", "2", "--threads", "2", "--out", str(out)])
    assert {row["images"] for row in json.loads(out.read_text())["rows"]} == {2 * 96}


@pytest.mark.parametrize(("batches", "an_epoch"), [(2, 3), (3, 3), (4, 3), (7, 1), (32, 10009)])
def test_a_pass_ends_with_an_epoch(batches: int, an_epoch: int) -> None:
    due = schedule(batches, an_epoch)
    assert len(due) == batches
    assert due[0][0] == 0
    assert due[-1][1] == an_epoch - 1
    for (epoch, number), following in pairwise(due):
        assert following == ((epoch, number + 1) if number + 1 < an_epoch else (epoch + 1, 0))


def test_no_shards_is_one_line(tmp_path: Path) -> None:
    one_line(run_command(BENCH, "--shards", tmp_path / "none", "--out", tmp_path / "x.json"), "none is not a folder", "tools/make_shards.py")


def test_a_batch_beyond_the_shards_is_one_line(made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--shards", str(made_shards), "--batch", "49", "--out", str(tmp_path / "x.json")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: batch 49 is larger than the 48 samples")
    assert not (tmp_path / "x.json").exists()
