from __future__ import annotations

import gc
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_here

from model.design import Design
from pipeline.errors import InputError
from pipeline.loader import ImageLoader
from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet
from pipeline.verify import verify_folder
from tools import bench_growth, bench_growth_classes, bench_growth_ranks
from tools.bench_growth_data import class_table, lay_folder, write_shards
from tools.bench_growth_rows import Row, least, rows_of, table


def row(sizes: tuple[int, ...], costs: tuple[float, ...]) -> Row:
    return Row("shards", "a cost", "s", "measured", sizes, costs)


@pytest.mark.parametrize(("power", "worse"), [(0.0, False), (0.5, False), (1.0, False), (1.1, False), (1.3, True), (2.0, True)])
def test_the_exponent_is_that_of_a_power(power: float, worse: bool) -> None:
    sizes = (1, 10, 100, 1000)
    found = row(sizes, tuple(3.0 * size**power for size in sizes))
    assert found.exponent == pytest.approx(power)
    assert found.worse == worse
    assert ("worse than linear" in "\n".join(table([found]))) == worse
    assert found.as_json()["worse_than_linear"] is worse


def test_the_exponent_is_taken_at_the_large_end_between_sizes_far_apart() -> None:
    assert row((1, 10, 1000, 10_000, 21_841), (100, 100, 100, 1000, 2184.1)).exponent == pytest.approx(1)
    assert row((1, 3, 4), (1, 9, 4)).exponent == pytest.approx(1)
    assert row((2, 3), (1, 2)).exponent is None
    assert row((1, 8), (0, 3)).exponent is None
    assert not row((1, 8), (0, 3)).worse


def test_rows_keep_sizes_and_the_least_of_the_runs() -> None:
    costs = least([{"a": 2.0, "b": 5.0}, {"a": 3.0, "b": 4.0}])
    assert costs == {"a": 2.0, "b": 4.0}
    rows = rows_of("ranks", {"a": ("first", "s", "measured"), "b": ("second", "MB", "arithmetic")}, {1: costs, 8: {"a": 9.0, "b": 1.0}})
    assert [(one.cost, one.how, one.sizes, one.costs) for one in rows] == [
        ("first", "measured", (1, 8), (2.0, 9.0)),
        ("second", "arithmetic", (1, 8), (4.0, 1.0)),
    ]
    assert len(table(rows)) == 3  # one head


def test_the_folders_are_shards_like_any_other(tmp_path: Path) -> None:
    own = write_shards(tmp_path / "own", 3, 4)
    folder = lay_folder(tmp_path / "shards", {"train": own, "val": own[:1]})
    verify_folder(folder)
    found = ShardSet(folder, "train")
    assert [found.read(sample)[1] for sample in range(len(found))] == [*range(10), 0, 1]
    assert len({found.place(sample)[1] for sample in range(len(found))}) == 12
    batch = next(iter(ImageLoader(folder, "train", batch=12, threads=1)))
    assert sorted(batch.ids.tolist()) == list(range(12))


def test_one_pair_of_files_may_stand_for_many_shards(tmp_path: Path) -> None:
    linked = write_shards(tmp_path / "linked", 1, 5)
    folder = lay_folder(tmp_path / "shards", {"train": linked * 40})
    verify_folder(folder)
    found = ShardSet(folder, "train")
    assert len(found) == 200
    assert found.read(7)[1] == found.read(197)[1] == 2
    assert len({path.stat().st_ino for path in folder.glob("*.tar")}) == 1


def test_the_largest_class_table_is_a_manifest(tmp_path: Path) -> None:
    folder = lay_folder(tmp_path / "shards", {"train": write_shards(tmp_path / "one", 1, 2)}, 21_841)
    assert read_manifest(folder)[0].classes == class_table(21_841)


def test_opening_leaves_the_collection_of_garbage_as_it_was(tmp_path: Path) -> None:
    shards = lay_folder(tmp_path / "shards", {"train": write_shards(tmp_path / "one", 1, 2)})
    for on in (True, False):
        (gc.enable if on else gc.disable)()
        try:
            ShardSet(shards, "train")
            with pytest.raises(InputError):
                ShardSet(shards / "nowhere", "train")
            assert gc.isenabled() == on
        finally:
            gc.enable()


def test_what_ranks_send_is_counted() -> None:
    one, four, many = (bench_growth_ranks.of_a_step(world, 1) for world in (1, 4, 64))
    assert (one["sent"], one["sent_hybrid"]) == (0, 0)
    gradients = 4 * sum(Design().parameters(1000).values()) / 2e6  # of a rank that holds a column
    assert four["sent"] > gradients
    assert many["sent"] - four["sent"] == pytest.approx((2 * 31 / 32 - 2 * 1 / 2) * gradients, rel=1e-3)
    assert all(np.isfinite(value) and value >= 0 for found in (one, four, many) for value in found.values())


def test_quick(tmp_path: Path) -> None:
    """Every part of it runs, in processes and on ranks of their own, and nothing is left behind."""
    (tmp_path / "made").mkdir()
    result = run_here(bench_growth.main, "--quick", "--folder", tmp_path / "made", "--out", tmp_path / "growth.json")
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "made").iterdir()) == []
    found = json.loads((tmp_path / "growth.json").read_text())
    assert set(found) == {"date", "machine", "versions", "settings", "rows"}
    rows = {(one["by"], one["cost"]): one for one in found["rows"]}
    start = rows["shards of 10", bench_growth.START["start"][0]]
    assert start["sizes"] == [1, 8]
    parts = [rows["shards of 10", bench_growth.START[name][0]]["costs"] for name in ("imports", "loader", "first_batch")]
    assert all(total >= sum(some) > 0.9 * total for total, *some in zip(start["costs"], *parts, strict=True))
    assert {one["how"] for one in found["rows"]} == {"measured", "processes", "in process", "arithmetic"}
    pictures = rows["ranks", bench_growth_ranks.PROCESSES["pictures"][0]]
    assert dict(zip(pictures["sizes"], pictures["costs"], strict=True)) == {2: 50}  # each rank reads its own part, and no other
    memory = rows["classes", bench_growth_classes.COSTS["memory"][0]]
    assert memory["costs"] == [12e-6 * sum(Design().parameters(classes).values()) for classes in memory["sizes"]]
    assert "start on 8 shards of 10: " in result.stdout
    assert "worse than linear: " in result.stdout


@pytest.mark.parametrize(("words", "said"), [(["--repeats", "0"], "--repeats must be at least 1"), (["--folder", "nowhere"], "nowhere is no folder")])
def test_bad_input_is_one_line(words: list[str], said: str) -> None:
    one_line(run_here(bench_growth.main, *words), said)
