from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, one_line, run_command, run_here
from PIL import Image

from pipeline.manifest import read_manifest
from pipeline.shards import ShardSet
from pipeline.tarshard import read_index, write_shard
from tools.check_shards import main


def check_shards(folder: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return run_here(main, "--shards", folder, *options)


def faults(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The faults of a run that found some, which it also counted."""
    found = [line.removeprefix("  fault: ") for line in result.stderr.splitlines() if line.startswith("  fault: ")]
    assert result.returncode == 1, result.stderr
    assert one_line(result).startswith(f"error: {len(found)} fault")
    return found


def encoded(mode: str = "RGB", size: int = 256, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 32, (size, size, *([3] if mode == "RGB" else [])), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "JPEG", **{"quality": 90, "subsampling": "4:2:0", "optimize": True, **options})
    return out.getvalue()


def rewrite(folder: Path, samples: list[tuple[str, bytes, int]], size: int = 256) -> Path:
    """Make the training split one shard of these samples, with right sums everywhere."""
    for path in folder.glob("train-*"):
        path.unlink()
    path = folder / "train-000000.tar"
    written = write_shard(path, samples)
    manifest = json.loads((folder / "manifest.json").read_text())
    shard = {"name": path.name, "samples": written.samples, "bytes": written.bytes, "sha256": written.sha256}
    manifest["splits"]["train"] = {"samples": written.samples, "shards": [shard]}
    manifest["settings"]["size"] = size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for name in ("pca.json", "mean.npy"):
        (folder / name).unlink()
    return path


def test_a_whole_folder(made_shards: Path) -> None:
    """As a user calls it."""
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in made_shards.iterdir()}
    result = run_command("tools/check_shards.py", "--shards", made_shards, "--workers", 2, "--decode")
    assert result.returncode == 0, result.stderr
    assert "fault" not in result.stderr + result.stdout
    manifest, _ = read_manifest(made_shards)
    parts = manifest.splits.values()
    count, samples = sum(len(part.shards) for part in parts), sum(part.samples for part in parts)
    assert f"{count} shards, {samples} samples" in result.stdout
    assert "GB/s on 2 threads" in result.stdout
    assert "is what its manifest says, and every picture decodes" in result.stdout
    assert "note" not in result.stdout
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in made_shards.iterdir()} == before


@pytest.mark.parametrize("options", [[], ["--decode", "--workers", "1"]])
def test_every_fault_has_its_line_and_only_one(shards: Path, options: list[str]) -> None:
    index = read_index(shards / "train-000001.idx")
    content = bytearray((shards / "train-000001.tar").read_bytes())
    content[int(index.jpeg_offset[3]) + 700] ^= 8
    (shards / "train-000001.tar").write_bytes(content)
    os.truncate(shards / "train-000003.tar", 5000)
    (shards / "val-000000.idx").unlink()
    (shards / "mean.npy").write_bytes(b"x")
    found = faults(check_shards(shards, *options))
    assert [Path(line.split(" ")[0].rstrip(":")).name for line in found] == ["train-000001.tar", "train-000003.tar", "val-000000.idx", "mean.npy"]
    assert f"{index.keys[3]} at offset {index.jpeg_offset[3]}" in found[0]
    assert "has 5,000 bytes" in found[1]


def test_pictures_that_are_wrong_with_right_sums_are_found_by_decoding_only(shards: Path) -> None:
    good = ShardSet(shards, "train").read(0)[0].tobytes()
    frame = good.index(b"\xff\xc0\x00\x11") + 5
    wrong = {
        "small": (encoded(size=128), 0, "128 x 128 pixels in 3 colours, not 256 x 256 in 3"),
        "grey": (encoded("L"), 0, "256 x 256 pixels in 1 colour"),
        "progressive": (encoded(progressive=True), 0, "not a baseline JPEG"),
        "full-colour": (encoded(subsampling="4:4:4"), 0, "not 2x2, 1x1, 1x1 (4:2:0)"),
        "huge": (good[:frame] + b"\xff\xdc\xff\xdc" + good[frame + 4 :], 0, "65500 x 65500"),
        "no-picture": (b"GIF89a" + bytes(900), 0, "no JPEG header"),
        "cut": (good[: len(good) // 2], 0, "cannot be decoded"),
        "no-end": (good[:-2] + bytes(2), 0, "cannot be decoded"),
        "half-zeros": (good[: len(good) // 2] + bytes(len(good) // 2), 0, "cannot be decoded"),
        "turned": (encoded(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"), 0, "EXIF"),
        "label": (good, 4, "label 4, but the manifest has 4 classes"),
        "both": (encoded("L"), 9, "in 1 colour, not 256 x 256 in 3, and label 9"),
    }
    samples = [(key, jpeg, label) for key, (jpeg, label, _) in wrong.items()]
    path = rewrite(shards, [("good-1", good, 3), *samples, ("good-2", good, 0)])
    index = read_index(path.with_suffix(".idx"))
    assert check_shards(shards).returncode == 0
    found = faults(check_shards(shards, "--decode", "--workers", 1))
    assert len(found) == len(wrong)
    for row, (line, (key, (_, _, words))) in enumerate(zip(found, wrong.items(), strict=True), start=1):
        assert line.startswith(f"{path}: sample {key} at offset {index.jpeg_offset[row]}: ")
        assert words in line


def test_a_sum_in_the_tar_that_was_wrong_from_the_start_is_found_by_decoding(shards: Path) -> None:
    """The manifest agrees with the tar; the sample's own CRC-32C does not."""
    good = ShardSet(shards, "train").read(0)[0].tobytes()
    path = rewrite(shards, [("a", good, 0), ("b", good, 1)])
    content = bytearray(path.read_bytes())
    content[int(read_index(path.with_suffix(".idx")).jpeg_offset[1]) + 300] ^= 1
    path.write_bytes(content)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["sha256"] = hashlib.sha256(content).hexdigest()
    (shards / "manifest.json").write_text(json.dumps(manifest))
    (line,) = faults(check_shards(shards, "--decode", "--workers", 1))
    assert "sample b" in line
    assert "CRC-32C" in line


def test_strange_files_are_noted_and_are_no_fault(shards: Path) -> None:
    for name in (".train-000001.tar.77.tmp", "train-000099.tar", "escape\x1b[2J", "README.md"):
        (shards / name).write_text("")
    (shards / "pca.json").unlink()
    (shards / "mean.npy").unlink()
    result = check_shards(shards)
    assert result.returncode == 0, result.stderr
    (note,) = [line for line in result.stdout.splitlines() if "not in the manifest" in line]
    assert note.endswith("'.train-000001.tar.77.tmp', 'escape\\x1b[2J', 'train-000099.tar'")
    assert "no colour statistics yet" in result.stdout
    for number in range(10):
        (shards / f"x{number}").mkdir()
    assert "'train-000099.tar', 'x0', 'x1' and 8 more" in check_shards(shards).stdout


def test_what_cannot_be_checked_at_all(tmp_path: Path, shards: Path) -> None:
    for folder, options, words in (
        (tmp_path / "none", [], "is not a folder"),
        (shards, ["--workers", 0], "--workers must be from 1"),
    ):
        result = check_shards(folder, *options)
        assert result.returncode == 2
        one_line(result, words)
    (shards / "manifest.json").write_text("{")
    result = check_shards(shards)
    assert result.returncode == 2
    one_line(result, "manifest.json")


def living(group: int) -> list[Path]:
    """/proc/PID of the processes of a group, but for those that have ended and wait for their parent to notice."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            state, _, of_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state != "Z":
                found.append(process)
    return found


def reads(path: Path) -> Callable[[int], bool]:
    """Whether a process of a group has the file open."""

    def is_open(group: int) -> bool:
        for process in living(group):
            with contextlib.suppress(OSError):
                if any(os.readlink(link) == str(path) for link in (process / "fd").iterdir()):
                    return True
        return False

    return is_open


def starts(path: Path) -> Callable[[int], bool]:
    """Whether a group has its first worker, beside the main process and the helper of multiprocessing."""
    return lambda group: len(living(group)) >= 3


def interrupt(folder: Path, stage: str, until: Callable[[int], bool], *options: str) -> subprocess.CompletedProcess[str]:
    """Run it, and press Ctrl-C (a signal to the whole group) when the bar of a stage has come, and then `until` says so of the group."""
    command = [sys.executable, "tools/check_shards.py", "--shards", str(folder), "--workers", "2", *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stderr is not None
        seen = b""
        while stage.encode() not in seen:
            more = process.stderr.read1(4096)  # type: ignore[attr-defined]
            assert more, seen
            seen += more
        while not until(process.pid):
            assert process.poll() is None
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, rest = process.communicate(timeout=120)  # a limit for what would never end
        finally:
            process.kill()
    for _ in range(1000):  # its last helper may still be ending
        if not living(process.pid):
            break
        time.sleep(0.02)
    assert not living(process.pid)
    return subprocess.CompletedProcess(command, process.returncode, out.decode(), (seen + rest).decode())


def test_ctrl_c_ends_the_sums(shards: Path) -> None:
    """In the middle of a shard of a terabyte, nearly all of it a hole, which would take many minutes."""
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["bytes"] = 1 << 40
    (shards / "manifest.json").write_text(json.dumps(manifest))
    os.truncate(shards / "train-000000.tar", 1 << 40)
    result = interrupt(shards, "sums:", reads(shards / "train-000000.tar"))
    assert result.returncode == 130
    assert "stopped by Ctrl-C" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("moment", [starts, reads])
def test_ctrl_c_ends_the_decoding_and_its_processes(shards: Path, moment: Callable[[Path], Callable[[int], bool]]) -> None:
    """Pictures of one grey, small to store and slow to decode."""
    out = io.BytesIO()
    Image.new("RGB", (1024, 1024), (90, 90, 90)).save(out, "JPEG", quality=90, subsampling="4:2:0", optimize=True)
    rewrite(shards, [(f"k{i}", out.getvalue(), 0) for i in range(3000)], size=1024)
    result = interrupt(shards, "pictures:", moment(shards / "train-000000.tar"), "--decode")
    assert result.returncode == 130
    assert "stopped by Ctrl-C" in result.stderr
    assert "Traceback" not in result.stderr
