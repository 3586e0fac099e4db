"""Training as users run it: one device and two ranks, stopped, killed, gone on with, and given what it cannot use."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, one_line, run_command

TINY = [
    *("--recipe", "small", "--threads", 1),
    *("--set", "model.maps=[4, 8, 8, 8, 8]", "--set", "model.hidden=[16, 16]", "--set", "model.input=99"),
    *("--set", "train.batch=8", "--set", "train.log_every=1", "--set", "train.drop_epochs=[1]", "--set", "train.rate=0.001"),
]


def train(shards: Path | str, run: Path, *more: object, epochs: int = 2, recipe: bool = True) -> subprocess.CompletedProcess[str]:
    settings = [*TINY, "--set", f"train.epochs={epochs}"] if recipe else ["--threads", 1]
    return run_command("-m", "model.train", "--shards", shards, "--run", run, *settings, *more)


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    """Loss by step; each step stands there once."""
    lines = [line for line in metrics(run) if "loss_nats" in line]
    assert len({line["step"] for line in lines}) == len(lines)
    return {line["step"]: line["loss_nats"] for line in lines}


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    return torch.load(newest, weights_only=True)["model"]


@pytest.fixture(scope="module")
def finished(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on one device, and what it printed in said.txt."""
    run = tmp_path_factory.mktemp("finished") / "run"
    result = train(made_shards, run)
    assert result.returncode == 0, result.stderr
    (run / "said.txt").write_text(result.stdout)
    return run


def test_a_run_leaves_what_it_should(finished: Path) -> None:
    lines = metrics(finished)
    assert sorted(losses(finished)) == list(range(1, 13))
    step = next(line for line in lines if line["step"] == 1)
    loader = {f"loader_{stage}_percent" for stage in ("read", "decode", "augment", "copy", "idle")}
    assert set(step) == {"step", "epoch", "loss_nats", "rate", "images_per_second", "data_wait_percent"} | loader
    assert 0 <= step["data_wait_percent"] <= 100
    assert [line["rate"] for line in lines if "rate" in line] == pytest.approx([1e-3] * 6 + [1e-4] * 6)
    assert [line["val_images"] for line in lines if "val_images" in line] == [20, 20]
    assert "val_ten_view_top1_error_percent" in lines[-1]
    assert len(json.loads((finished / "predictions.json").read_text())) == 8
    assert any((finished / "tensorboard").iterdir())
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {"step-00000006.pt", "step-00000012.pt", "best.pt"}
    said = (finished / "said.txt").read_text()
    assert re.search(r"epoch   1  step      3  loss +\d+\.\d+  rate 0.001 +[\d.]+ images/s  waiting for data +[\d.]+ %", said)


def test_same_seed_same_weights_and_two_ranks_the_same_curve(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    pair = train(made_shards, tmp_path / "pair", "--columns", 2)
    assert pair.returncode == 0, pair.stderr
    assert "2 x cpu, one column a device, 1 replica" in pair.stdout
    np.testing.assert_allclose(list(losses(tmp_path / "pair").values()), list(losses(finished).values()), rtol=1e-4)
    ours, theirs = weights(tmp_path / "pair"), weights(finished)
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-5)


def test_evaluate_repeats_the_runs_own_figures(finished: Path, made_shards: Path) -> None:
    said = (finished / "said.txt").read_text()
    newest = finished / "checkpoints" / "step-00000012.pt"
    for views, line in ((10, "finished   validation, ten views:"), (1, "epoch   2  validation, centre view:")):
        result = run_command("-m", "model.evaluate", "--checkpoint", newest, "--shards", made_shards, "--views", views, "--batch", 7)
        assert result.returncode == 0, result.stderr
        figures = next(text for text in said.splitlines() if text.startswith(line)).split(":", 1)[1].strip()
        assert figures in result.stdout
        assert "of 20)" in figures


def start(shards: Path, run: Path, *more: object) -> subprocess.Popen[str]:
    command = ["-m", "model.train", "--shards", shards, "--run", run, *TINY, "--set", "train.epochs=400", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_step(run: Path, step: int) -> None:
    deadline = time.time() + 120
    while time.time() < deadline:
        if (run / "metrics.jsonl").exists() and f'"step": {step},' in (run / "metrics.jsonl").read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not come to step {step}")


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_by_a_signal_it_saves_and_goes_on_at_the_next_image(
    finished: Path, made_shards: Path, tmp_path: Path, columns: int, number: signal.Signals
) -> None:
    """The stopped and resumed run ends in the weights of a run that was never stopped: bit for bit in the same layout."""
    run = tmp_path / "run"
    process = start(made_shards, run, "--columns", columns, "--devices", columns)
    wait_for_step(run, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "saved" in out
    assert "Traceback" not in err
    checkpoints = sorted((run / "checkpoints").glob("step-*.pt"))
    content = torch.load(checkpoints[-1], weights_only=True)
    content["recipe"]["train"]["epochs"] = 2  # it was started with more, so that the signal would find it at work
    stopped_at = content["step"]
    if stopped_at >= 12:
        pytest.fail("the run was over before the signal came")
    torch.save(content, checkpoints[-1])
    again = train(made_shards, run, "--resume", "--columns", columns, "--devices", columns, recipe=False)
    assert again.returncode == 0, again.stderr
    assert f"step {stopped_at}" in again.stdout
    assert sorted(losses(run)) == list(range(1, 13))
    exact = columns == 1
    for name, value in weights(run).items():
        torch.testing.assert_close(value, weights(finished)[name], rtol=0 if exact else 1e-3, atol=0 if exact else 1e-5)


def test_a_pairs_checkpoint_goes_on_with_one_device(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    pair = train(made_shards, tmp_path / "run", "--columns", 2, epochs=1)
    assert pair.returncode == 0, pair.stderr
    newest = tmp_path / "run" / "checkpoints" / "step-00000006.pt"
    content = torch.load(newest, weights_only=True)
    content["recipe"]["train"]["epochs"] = 2
    torch.save(content, newest)
    alone = train(made_shards, tmp_path / "run", "--resume", recipe=False)
    assert alone.returncode == 0, alone.stderr
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, weights(finished)[name], rtol=1e-3, atol=1e-5)


def test_pairs_in_data_parallel_train_the_same_net(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    for columns in (1, 2):
        run = tmp_path / f"run{columns}"
        result = train(made_shards, run, "--devices", 2 * columns, "--columns", columns)
        assert result.returncode == 0, result.stderr
        assert "2 replicas" in result.stdout
        np.testing.assert_allclose(list(losses(run).values()), list(losses(finished).values()), rtol=1e-4)
        assert [line["val_images"] for line in metrics(run) if "val_images" in line] == [20, 20]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_ends_the_run_with_its_name(made_shards: Path, tmp_path: Path, victim: int) -> None:
    process = start(made_shards, tmp_path / "run", "--columns", 2)
    wait_for_step(tmp_path / "run", 2)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [pid for pid in children if f"RANK={victim}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")]
    assert len(ranks) == 1
    os.kill(int(ranks[0]), signal.SIGKILL)
    killed = time.time()
    _, err = process.communicate(timeout=60)
    result = subprocess.CompletedProcess([], process.returncode, "", err)
    one_line(result, f"rank {victim} was ended by SIGKILL", "--resume")
    assert time.time() - killed < 25  # a bound on hanging, not on speed: the launcher would kill stragglers after 30 s
    for pid in children:
        assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_one_run_has_one_trainer_and_no_rank_outlives_it(made_shards: Path, tmp_path: Path) -> None:
    """A live run is refused to a second trainer; when the launcher is killed with SIGKILL its ranks end, and the run can go on."""
    run = tmp_path / "run"
    process = start(made_shards, run, "--columns", 2)
    wait_for_step(run, 8)
    children = [pid for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if b"RANK=" in environment_of(pid)]
    assert len(children) == 2
    one_line(train(made_shards, run, "--resume", recipe=False), "being trained by another process")
    assert all(alive(pid) for pid in children)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.time() + 60
    while any(alive(pid) for pid in children):
        assert time.time() < deadline, "ranks go on without their launcher"
        time.sleep(0.1)
    newest = sorted((run / "checkpoints").glob("step-*.pt"))[-1]
    content = torch.load(newest, weights_only=True)
    content["recipe"]["train"]["epochs"] = content["loader"]["epoch"] + 1
    torch.save(content, newest)
    again = train(made_shards, run, "--resume", recipe=False)
    assert again.returncode == 0, again.stderr
    steps = sorted(losses(run))
    assert steps == list(range(1, len(steps) + 1))


def environment_of(pid: str) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def test_a_loss_that_is_no_number_stops_with_step_and_rate(made_shards: Path, tmp_path: Path) -> None:
    one_line(train(made_shards, tmp_path / "run", "--set", "train.rate=1e12"), "nan", "step", "rate 1e+12", "--set train.rate=1e+11")


def still_settings(bias: float) -> list[str]:
    """A net that cannot move, with these biases where the paper has 1."""
    biases = [0, bias, 0, bias, bias, bias, bias, 0]
    return ["--set", "train.rate=1e-9", "--set", f"model.init_std={[1e-4] * 8}", "--set", f"model.bias={biases}"]


def test_a_loss_that_stays_at_chance_is_warned_of(made_shards: Path, tmp_path: Path) -> None:
    still = train(made_shards, tmp_path / "run", *still_settings(1.0), epochs=1)
    assert "the loss stays at ln(4) = 1.39" in still.stdout
    assert "model.bias=[0, 0.1, 0, 0.1, 0.1, 0.1, 0.1, 0]" in still.stdout
    cured = train(made_shards, tmp_path / "cured", *still_settings(0.1), epochs=1)
    assert cured.returncode == 0, cured.stderr
    assert "warning" not in cured.stdout


def test_the_authors_program_runs(made_shards: Path, tmp_path: Path) -> None:
    small = ["--set", "model.maps=[4, 8, 8, 8, 8]", "--set", "model.hidden=[16, 16]", "--set", "train.batch=16", "--set", "train.log_every=1"]
    late = ["--set", "train.epochs=2", "--set", "data.colour_stop_epoch=1", "--set", "train.drop_epochs=[1]", "--set", "train.conv1_freeze_epoch=1"]
    result = run_command(
        *("-m", "model.train", "--shards", made_shards, "--run", tmp_path / "run", "--recipe", "alexnet-2012", "--threads", 1),
        *(*small, *late, "--set", "train.conv1_slow_epoch=1"),
    )
    assert result.returncode == 0, result.stderr
    assert len(losses(tmp_path / "run")) == 6


def test_full_disk_while_saving(made_shards: Path, tmp_path: Path) -> None:
    """A file-size limit below a checkpoint's: one line, and no half-written checkpoint."""
    limit = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000)); sys.argv = sys.argv[1:]; "
        "runpy.run_module('model.train', run_name='__main__')"
    )
    result = run_command("-c", limit, "model.train", "--shards", made_shards, "--run", tmp_path / "run", *TINY, "--set", "train.epochs=2")
    one_line(result, "File too large", "free space")
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_stopped_in_validation_it_validates_again(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    """The checkpoint from before a validation: going on validates first, and ends like a run that was never stopped."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    newest = copy / "checkpoints" / "step-00000012.pt"
    content = torch.load(newest, weights_only=True)
    schedule = {**content["schedule"], "best_error": float("inf"), "stale_epochs": 0}
    steps = [line for line in (copy / "metrics.jsonl").read_text().splitlines(keepends=True) if "val_" not in line or '"step": 6' in line]
    (copy / "metrics.jsonl").write_text("".join(steps))
    torch.save({**content, "unvalidated": True, "schedule": schedule, "metrics_bytes": len("".join(steps))}, newest)
    again = train(made_shards, copy, "--resume", recipe=False)
    assert again.returncode == 0, again.stderr
    assert [{k: v for k, v in line.items() if k != "val_seconds"} for line in metrics(copy)] == [
        {k: v for k, v in line.items() if k != "val_seconds"} for line in metrics(finished)
    ]


def test_groups_rates_and_decays_of_the_authors_program(made_shards: Path, tmp_path: Path) -> None:
    from model.layout import Layout
    from model.pictures import Source
    from model.recipe import read_recipe
    from model.run import build_run
    from model.train import _enter_epoch

    small = ["model.maps=[4, 8, 8, 8, 8]", "model.hidden=[16, 16]", "train.batch=16"]
    run = build_run(tmp_path / "run", read_recipe("alexnet-2012", small), Layout(), Source(str(made_shards), 1), None)
    groups = {group["name"]: group for group in run.optimiser.param_groups}
    assert {name: (len(g["params"]), g["weight_decay"]) for name, g in groups.items()} == {
        "conv1.weight": (1, 0.0005),
        "conv1.bias": (1, 0.0),
        "weight": (7, 0.0005),
        "bias": (7, 0.0),
    }
    for epoch, noise, rates in ((66, "stddev", [1e-4, 0.02, 1e-4, 0.02]), (67, "none", [1e-5, 0.02, 1e-4, 0.02]), (72, "none", [0, 0, 1e-4, 0.02])):
        run.train.epoch = epoch
        _enter_epoch(run)
        assert [group["rate"] for group in run.optimiser.param_groups] == pytest.approx(rates)
        assert (run.train.augmentation.colour, run.train.augmentation.divisor) == (noise, 1.1 if noise == "stddev" else 1.0)
        assert run.train.epoch == epoch
    run.metrics.close()


# --- bad input


def test_shards_that_cannot_be_used(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one_line(train(tmp_path / "none", run), "is not a folder", "make_shards.py")
    one_line(train(tmp_path, run), "holds no shards")
    (shards / "mean.npy").unlink()
    for columns in (1, 2):
        one_line(train(shards, run, "--columns", columns), "mean.npy", "python tools/compute_pca.py --shards")
    one_line(train(tmp_path / "none", run, "--columns", 2), "is not a folder")
    assert not run.exists()


def test_a_flipped_byte_ends_two_ranks_with_the_samples_name(shards: Path, tmp_path: Path) -> None:
    path = shards / "train-000004.tar"
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    line = one_line(train(shards, tmp_path / "run", "--columns", 2), "train-000004.tar", "CRC-32C")
    assert re.search(r"sample n\S+ at offset \d+", line)


def test_impossible_layouts(made_shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    one_line(train(made_shards, run, "--devices", 16), "batch 8 is smaller than the 16 ranks")
    one_line(train(made_shards, run, "--devices", 3, "--columns", 1), "batch 8 does not divide over 3 ranks")
    one_line(train(made_shards, run, "--devices", 3, "--columns", 2), "cannot be paired")
    one_line(train(made_shards, run, "--set", "train.batch=64"), "larger than the 48 samples")
    one_line(train(made_shards, run, "--set", "train.rat=1"), "unknown key train.rat")
    assert not run.exists()


def test_runs_that_are_there_or_not(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    one_line(train(made_shards, finished), "holds a run already", "--resume")
    one_line(train(made_shards, tmp_path / "new", "--resume", recipe=False), "no checkpoint")
    one_line(train(made_shards, finished, "--resume", "--set", "train.rate=0.5"), "its own recipe", "leave them out")
    copy = Path(shutil.copytree(finished, tmp_path / "copy"))
    newest = copy / "checkpoints" / "step-00000012.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    one_line(train(made_shards, copy, "--resume", recipe=False), "step-00000012.pt", "the one before")
    content = bytearray((finished / "checkpoints" / "step-00000012.pt").read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    one_line(train(made_shards, copy, "--resume", recipe=False), "step-00000012.pt", "the one before")
    torch.save({"format": 1}, newest)
    one_line(train(made_shards, copy, "--resume", recipe=False), "step-00000012.pt", "not a checkpoint of this program")
    one_line(run_command("-m", "model.evaluate", "--checkpoint", tmp_path / "none.pt", "--shards", made_shards), "there is no checkpoint")


def test_another_shard_set_is_refused(finished: Path, shards: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    (shards / "pca.json").unlink()
    assert run_command("tools/compute_pca.py", "--shards", shards).returncode == 0
    one_line(train(shards, finished, "--resume", recipe=False), "another shard set")
