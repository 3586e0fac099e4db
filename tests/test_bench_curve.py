from __future__ import annotations

import io
import json
import math
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from conftest import one_line, run_here
from PIL import Image
from training import TINY, here

from model.train import main as train_main
from pipeline import InputError
from tools import bench_curve_plot
from tools.bench_curve import FORMS, Plan, judge, losses_of, main, running_mean, spread, train_process, unpack

CHANCE = math.log(20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar laid out as tiny-20.tar: three classes of sixteen training and two validation pictures; not to be changed by a test."""
    path, draw = tmp_path_factory.mktemp("tiny") / "tiny-3.tar", np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for name in (
            f"tiny-3/{split}/n{number}/n{number}_{i}.JPEG"
            for split, count in (("train", 16), ("val", 2))
            for number in range(3)
            for i in range(count)
        ):
            picture = io.BytesIO()
            Image.fromarray(draw.integers(0, 255, (64, 64, 3), np.uint8)).save(picture, "JPEG")
            member = tarfile.TarInfo(name)
            member.size = picture.tell()
            picture.seek(0)
            tar.addfile(member, picture)
    return path


def train_here(words: list[str], environment: Mapping[str, str], said: Path) -> int:
    """A whole training in this process, which has imported already what a new one would for seconds."""
    done = here(train_main, [*words, "--threads", "1"])
    said.write_text(done.stdout + done.stderr)
    return done.returncode


def curves(seeds: int = 5, places: int = 281) -> np.ndarray:
    """Falling losses with noise of a seed that changes slowly, 0.03 nats."""
    draw = np.random.default_rng(1)
    noise = running_mean(draw.normal(0, 0.03 * math.sqrt(20), (seeds, places + 19)), 20)
    return np.linspace(3.0, 2.4, places) + noise


def test_a_running_mean_is_that_of_each_window() -> None:
    assert running_mean(np.array([[1.0, 2.0, 3.0, 7.0], [0.0, 0.0, 6.0, 0.0]]), 3).tolist() == [[2.0, 4.0], [2.0, 2.0]]


def test_deviations_are_taken_over_neighbours() -> None:
    plain = np.array([[0.0, 0.0, 3.0, 1.0], [2.0, 0.0, 3.0, 5.0]])  # variances 2, 0, 0, 8
    mean, deviation = spread(plain, 3)
    assert mean.tolist() == [1.0, 0.0, 3.0, 3.0]
    assert deviation == pytest.approx(np.sqrt([2 / 2, 2 / 3, 8 / 3, 8 / 2]))
    assert spread(plain, 1)[1] == pytest.approx(np.sqrt([2, 0, 0, 8]), abs=1e-8)
    assert spread(plain, 100)[1].shape == (4,)


def test_the_figures_of_a_judgement() -> None:
    plain = np.array([[2.0, 1.0], [4.0, 3.0]])  # deviations sqrt(2) from means 3 and 2
    found = judge(plain, plain + np.array([[0.0, 0.5], [0.0, -0.1]]), CHANCE, 1)
    assert found["paired_rms_nats"] == pytest.approx(math.sqrt((0.25 + 0.01) / 4))
    assert found["paired_mean_nats"] == pytest.approx(0.1)
    assert found["between_seeds_rms_nats"] == pytest.approx(2)
    assert found["seeds"][0]["paired_rms_nats"] == pytest.approx(math.sqrt(0.125))
    assert [row["most_deviations"] for row in found["seeds"]] == pytest.approx([1 / math.sqrt(2)] * 2)
    assert found["end_nats"] == pytest.approx({"plain": 2.0, "fast": 2.2})
    assert found["within"]
    assert found["faults"] == []


def test_rounding_lies_within_the_spread_and_what_changes_training_does_not() -> None:
    plain, draw = curves(), np.random.default_rng(2)
    assert judge(plain, plain.copy(), CHANCE, 100)["within"]
    assert judge(plain, plain + draw.normal(0, 0.005, plain.shape), CHANCE, 100)["within"]
    behind = judge(plain, plain + 0.2, CHANCE, 100)
    assert not behind["within"]
    assert len(behind["faults"]) == 6, "each seed's curve leaves the band, and the pairs differ by more than the seeds"
    assert all(row["share_within"] < 0.5 for row in behind["seeds"])


def test_a_form_that_forgets_the_seed_is_told() -> None:
    plain = curves(10)
    found = judge(plain[:5], plain[:5] + 2 * (plain[5:] - plain[:5]), CHANCE, 100)
    assert any("with the same seed" in fault for fault in found["faults"])


def test_one_seed_that_goes_astray_is_named() -> None:
    fast = curves()
    fast[3, 100:110] += 0.3
    found = judge(curves(), fast, CHANCE, 100)
    assert [fault for fault in found["faults"] if "seed 3" in fault] == found["faults"] != []


def test_curves_that_learned_nothing_prove_nothing() -> None:
    plain = curves() + 0.6
    (fault,) = judge(plain, plain.copy(), CHANCE, 100)["faults"]
    assert "guessing" in fault


@pytest.fixture(scope="module")
def ran(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder where the whole road was gone, six steps of two seeds: work/, curve.json, curve.png; and its exit code."""
    folder, words = tmp_path_factory.mktemp("ran"), [str(word) for word in TINY]
    model = [word for word in words if word.startswith("model.")]
    settings = ["--steps", 6, "--seeds", 2, "--batch", 8, "--smooth", 3, *(word for setting in model for word in ("--set", setting))]
    done = run_here(lambda words: main(words, train_here), "--tiny", tiny, "--work", folder / "work", "--out", folder / "curve.json", *settings)
    assert "error" not in done.stderr, done.stderr
    return folder, done.returncode


def test_the_whole_road_on_drawn_pictures(ran: tuple[Path, int], tmp_path: Path) -> None:
    (folder, code), out = ran, ran[0] / "curve.json"
    result = json.loads(out.read_text())
    judgement, found = result["judgement"], result["curves"]
    assert code == (0 if judgement["within"] else 1)
    assert judgement["chance_nats"] == pytest.approx(math.log(3))
    assert result["pictures"] == {"train": 48, "classes": 3}
    assert [(one["form"], one["seed"]) for one in found] == [("plain", 0), ("plain", 1), ("fast", 0), ("fast", 1)]
    assert all(len(one["losses"]) == 6 and len(one["smooth"]) == 4 and np.isfinite(one["losses"]).all() for one in found)
    assert found[0]["losses"] != found[1]["losses"], "another seed is another training"
    assert np.abs(np.subtract(found[0]["losses"], found[2]["losses"])).max() < 0.1, "the same pictures and weights, but for rounding"
    for form, seed in (("plain", 0), ("fast", 1)):
        recipe = json.loads((next((folder / "work" / "curve-runs" / f"{form}-{seed}" / "checkpoints").glob("step-*")) / "state.json").read_text())[
            "recipe"
        ]
        assert recipe["train"]["seed"] == seed
        for setting in FORMS[form].settings:
            key, _, value = setting.removeprefix("train.").partition("=")
            assert recipe["train"][key] == value
    assert Image.open(out.with_suffix(".png")).size[0] >= 1000
    again = run_here(bench_curve_plot.main, "--result", out, "--out", tmp_path / "again.png")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "again.png").read_bytes() == out.with_suffix(".png").read_bytes()


def test_names_in_a_tar_write_nowhere_else(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("train/../outside.jpg", "train/..", "../train/a/b.jpg", "notes.txt", "x/val/a/c.jpg"):
            tar.addfile(tarfile.TarInfo(name))
    unpack(tmp_path / "x.tar", tmp_path / "deep" / "to")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == ["deep/to/train/a/b.jpg", "x.tar"]


def test_what_cannot_be_used_is_one_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    out = ("--out", tmp_path / "curve.json")
    one_line(run_here(main, "--tiny", tmp_path / "x.tar", *out), "x.tar", "no whole tar")
    one_line(run_here(main, "--tiny", tmp_path / "none.tar", *out), "none.tar", "no whole tar")
    one_line(run_here(main, "--tiny", tmp_path / "empty.tar", *out), "empty.tar", "0 pictures train/CLASS/PICTURE")
    one_line(run_here(main, "--tiny", tiny, *out, "--batch", 50), "48 pictures", "--batch")
    one_line(run_here(main, "--tiny", tiny, *out, "--seeds", 1), "--seeds", "at least 2")
    one_line(run_here(main, "--tiny", tiny, *out, "--steps", 5), "--smooth 20", "5 steps")
    one_line(run_here(main, "--tiny", tiny, "--out", tmp_path / "none" / "curve.json"), "--out", "folder that exists")
    one_line(run_here(bench_curve_plot.main, "--result", tmp_path / "x.tar"), "no result of tools/bench_curve.py")
    assert not (tmp_path / "curve.json").exists()


def test_a_training_that_fails_ends_it_with_what_it_said(ran: tuple[Path, int], tmp_path: Path) -> None:
    plan = Plan(ran[0] / "work" / "shards", tmp_path, "cpu", steps=6, seeds=2, batch=8, smooth=3, changes=["train.rat=1"], at_once=1)
    with pytest.raises(InputError, match=r"plain training with seed 0 ended with exit code 2, .* unknown key train\.rat"):
        losses_of(plan, "plain", 0, train_process)
