"""make_shards killed, starved of disk and workers, and started twice: nothing is lost, and the end is the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import namedtuple
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_line, run_command, run_here, shard_files

from tools import compute_pca, make_shards


def make(source: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """The tool in this process, with one worker."""
    return run_here(make_shards.main, "--source", source, "--out", out, "--workers", 1, *more)


@pytest.mark.parametrize("seed", range(50 if os.environ.get("SOAK") else 1))
def test_killed_and_started_again(archives: Path, made_shards: Path, tmp_path: Path, seed: int) -> None:
    """SIGKILL three times, as early as can be and at a seeded moment; nothing half-written is taken for whole, and the end is the same bytes."""
    rng, out = np.random.default_rng(seed), tmp_path / "out"
    command = [sys.executable, "tools/make_shards.py", "--source", str(archives), "--out", str(out), "--shard-size", "8", "--workers", "2"]
    kills, most = 0, 99 if os.environ.get("SOAK") else 3
    while kills < most and not (out / "manifest.json").exists():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        deadline = time.time() + rng.uniform(0.5, 2.5) + kills
        begun = [".progress.jsonl", "*.tar"][kills : kills + 1]  # first as soon as it has begun, then with a shard made, then at any time
        while process.poll() is None and time.time() < deadline + 60 * len(begun) and not any(any(out.glob(name)) for name in begun):
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        for path in out.glob("*.tar"):
            with tarfile.open(path) as tar:
                assert len(tar.getmembers()) == 16 or path.name.startswith("val"), f"{path} is half-written"
        if not (out / "manifest.json").exists() and any(out.glob("*.tar")):
            one_line(run_here(compute_pca.main, "--shards", out), "was stopped before its end")
    assert kills > 0
    last = make(archives, out, "--shard-size", 8)
    assert last.returncode == 0, last.stderr
    assert shard_files(out) == shard_files(made_shards)


def test_an_unfinished_folder_is_not_mixed_with_other_settings(archives: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".progress.jsonl").write_text(json.dumps({"settings": {"size": 64}}) + "\n")
    one_line(make(archives, out), "begun with other settings")
    (out / ".progress.jsonl").unlink()
    (out / "train-000000.tar").write_bytes(b"somebody's")
    one_line(make(archives, out), "did not begin")
    assert (out / "train-000000.tar").read_bytes() == b"somebody's"


@pytest.mark.parametrize("limit", [100, 30_000, 400_000])
def test_full_disk(archives: Path, made_shards: Path, tmp_path: Path, limit: int) -> None:
    """A file-size limit is the full disk that a test can have without root: the same path, errno EFBIG. 100 bytes are too few for the
    first line of the progress, 30,000 for a shard, 400,000 for the pixel sums."""
    script = (
        "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    result = run_command("-c", script, "tools/make_shards.py", "--source", archives, "--out", tmp_path / "out", "--shard-size", 8)
    one_line(result, "free space")
    assert not (tmp_path / "out" / "manifest.json").exists()
    again = make(archives, tmp_path / "out", "--shard-size", 8)
    assert again.returncode == 0, again.stderr
    assert shard_files(tmp_path / "out") == shard_files(made_shards)


def spawned(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> list[int]:
    """Its worker processes; none where one of its children ends while they are looked at."""
    with suppress(FileNotFoundError, ProcessLookupError):
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return []


def test_a_killed_worker_is_replaced(archives: Path, made_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "tools/make_shards.py", "--source", str(archives), "--out", str(out), "--shard-size", "8", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    workers: list[int] = []
    while process.poll() is None and not workers:
        workers = spawned(process)
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert shard_files(out) == shard_files(made_shards)


FILLED = """
import json, subprocess, sys, time
from pathlib import Path
out, command = Path(sys.argv[1]), sys.argv[2:]
process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
while process.poll() is None and not any((out / "shards").glob("train-*.tar")):
    time.sleep(0.001)
try:
    (out / "filler").write_bytes(bytes(80 << 20))
except OSError:
    pass
_, said = process.communicate()
(out / "filler").unlink()
again = subprocess.run(command, capture_output=True, text=True)
print(json.dumps({"code": process.returncode, "said": said, "again": again.returncode, "then": again.stderr}))
sys.stdout.flush()
subprocess.run(["cp", "-r", str(out / "shards"), str(out.parent / "copy")], check=True)
"""
SMALL_DISK = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=80m none "$0" && exec "$@"']


@pytest.mark.skipif(subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0, reason="this system lets nobody mount a small disk")
def test_a_disk_that_others_fill_meanwhile(archives: Path, tmp_path: Path) -> None:
    """One line; and when there is room again, the same command goes on to the same bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    made = ["tools/make_shards.py", "--source", str(archives), "--shard-size", "2", "--workers", "2", "--out"]
    words = [*SMALL_DISK, str(disk), sys.executable, "-c", FILLED, str(disk), sys.executable, *made, str(disk / "shards")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["code"] == 2, said
    errors = [line for line in said["said"].splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "No space left on device" in errors[0]
    assert "Traceback" not in said["said"]
    assert said["again"] == 0, said["then"]
    assert make(archives, tmp_path / "whole", "--shard-size", 2).returncode == 0
    assert shard_files(tmp_path / "copy") == shard_files(tmp_path / "whole")


def test_too_little_space_is_said_before_the_work(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(1, 1, 60_000_000))
    one_line(make(archives, tmp_path / "out"), "are needed and 60.0 MB are free", "free space")


def test_two_runs_into_one_folder(archives: Path, made_shards: Path, tmp_path: Path) -> None:
    """The second is refused while the first is at work, and the first is not disturbed."""
    out = tmp_path / "out"
    command = [sys.executable, "tools/make_shards.py", "--source", str(archives), "--out", str(out), "--shard-size", "8", "--workers", "1"]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    mark = out / ".progress.jsonl"
    while first.poll() is None and not (mark.exists() and mark.read_bytes().endswith(b"\n")):
        time.sleep(0.002)
    os.kill(first.pid, signal.SIGSTOP)  # at work for as long as the second needs
    second = make(archives, out, "--shard-size", 8)
    os.kill(first.pid, signal.SIGCONT)
    output, _ = first.communicate(timeout=120)
    one_line(second, "another make_shards is writing", "choose another --out")
    assert first.returncode == 0, output
    assert shard_files(out) == shard_files(made_shards)


def test_no_worker_outlives_a_killed_command(archives: Path, tmp_path: Path) -> None:
    """Killed as soon as there is a worker, and later."""
    command = [sys.executable, "tools/make_shards.py", "--source", str(archives), "--shard-size", "8", "--workers", "2", "--out"]
    for pause in (0.0, 0.3):
        process = subprocess.Popen([*command, str(tmp_path / str(pause))], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        workers: list[Path] = []
        while process.poll() is None and not workers:
            workers = [Path(f"/proc/{pid}") for pid in spawned(process)]
        assert workers
        time.sleep(pause)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 60
        while any(worker.exists() for worker in workers) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not any(worker.exists() for worker in workers)
