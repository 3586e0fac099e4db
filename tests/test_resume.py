"""Runs that were stopped, and go on: at the next image, in any layout, from a checkpoint that is whole."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import one_line, run_command
from training import alive, change_state, end_after, environment_of, here, losses, metrics, newest, refused, start, train, wait_for_step, weights

from model import checkpoint
from model.evaluate import main as evaluate_main
from model.saving import Saver
from pipeline import InputError


@pytest.mark.parametrize(("columns", "number"), [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_stopped_by_a_signal_it_saves_and_goes_on_at_the_next_image(
    finished: Path, finished_pair: Path, made_shards: Path, tmp_path: Path, columns: int, number: signal.Signals
) -> None:
    """The stopped and resumed run ends in the weights of a run that was never stopped, bit for bit in the same layout."""
    run = tmp_path / "run"
    process = start(made_shards, run, "--columns", columns, "--devices", columns)
    wait_for_step(run, 3)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "saved" in out
    assert "Traceback" not in err
    stopped_at = end_after(newest(run), 2)["step"]
    assert stopped_at < 12, "the run was over before the signal came"
    again = train(made_shards, run, "--resume", "--columns", columns, "--devices", columns, recipe=False)
    assert again.returncode == 0, again.stderr
    assert f"step {stopped_at}" in again.stdout
    undisturbed = finished if columns == 1 else finished_pair
    assert losses(run) == losses(undisturbed)
    for name, value in weights(run).items():
        assert torch.equal(value, weights(undisturbed)[name]), name


def test_a_pairs_checkpoint_goes_on_with_one_device(finished: Path, finished_pair: Path, made_shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished_pair, tmp_path / "run", symlinks=True))
    shutil.rmtree(copy / "checkpoints" / "step-00000012")  # what is left is the checkpoint of the first epoch
    alone = train(made_shards, copy, "--resume", recipe=False)
    assert alone.returncode == 0, alone.stderr
    for name, value in weights(copy).items():
        torch.testing.assert_close(value, weights(finished)[name], rtol=1e-3, atol=1e-5)


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
    change_state(newest(run), lambda state: state["recipe"]["train"].update(epochs=state["loader"]["epoch"] + 1))
    again = train(made_shards, run, "--resume", recipe=False)
    assert again.returncode == 0, again.stderr
    steps = sorted(losses(run))
    assert steps == list(range(1, len(steps) + 1))


def test_stopped_in_validation_it_validates_again(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    """The checkpoint from before a validation: going on validates first, and ends like a run that was never stopped."""
    copy = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    steps = [line for line in (copy / "metrics.jsonl").read_text().splitlines(keepends=True) if "val_" not in line or '"step": 6' in line]
    (copy / "metrics.jsonl").write_text("".join(steps))
    schedule = {"best_error": float("inf"), "stale_epochs": 0, "drops": 0}
    change_state(newest(copy), lambda state: state.update(unvalidated=True, schedule=schedule, metrics_bytes=len("".join(steps))))
    again = train(made_shards, copy, "--resume", recipe=False)
    assert again.returncode == 0, again.stderr
    assert [{k: v for k, v in line.items() if k != "val_seconds"} for line in metrics(copy)] == [
        {k: v for k, v in line.items() if k != "val_seconds"} for line in metrics(finished)
    ]


def test_runs_that_are_there_or_not(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    def line(run: Path, *more: object, recipe: bool = False) -> str:
        return refused(made_shards, run, *more, recipe=recipe)

    assert "holds a run already" in line(finished, recipe=True)
    assert "no checkpoint" in line(tmp_path / "new", "--resume")
    assert "leave them out" in line(finished, "--resume", "--set", "train.rate=0.5", recipe=True)
    assert "there is no checkpoint" in evaluated(tmp_path / "none", made_shards)
    assert "not a checkpoint" in evaluated(tmp_path, made_shards)


def evaluated(path: Path, shards: Path) -> str:
    return one_line(here(evaluate_main, ["--checkpoint", str(path), "--shards", str(shards)]))


@pytest.mark.parametrize("what", ["cut short", "one bit", "no file", "state", "another program"])
def test_a_damaged_checkpoint_is_refused(finished: Path, tmp_path: Path, what: str) -> None:
    damaged = Path(shutil.copytree(newest(finished), tmp_path / "step-00000012"))
    path = next(damaged.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    if what == "cut short":
        path.write_bytes(content[:1000])
    elif what == "one bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif what == "no file":
        path.unlink()
    elif what == "state":
        text = (damaged / "state.json").read_text()
        (damaged / "state.json").write_text(text.replace('"step": 12', '"step": 13'))
    else:
        checkpoint.write_state(damaged, {"step": 12}, {})
    with pytest.raises(InputError, match="not a checkpoint of this program" if what == "another program" else "the one before") as error:
        checkpoint.load(damaged)
    assert "step-00000012" in str(error.value)


def test_what_a_killed_save_leaves_is_no_checkpoint(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished / "checkpoints", tmp_path / "checkpoints", symlinks=True))
    shutil.copytree(copy / "step-00000012", copy / ".step-00000018.1.partial")
    assert checkpoint.latest(copy) == copy / "step-00000012"
    Saver(copy, None, first=True)
    assert sorted(path.name for path in copy.iterdir()) == ["best", "latest", "step-00000006", "step-00000012"]


def test_another_shard_set_is_refused(finished: Path, shards: Path, tmp_path: Path) -> None:
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    (shards / "pca.json").unlink()
    assert run_command("tools/compute_pca.py", "--shards", shards).returncode == 0
    copy = Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))
    one_line(train(shards, copy, "--resume", recipe=False), "another shard set")
