"""Tasks on real processes, some of which are killed."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.errors import InputError
from tools.workers import local_workers


@dataclass(frozen=True)
class Job:
    """die: the first so many workers that take it are killed."""

    path: Path
    die: int = 0


def work(job: Job) -> str:
    """Counts its attempts in a file beside the one that it would make."""
    with open(job.path.with_suffix(".attempts"), "a") as file:
        file.write("x")
    if job.path.with_suffix(".attempts").stat().st_size <= job.die:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return job.path.name


def run(jobs: list[Job], workers: int = 2) -> list[str]:
    done: list[str] = []
    local_workers(workers).run(work, jobs, done.append, lambda: None)
    return sorted(done)


def test_every_task_is_done_once(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{k:02d}.tar") for k in range(12)]
    assert run(jobs) == [job.path.name for job in jobs]
    assert [job.path.with_suffix(".attempts").stat().st_size for job in jobs] == [1] * 12


def test_a_worker_that_dies_once_costs_nothing(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{k:02d}.tar", die=k == 4) for k in range(12)]
    assert run(jobs) == [job.path.name for job in jobs]


def test_a_task_that_kills_its_worker_twice_is_named(tmp_path: Path) -> None:
    jobs = [Job(tmp_path / f"{k:02d}.tar", die=3 * (k == 4)) for k in range(12)]
    with pytest.raises(InputError, match=r"^04\.tar: the worker that makes it died twice") as caught:
        run(jobs)
    assert "\n" not in str(caught.value)


def test_workers_that_die_over_different_tasks_are_not_started_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.workers.DEATHS", 2)
    jobs = [Job(tmp_path / f"{k:02d}.tar", die=1) for k in range(5)]
    with pytest.raises(InputError, match="workers died 2 times over different shards"):
        run(jobs, workers=1)


def test_an_error_of_a_task_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run([Job(tmp_path / "nowhere" / f"{k}.tar") for k in range(4)])
