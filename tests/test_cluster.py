"""make_shards on a real Dask cluster of this machine: a worker, the scheduler or the command killed, and places that not all see."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, one_line, run_here, shard_files
from distributed import Client

from pipeline.errors import InputError
from tools.make_shards import main
from tools.workers import dask_workers

COMMAND = "tools/make_shards.py"
LIMIT = 60  # seconds that anything may take


def until(true: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait; for as long as `process` runs, where one is given."""
    end = time.monotonic() + LIMIT
    while not true():
        assert process is None or process.poll() is None, f"ended too early: {process.communicate()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


@contextmanager
def ended(*processes: subprocess.Popen[str]) -> Iterator[None]:
    """No process outlives the block."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()  # by its id, also when it is stopped
        for process in processes:
            process.communicate()


def start(*arguments: object, cwd: Path = ROOT, more: dict[str, str] | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(more or {})}
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class Cluster:
    """address, and the process, of a scheduler."""

    def __init__(self, file: Path) -> None:
        # --no-dashboard still takes its port
        places = ("--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0", "--scheduler-file", file)
        # Killed workers leave their folders behind, and are looked for: for 30 s, if one dies while it is being connected to.
        self._more = {"DASK_TEMPORARY_DIRECTORY": str(file.parent), "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "3s"}
        self.process, self._file = start("-m", "dask", "scheduler", "--no-dashboard", *places, more=self._more), file

    @property
    def address(self) -> str:
        until(lambda: self._file.exists() and self._file.read_text().endswith("}"), self.process)
        return str(json.loads(self._file.read_text())["address"])

    @contextmanager
    def workers(self, *processes: subprocess.Popen[str]) -> Iterator[Client]:
        """`processes` as the only workers of the scheduler. Without a nanny, which would bring them back: what is killed is to stay dead."""
        with ended(*processes), Client(self.address, timeout=LIMIT, set_as_default=False) as client:
            client.wait_for_workers(len(processes), timeout=LIMIT)
            yield client
            for process in processes:
                process.kill()
            until(lambda: not client.nthreads())

    def worker(self, cwd: Path = ROOT) -> subprocess.Popen[str]:
        return start("-m", "dask", "worker", self.address, "--nthreads", 1, "--no-nanny", "--no-dashboard", cwd=cwd, more=self._more)


@contextmanager
def scheduler(folder: Path) -> Iterator[Cluster]:
    cluster = Cluster(folder / "scheduler.json")
    with ended(cluster.process):
        yield cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with scheduler(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def address_of(client: Client, process: subprocess.Popen[str]) -> str:
    return next(address for address, pid in client.run(os.getpid).items() if pid == process.pid)


def has_work(client: Client, worker: str) -> bool:
    """A task, or the result of one that has not been fetched."""
    return bool(client.processing().get(worker) or client.has_what().get(worker))


def test_a_worker_is_killed_half_way(cluster: Cluster, archives: Path, made_shards: Path, tmp_path: Path) -> None:
    """It is stopped until the scheduler knows it to have some of the work, so that it surely takes some with it."""
    out, workers = tmp_path / "out", [cluster.worker() for _ in range(2)]
    with cluster.workers(*workers) as client:
        victim = address_of(client, workers[0])
        run = start(COMMAND, "--source", archives, "--out", out, "--shard-size", 8, "--dask", cluster.address)
        with ended(run):
            until(lambda: any(out.glob("*.tar")), run)
            workers[0].send_signal(signal.SIGSTOP)
            until(lambda: has_work(client, victim), run)
            workers[0].kill()
            output, _ = run.communicate(timeout=LIMIT)
            assert list(client.nthreads()) == [address_of(client, workers[1])]
    assert run.returncode == 0, output
    assert "2 threads of the Dask cluster" in output
    assert shard_files(out) == shard_files(made_shards)


def test_nobody_to_do_the_work(cluster: Cluster, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--source", archives, "--out", tmp_path / "out", "--dask"]
    with socket.socket() as unheard, monkeypatch.context() as impatient:
        impatient.setattr("tools.workers.PATIENCE", 0.5)
        unheard.bind(("127.0.0.1", 0))  # taken, and not listened to
        one_line(run_here(main, *command, f"tcp://127.0.0.1:{unheard.getsockname()[1]}"), "no Dask scheduler answers at", "dask scheduler")
    one_line(run_here(main, *command, cluster.address), "has no workers", f"dask worker {cluster.address}", "--nthreads 1")
    assert not (tmp_path / "out").exists()
    for address in ("nowhere", "127.0.0.1:port", "http://127.0.0.1:1", "tls://127.0.0.1:1"):
        with pytest.raises(InputError, match="no Dask scheduler answers at"), dask_workers(address):
            pass


def test_stopped_by_ctrl_c_then_the_scheduler_dies_and_this_machine_finishes(archives: Path, made_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["--source", archives, "--out", out, "--shard-size", 8]
    with scheduler(tmp_path) as own:
        worker = own.worker()
        with ended(worker), Client(own.address, timeout=LIMIT, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=LIMIT)
            address_of_worker = address_of(client, worker)
            for end, code, words in ((signal.SIGINT, 130, "stopped; finished shards are kept"), (signal.SIGKILL, 2, "the connection was lost")):
                before = len(list(out.glob("*.tar")))
                run = start(COMMAND, *command, "--dask", own.address)
                with ended(run):
                    until(lambda before=before: len(list(out.glob("*.tar"))) > before, run)  # type: ignore[misc]
                    worker.send_signal(signal.SIGSTOP)  # what it has to do will not be done
                    until(lambda: has_work(client, address_of_worker), run)
                    (run if end == signal.SIGINT else own.process).send_signal(end)
                    worker.send_signal(signal.SIGCONT)
                    output, _ = run.communicate(timeout=LIMIT)
                assert run.returncode == code, output
                assert words in output
                assert "Traceback" not in output
    assert not (out / "manifest.json").exists()
    finished = run_here(main, *command, "--workers", 1)
    assert finished.returncode == 0, finished.stderr
    assert shard_files(out) == shard_files(made_shards)


def test_a_worker_that_does_not_see_the_same_is_refused(cluster: Cluster, archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/self/cwd is another folder for each process, as a path may be on each machine."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "archives").symlink_to(archives)
    monkeypatch.chdir(here)
    command = ["--shard-size", 8, "--dask", cluster.address]
    seen = {"--source": archives, "--out": here / "out"}
    with cluster.workers(cluster.worker(here), cluster.worker(there)):
        for what, unseen in (("--source", "archives"), ("--out", "elsewhere")):
            places = {**seen, what: Path("/proc/self/cwd") / unseen}
            result = run_here(main, *command, *(word for pair in places.items() for word in pair))
            line = one_line(result, "Dask worker tcp://", "/proc/self/cwd")
            assert "under the same paths" in line
    assert not list(tmp_path.rglob("*.tar"))
    assert not list(tmp_path.rglob("manifest.json"))
