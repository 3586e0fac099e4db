"""Training measured end to end, on the toy: what the clock covers, what is checked, and what is made of the numbers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import one_line, run_here

from model.recipe import read_recipe
from pipeline.colour import read_colour_stats
from pipeline.shards import ShardSet
from tools import bench_all, bench_endtoend
from tools.bench_endtoend_clock import AHEAD, READ_EVERY, WARM_UP, Check, Counted, Given, Losses, Supply, again, timed
from tools.bench_endtoend_ours import Setup, begin_run, supply_of
from tools.bench_endtoend_peers import by_dali, by_torch, numbers
from tools.bench_endtoend_results import EPOCHS, GOALS, Three, minutes, projections, reached, summary
from tools.bench_endtoend_rows import DEFAULT, ROWS
from tools.gpu_watch import Load
from tools.peer_samples import Samples

CPU, BATCH = torch.device("cpu"), 4
SMALL = ("train.batch=4", "model.maps=[4, 8, 8, 8, 8]", "model.hidden=[16, 16]", "model.input=99", "train.schedule=fixed")
SETTINGS = [word for one in SMALL for word in ("--set", one)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the tests ask for; what a benchmark sets is undone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setup_of(shards: Path, folder: Path) -> Setup:
    train = ShardSet(shards, "train")
    stats = read_colour_stats(shards, train.digest, 256)
    return Setup(train, stats, np.array(Samples(shards).labels), read_recipe("small", list(SMALL)), 1, CPU, folder)


# --- the clock


class Epochs:
    """Epochs of `length` batches of two; label and id of a batch are its number."""

    def __init__(self, length: int) -> None:
        self.length, self.place, self.used = length, 0, list[int]()

    def epoch(self) -> Iterator[Given]:
        for number in range(self.place, self.length):
            self.place = number + 1
            yield Given(torch.zeros(2, 1), torch.full((2,), number), torch.full((2,), number))
        self.place = 0

    def supply(self, **more: Any) -> Supply:
        return Supply(self.epoch, lambda: self.length - self.place, **more)

    def use(self, fed: Given) -> None:
        self.used.append(int(fed.labels[0]))


def test_neither_the_beginning_nor_the_end_of_an_epoch_is_counted() -> None:
    epochs, check = Epochs(WARM_UP + 3 + AHEAD), Check(np.arange(20), 20)
    check.all = lambda: None  # type: ignore[method-assign]  # keeps what was noted
    counted = timed(epochs.supply(), lambda fed: time.sleep(0.001), 0.008, CPU, check)
    noted = [int(labels[0]) for labels, _ in check.seen]
    assert noted[:6] == [WARM_UP, WARM_UP + 1, WARM_UP + 2] * 2
    assert counted.steps == len(noted) >= 6
    assert counted.images == 2 * counted.steps
    assert counted.seconds >= 0.001 * counted.steps
    assert counted.ended - counted.began > counted.seconds, "between them lie an epoch's end and a beginning"
    assert 0 <= counted.waited < counted.seconds


def test_an_epoch_that_decodes_into_a_cache_is_run_through_first_and_once() -> None:
    epochs = Epochs(WARM_UP + 1 + AHEAD)
    supply = epochs.supply(first=1)
    counted = timed(supply, epochs.use, 1e-9, CPU)
    assert counted.steps == 1
    assert epochs.used == list(range(WARM_UP + 1)), "the first epoch is not trained on, the second as far as is needed"
    assert supply.first == 0
    assert epochs.place == WARM_UP + 1, "the loader stands where it was left"


def test_workers_batches_are_counted_by_whole_rounds_and_what_lay_ready_is_used_up_first() -> None:
    epochs = Epochs(10_000)
    supply = Supply(epochs.epoch, together=3, ready=6)
    assert timed(supply, lambda fed: time.sleep(0.002), 1e-9, CPU).steps == 3
    assert epochs.place == 3 + 6 + 3
    assert supply.ready == 6, "nobody waited, so the queues may have filled meanwhile"


def test_one_batch_again_and_again() -> None:
    fed, seen = Given(torch.zeros(2, 1), torch.zeros(2, dtype=torch.int64)), list[Given]()
    counted = timed(again(fed), seen.append, 0.001, CPU)
    assert counted.steps == len(seen) - WARM_UP > 0
    assert all(one is fed for one in seen)


def test_a_wrong_label_is_no_result() -> None:
    epochs, labels = Epochs(WARM_UP + 5 + AHEAD), np.arange(20)
    timed(epochs.supply(), epochs.use, 1e-9, CPU, Check(labels, 20))
    with pytest.raises(RuntimeError, match="a label that is not"):
        timed(epochs.supply(), epochs.use, 1e-9, CPU, Check(labels + 1, 20))
    without_ids = Check(labels, classes=3)
    without_ids.note(Given(torch.zeros(2, 1), torch.tensor([0, 2])))
    without_ids.all()
    without_ids.note(Given(torch.zeros(2, 1), torch.tensor([0, 3])))
    with pytest.raises(RuntimeError, match="a label that is not"):
        without_ids.all()


def test_losses_are_read_together_and_must_be_finite() -> None:
    losses = Losses()
    read = [losses.add(torch.tensor(float(number))) for number in range(READ_EVERY + 1)]
    assert read == [False] * (READ_EVERY - 1) + [True, False]
    losses.read()
    assert (losses.first, losses.last) == (0, READ_EVERY)
    losses.add(torch.tensor(math.nan))
    with pytest.raises(RuntimeError, match="not finite"):
        losses.read()


# --- the rows


def test_rows_of_ours_and_of_peers(made_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, asked = tmp_path / "x.json", "ours-decode,ours-cached,ours-resident,dali-autocast,torch-tf32,torch-float32"
    place = ["--shards", str(made_shards), "--out", str(out), "--recipe", "small", *SETTINGS]
    assert bench_endtoend.main([*place, "--batch", "4", "--rows", asked, "--seconds", "0.02", "--threads", "1"]) == 0
    result = json.loads(out.read_text())
    found = {row["row"]: row for row in result["rows"]}
    assert set(found) == set(asked.split(",")) - {"torch-tf32"}
    for key, row in found.items():
        assert row["batch"] == BATCH
        assert row["images"] == BATCH * row["steps"] > 0
        assert row["images_per_s"] == pytest.approx(row["images"] / row["seconds"], rel=0.05)  # seconds are rounded
        assert row["what"] == ROWS[key].what
        assert 0 < row["first_loss_nats"] < 100
        assert 0 < row["last_loss_nats"] < 100
        assert row["model_alone_images_per_s"] > 0
        assert (row["loader_alone_images_per_s"] is None) == (key == "ours-resident")
        assert 0 <= row["data_wait_percent"] <= 100
        assert (row["gpu_busy_percent"], row["power_w"], row["of_roof_percent"]) == (None, None, None), "there is no GPU"
    assert found["ours-resident"]["data_wait_percent"] == found["ours-resident"]["lost_to_data_percent"] == 0
    assert {row["whose"] for row in result["rows"]} == {"ours", "plain DALI", "plain PyTorch"}
    assert list(result["left_out"]) == ["torch-tf32, batch 4"]
    assert result["failed"] == {}
    assert {one["row"] for one in result["projections"]} == {"ours-decode", "ours-cached"}
    assert {"torch", "dali", "commit"} <= set(result["versions"])
    printed, said = capsys.readouterr()
    assert "row torch-tf32, batch 4 is left out: TF32 is a format of NVIDIA's GPUs" in said
    assert printed.startswith("batch 4 ")
    assert "90 epochs of ImageNet by ours-cached, batch 4" in printed
    assert bench_all.table({"endtoend": result}).count("not measured") == 2, "of the steps at batches 128 and 1024"


def test_a_cached_row_reads_nothing_when_it_is_counted(shards: Path, tmp_path: Path) -> None:
    s = setup_of(shards, tmp_path / "runs")
    run = begin_run(s, "cached", "rgb")
    supply = supply_of(run, cached=True)
    timed(supply, lambda fed: None, 1e-9, CPU)
    for tar in shards.glob("train-*.tar"):
        with open(tar, "r+b") as file:
            file.truncate(0)
    assert timed(supply, lambda fed: None, 1e-9, CPU, Check(s.labels, s.classes)).images >= BATCH
    run.metrics.close()


def test_peers_give_pictures_less_their_mean_with_their_labels(made_shards: Path, tmp_path: Path) -> None:
    s = setup_of(made_shards, tmp_path)
    for make in (by_torch, by_dali):
        with ExitStack() as stack:
            batches = make(s, stack).epoch()
            given = [next(batches) for _ in range(14)]
            batches.close()  # type: ignore[attr-defined]
        images, labels = torch.cat([one.images for one in given]), torch.cat([one.labels for one in given])
        assert images.shape == (14 * BATCH, 3, 99, 99)
        assert images.dtype == torch.float32
        assert -256 < images.min() < -20
        assert 20 < images.max() < 256
        assert (images.mean(dim=(0, 2, 3)).abs() < 25).all(), "the mean was taken off"
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(s.classes))
        if given[0].ids is not None:
            check = Check(s.labels, s.classes)
            for one in given:
                check.note(one)
            check.all()


def test_digits_of_several_lengths() -> None:
    digits = np.array([[ord("7"), 0, 0], [ord("1"), ord("0"), ord("\n")], [ord("9"), ord("9"), ord("9")]], np.uint8)
    assert numbers(digits).tolist() == [7, 10, 999]


def test_a_row_that_fails_is_named_and_the_others_go_on(
    made_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loss that is not finite, by a rate that no training survives; the rows of the other supply are measured."""
    monkeypatch.setattr("tools.plain_nets.RATE", 1e30)
    out = tmp_path / "x.json"
    place = ["--shards", str(made_shards), "--out", str(out), "--recipe", "small", *SETTINGS, "--threads", "1"]
    assert bench_endtoend.main([*place, "--batch", "4", "--rows", "ours-resident,dali-float32", "--seconds", "0.02"]) == 1
    result = json.loads(out.read_text())
    assert [row["row"] for row in result["rows"]] == ["ours-resident"]
    assert "not finite" in result["failed"]["dali-float32, batch 4"]
    assert "row dali-float32, batch 4 failed: RuntimeError" in capsys.readouterr().err


def test_what_is_begun_after_the_limit_is_left_out(made_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    place = ["--shards", str(made_shards), "--out", str(out), "--recipe", "small", *SETTINGS]
    assert bench_endtoend.main([*place, "--batch", "4", "--limit", "0.000001"]) == 0
    result = json.loads(out.read_text())
    assert result["rows"] == []
    assert set(result["left_out"].values()) == {"the time of --limit is over"}
    assert set(result["left_out"]) == {f"{key}, batch 4" for key in DEFAULT if "tf32" not in key}
    assert list(result["left_out"])[-1] == "torch-compiled-autocast, batch 4", "what takes longest comes last"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--batch", "0"), "--batch must be different numbers from 1 up"),
        (("--batch", "8"), "batch 8: 48 samples are 6 steps an epoch, of which none could be counted; give at least 88"),
        (("--seconds", "0"), "--seconds, --limit and --threads must be above 0"),
        (("--rows", "ours"), "--rows must be default, all, or different ones of ours-decode, "),
        (("--device", "cuda"), "--device cuda, but torch sees no GPU"),
        (("--out", "x.txt"), "--out x.txt cannot be written"),
        (("--recipe", "none"), "no recipe none"),
    ],
)
def test_a_wrong_argument_is_one_line(made_shards: Path, tmp_path: Path, arguments: tuple[str, str], words: str) -> None:
    place = ["--shards", made_shards, "--out", tmp_path / "x.json", "--batch", "4"]
    one_line(run_here(bench_endtoend.main, *place, *arguments), words)
    assert not list(tmp_path.iterdir())


# --- the results


def counted(rate: float, wait: float = 0.0) -> Counted:
    return Counted(images=round(rate), steps=10, seconds=1.0, waited=wait)


def test_a_summary_has_the_three_figures() -> None:
    row = summary("ours-decode", "x", 128, Three(counted(50_000), counted(58_500), counted(46_800, 0.25)), Load(91.0, 600.0, 20), Losses(), 117_000)
    assert (row["images_per_s"], row["loader_alone_images_per_s"], row["model_alone_images_per_s"]) == (46_800, 50_000, 58_500)
    assert row["data_wait_percent"] == 25
    assert row["lost_to_data_percent"] == 20
    assert row["of_roof_percent"] == 40, "of 117,000"
    assert summary("x", "x", 128, Three(None, counted(5), None), None, Losses(), None)["of_roof_percent"] is None


def test_minutes_of_a_whole_training() -> None:
    assert minutes(1e12, 1e12, 50_000 / 60) == pytest.approx(EPOCHS, rel=1e-3), "a minute for each validation"
    assert minutes(1_281_167 / 60, 1_281_167 / 6, 1e12) == pytest.approx(1 + 89 / 10)


def test_projections_and_goals() -> None:
    rows = [
        {"row": name, "batch": batch, "images_per_s": rate, "data_wait_percent": 3.0}
        for name, batch, rate in [
            ("ours-decode", 128, 40_000.0),
            ("ours-decode", 256, 50_000.0),
            ("ours-cached", 256, 90_000.0),
            ("torch-tf32", 256, 9e9),
        ]
    ]
    projected = projections(rows, {256: 60_000.0})
    assert [(one["row"], one["batch"]) for one in projected] == [("ours-decode", 256), ("ours-cached", 256)], "128 was not validated"
    assert projected[1]["minutes_of_90_epochs"] == round(minutes(50_000, 90_000, 60_000), 1)
    found = {one["goal"]: one for one in reached(rows, projected)}
    assert set(found) == {"end to end, decoding", "end to end, cached", "90 epochs, decoding", "90 epochs, cached"}
    assert (found["end to end, decoding"]["reached"], found["end to end, decoding"]["batch"]) == (50_000, 256)
    assert found["end to end, decoding"]["data_wait_percent"] == 3
    assert found["90 epochs, cached"]["reached"] < found["90 epochs, decoding"]["reached"]


def test_every_goal_is_of_rows_that_there_are() -> None:
    for goal in GOALS:
        assert set(goal.rows) - {"fast-bfloat16"} <= set(ROWS), goal
    assert set(DEFAULT) < set(ROWS)
