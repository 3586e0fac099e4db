"""A toy ILSVRC, drawn in the official archives, and shards made from it by the tools: once for all tests."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ranks import on_ranks as on_ranks

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # the tests are of the CPU's bits; GPU checks are benchmarks

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored, also by the processes that tests press Ctrl-C at

ROOT = Path(__file__).resolve().parents[1]
TRAIN, VAL, CLASSES = 12, 5, 4  # pictures a class

Runner = Callable[..., "subprocess.CompletedProcess[str]"]


def run_command(*arguments: object, cwd: Path = ROOT, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS` as a user would, and keep what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("IMAGENET_DIR", None)
    command = [sys.executable, *(str(argument) for argument in arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False)


def run_here(main: Callable[[list[str]], int], *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command's `main` in this process, which has imported already what a new one would for seconds: its exit code, and what it prints."""
    words, out, err = [str(argument) for argument in arguments], io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        signal.signal(signal.SIGTERM, before)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official archives of a toy ILSVRC: 4 classes, 12 training and 5 validation pictures each."""
    from tools.make_lookalike import make_lookalike

    out = tmp_path_factory.mktemp("archives")
    make_lookalike(out, CLASSES, TRAIN, VAL, seed=1, side=96, workers=2)
    return out


@pytest.fixture(scope="session")
def made_shards(archives: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the toy, 8 samples each, with their colour statistics, made by two workers; not to be changed by a test."""
    out = tmp_path_factory.mktemp("shards") / "shards"
    made = run_command("tools/make_shards.py", "--source", archives, "--out", out, "--shard-size", 8, "--workers", 2)
    assert made.returncode == 0, made.stderr
    computed = run_command("tools/compute_pca.py", "--shards", out, "--decode")
    assert computed.returncode == 0, computed.stderr
    return out


@pytest.fixture(scope="session")
def finished(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on one device, and what it printed in said.txt; not to be changed by a test."""
    from training import TINY

    run = tmp_path_factory.mktemp("finished") / "run"
    result = run_command("-m", "model.train", "--shards", made_shards, "--run", run, *TINY, "--set", "train.epochs=2")
    assert result.returncode == 0, result.stderr
    (run / "said.txt").write_text(result.stdout)
    return run


@pytest.fixture(scope="session")
def finished_pair(made_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on two ranks with a column each."""
    from training import train

    run = tmp_path_factory.mktemp("pair") / "run"
    result = train(made_shards, run, "--columns", 2)
    assert result.returncode == 0, result.stderr
    (run / "said.txt").write_text(result.stdout)
    return run


@pytest.fixture
def shards(made_shards: Path, tmp_path: Path) -> Path:
    """A copy of the toy's shards that a test may damage."""
    return Path(shutil.copytree(made_shards, tmp_path / "shards"))


def reseal(shards: Path, name: str, change: Callable[[list[tuple[str, bytes, int]]], object]) -> None:
    """Write a shard again after `change` of its list of (key, JPEG, label), with all sums made right: damage that only a decoder finds."""
    from pipeline.tarshard import write_shard

    with tarfile.open(shards / name) as tar:
        read = [(member.name[:-4], tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
    samples = [(key, jpeg, int(label)) for (key, jpeg), (_, label) in zip(read[::2], read[1::2], strict=True)]
    change(samples)
    written = write_shard(shards / name, samples)
    manifest, statistics = (json.loads((shards / file).read_text()) for file in ("manifest.json", "pca.json"))
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            if shard["name"] == name:
                shard.update(samples=written.samples, bytes=written.bytes, sha256=written.sha256)
        split["samples"] = sum(shard["samples"] for shard in split["shards"])
    (shards / "manifest.json").write_text(json.dumps(manifest))
    statistics["manifest_sha256"] = hashlib.sha256((shards / "manifest.json").read_bytes()).hexdigest()
    (shards / "pca.json").write_text(json.dumps(statistics))


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def shard_files(folder: Path) -> dict[str, str]:
    """Of what make_shards writes: all but compute_pca's two files."""
    return {name: digest for name, digest in files_of(folder).items() if name not in ("pca.json", "mean.npy")}


def torchvision_loads() -> bool:
    """Whether it does here: beside torch's CPU build only where a test has shown it what it misses."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


def one_line(result: subprocess.CompletedProcess[str], *words: str) -> str:
    """The run failed with one line on stderr, beginning "error:", in which all `words` are; that line."""
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.returncode not in (0, None), f"succeeded: {result.stdout}"
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr, result.stderr
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    return lines[0]
