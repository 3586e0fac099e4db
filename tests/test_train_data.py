"""What the data plane promises to a training: bad pictures, caches, orders, remote shards, and where the time goes."""

from __future__ import annotations

import functools
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT, one_line
from training import TINY, losses, metrics, train, weights

from pipeline.order import order
from pipeline.shards import ShardSet

FIXED = ("--set", "train.schedule=fixed")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_time_is_attributed_in_each_line_and_at_the_end(finished: Path) -> None:
    said = (finished / "said.txt").read_text()
    lines = re.findall(r"images/s  waiting for data +[\d.]+ %  \(loader: read \d+, decode \d+, augment \d+, copy \d+, idle \d+ %\)", said)
    steps = [line for line in metrics(finished) if "loss_nats" in line]
    assert len(lines) == len(steps)
    for line in steps:
        shares = [line[f"loader_{stage}_percent"] for stage in ("read", "decode", "augment", "copy", "idle")]
        assert sum(shares) == pytest.approx(100) or sum(shares) == 0
    table = (r"images/s while training +[\d,.]+", r"waiting for data +[\d.]+ %", r"copy, idle [\d., ]+ %", r"pictures skipped +0")
    for words in table:
        assert re.search(words, said), words
    assert not (finished / "skipped.jsonl").exists()


@pytest.mark.parametrize("columns", [1, 2])
def test_skip_goes_on_and_lists_each_picture_once(shards: Path, tmp_path: Path, columns: int) -> None:
    """A flipped byte in a training and in a validation picture; two epochs, on one device and on a pair, the same curve."""
    flip(shards / "train-000002.tar", 5000)
    flip(shards / "val-000000.tar", 9000)
    run = tmp_path / "run"
    result = train(shards, run, "--columns", columns, "--on-bad-sample", "skip")
    assert result.returncode == 0, result.stderr
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert sorted((one["split"], one["shard"]) for one in listed) == [("train", "train-000002.tar"), ("val", "val-000000.tar")]
    for one in listed:
        assert set(one) == {"split", "id", "shard", "key", "offset", "reason", "epoch", "replaced_by"}
        assert "CRC-32C" in one["reason"]
        assert f"skipped: {one['shard']}: sample {one['key']} at offset {one['offset']}" in result.stderr
    validation = [line["val_images"] for line in metrics(run) if "val_images" in line]
    assert validation == [19, 19]  # of 20
    assert re.search(r"pictures skipped +2", result.stdout)
    if columns == 2:
        alone = tmp_path / "alone"
        assert train(shards, alone, "--on-bad-sample", "skip").returncode == 0
        assert losses(run) == pytest.approx(losses(alone), rel=1e-3)


def test_verify_reads_all_before_the_first_step(shards: Path, tmp_path: Path) -> None:
    """A byte of padding, which no sample's sum covers."""
    content = bytearray((shards / "train-000001.tar").read_bytes())
    content[-600] ^= 1
    (shards / "train-000001.tar").write_bytes(content)
    run = tmp_path / "run"
    for columns in (1, 2):
        one_line(train(shards, run, "--verify", "--columns", columns, epochs=1), "train-000001.tar")
    assert not run.exists()
    assert train(shards, run, *FIXED, "--set", "train.drop_epochs=[]", epochs=1).returncode == 0


@pytest.mark.parametrize("settings", [("cache=host",), ("cache=device", "cache_pixels=yuv420"), ("decoder=turbojpeg",)], ids=lambda s: "-".join(s))
def test_caches_and_decoders_train_the_same_net(finished: Path, made_shards: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    run = tmp_path / "run"
    result = train(made_shards, run, *(word for setting in settings for word in ("--set", f"data.{setting}")))
    assert result.returncode == 0, result.stderr
    assert ("cache: 48 pictures need" in result.stdout) == settings[0].startswith("cache")
    assert losses(run) == losses(finished)
    for name, weight in weights(run).items():
        assert weight.equal(weights(finished)[name]), name


def test_a_pair_shares_a_cache_and_mixes_windows(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    pair = train(made_shards, tmp_path / "pair", "--columns", 2, "--set", "data.cache=device")
    assert pair.returncode == 0, pair.stderr
    assert "divided over 2 ranks" in pair.stdout
    assert losses(tmp_path / "pair") == pytest.approx(losses(finished), rel=1e-3)
    windowed = train(made_shards, tmp_path / "windowed", "--set", "data.order=windowed", "--set", "data.window=2")
    assert windowed.returncode == 0, windowed.stderr
    assert "order: windowed, shards are read one behind the other, 4 of them at a time" in windowed.stdout
    assert losses(tmp_path / "windowed") != losses(finished)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing on the tests' screen."""


@pytest.fixture
def url(made_shards: Path) -> Iterator[str]:
    """The toy's shards on a server of this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(made_shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_shards_at_a_url_train_the_same_net(finished: Path, url: str, tmp_path: Path) -> None:
    """Two ranks fetch into one folder, each shard once."""
    run, local = tmp_path / "run", tmp_path / "local"
    result = train(url, run, "--local", local, "--columns", 2)
    assert result.returncode == 0, result.stderr
    assert losses(run) == pytest.approx(losses(finished), rel=1e-3)
    assert len(list(local.rglob("train-*.tar"))) == 6
    assert not list(local.rglob("*.tmp"))


def test_a_run_goes_on_with_what_its_new_machine_has(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    """Caches and decoders change no bit, so they may be set anew; what is the run's own may not."""
    run = tmp_path / "run"
    short = train(made_shards, run, "--set", "data.cache=host", *FIXED, "--set", "train.drop_epochs=[1]", epochs=1)
    assert short.returncode == 0, short.stderr
    one_line(train(made_shards, run, "--resume", "--set", "data.window=3", recipe=False), "goes on with its own recipe")
    again = train(made_shards, run, "--resume", "--set", "data.cache=none", "--set", "data.decoder=turbojpeg", recipe=False)
    assert again.returncode == 0, again.stderr
    assert "cache:" not in again.stdout


def test_ctrl_c_while_the_store_is_dead_saves_and_ends(made_shards: Path, tmp_path: Path) -> None:
    """The server dies in the first epoch; the run waits for it, and a signal ends the wait, not the eight tries."""
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(made_shards)], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    port = re.search(r"port (\d+)", server.stdout.readline())
    assert port is not None
    run, local = tmp_path / "run", tmp_path / "local"
    place = ("--run", run, "--local", local, "--local-gb", 0.0011, "--set", "data.order=windowed", "--set", "data.window=1")
    command = [sys.executable, "-m", "model.train", "--shards", f"http://127.0.0.1:{port[1]}", *TINY, "--set", "train.epochs=9", *place]
    process = subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "step      1 " in line:
            break
    server.kill()
    server.wait()
    assert process.stderr is not None
    for line in process.stderr:  # it says that it tries again: the wait has begun
        if "try 2 of" in line:
            break
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130, out
    assert "saved; the same command with --resume" in out
    assert list((run / "checkpoints").glob("step-*"))


def test_a_bad_sample_that_ends_a_run_costs_no_step(shards: Path, tmp_path: Path) -> None:
    """Batches of 8 of 48, and the bad sample is in the sixth: five steps are saved, and skip goes on behind them."""
    train_set = ShardSet(shards, "train")
    path, _, offset = train_set.place(int(order(0, 0, len(train_set))[43]))
    flip(path, offset + 100)
    run, settings = tmp_path / "run", (*FIXED, "--set", "train.drop_epochs=[]")
    stopped = train(shards, run, *settings, epochs=1)
    one_line(stopped, "CRC-32C")
    assert "saved at step 5: --resume goes on there, and with --on-bad-sample skip passes over a bad sample" in stopped.stdout
    again = train(shards, run, "--resume", "--on-bad-sample", "skip", recipe=False)
    assert again.returncode == 0, again.stderr
    assert sorted(losses(run)) == list(range(1, 7))
