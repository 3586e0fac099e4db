"""Hosts that come and go under torchrun: training goes on at the next image on those that are there."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from training import TINY, losses, wait_for_step

PATIENCE = "join_timeout=60,last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def host(port: int, run: Path, shards: Path, log: Path) -> subprocess.Popen[bytes]:
    """One host of one to four: an agent of torchrun with one rank, in a process group of its own."""
    place = ["--nnodes", "1:4", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "test"]
    more = ["--rdzv-conf", PATIENCE, "--max-restarts", "3", "--local-addr", "127.0.0.1"]
    words = ["-m", "--", "model.train", "--shards", shards, "--run", run, "--resume", "auto", "--save-every", "2", *TINY, "--set", "train.epochs=400"]
    # torch 2.13's shared store is told to late-comers in the first round only, so a host that joins would wait in vain.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with open(log, "ab") as file:
        command = [sys.executable, "-m", "torch.distributed.run", *place, *more, *map(str, words)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True)


def wait_for_line(log: Path, words: str, times: int = 1) -> None:
    deadline = time.time() + 150
    while log.read_text().count(words) < times:
        assert time.time() < deadline, f"{words!r} did not come: {log.read_text()[-3000:]}"
        time.sleep(0.1)


def test_a_host_that_dies_and_one_that_comes(finished: Path, made_shards: Path, tmp_path: Path) -> None:
    """Two hosts, then one, then (in the long form) two again; the curve is an undisturbed one's, and no step is missing or doubled."""
    run, log, port = tmp_path / "run", tmp_path / "log", free_port()
    first = host(port, run, made_shards, log)
    hosts = [first]
    try:
        time.sleep(1)
        hosts.append(host(port, run, made_shards, tmp_path / "other"))
        wait_for_line(log, "2 x cpu")
        wait_for_step(run, 4)
        os.killpg(hosts[1].pid, signal.SIGKILL)
        wait_for_line(log, "one cpu")
        alone = len(losses(run))
        wait_for_step(run, alone + 4)
        if "SOAK" in os.environ:
            hosts.append(host(port, run, made_shards, tmp_path / "other"))
            wait_for_line(log, "2 x cpu", times=2)
            wait_for_step(run, len(losses(run)) + 3)
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=90)
    finally:
        for one in hosts:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
            one.wait(timeout=60)
    steps = losses(run)
    assert sorted(steps) == list(range(1, len(steps) + 1))
    undisturbed = losses(finished)
    for step in range(1, 7):  # of the first epoch: afterwards float32 sums in another order part
        assert steps[step] == pytest.approx(undisturbed[step], rel=1e-3)
