"""Rows of the conversion benchmark in a process of their own: `python -m tools.peer_conversions --rows NAME ...`, started by tools/bench_shards.py.

Runs in the peers' environment and imports nothing of pipeline. Its first line on stdout is {"ready": ...}, or {"missing": ...} where a library is
not installed; then each line of stdin is answered by one line:
    pass ROW          convert all pictures: {"pictures", "failed", "seconds", "cpu_seconds", "inside"}
    write ROW FOLDER  the same, each result written to FOLDER/NUMBER.jpg: {"failed": {NUMBER: reason}}
Pictures lie in memory, encoded, and results are dropped, so that no disk is measured. CPU-seconds are those of all threads of the process.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import signal
import sys
import tarfile
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO

from tools.peer_converters import PEERS, Conversion, Kind

ENDINGS = (".jpg", ".jpeg")
LIBRARIES = (
    *("numpy", "pillow", "torch", "torchvision", "img2dataset", "albumentations", "opencv-python-headless", "pyvips", "pyvips-binary"),
    *("numba", "turbojpeg"),
)
MISSING = 3  # exit code


def read_pictures(source: Path, count: int | None) -> list[bytes]:
    """The first `count` JPEGs by name, or all, of a folder or tar. Raises ValueError when there are none, OSError, tarfile.TarError."""
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in ENDINGS and path.is_file())
        found = [path.read_bytes() for path in paths[:count]]
    else:
        with tarfile.open(source) as tar:
            members = sorted((m for m in tar if m.isfile() and m.name.lower().endswith(ENDINGS)), key=lambda member: member.name)
            files = [tar.extractfile(member) for member in members[:count]]
            found = [file.read() for file in files if file is not None]
    if not found:
        raise ValueError("it holds no JPEGs")
    return found


def run(conversion: Conversion, pictures: list[bytes]) -> dict[str, Any]:
    """The answer to `pass`."""
    conversion.inside.clear()
    failed = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for picture in pictures:
        try:
            conversion.convert(picture)
        except Exception:  # each library has errors of its own; `write` tells the reasons
            failed += 1
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"pictures": len(pictures), "failed": failed, "seconds": wall, "cpu_seconds": cpu, "inside": dict(conversion.inside)}


def write(conversion: Conversion, pictures: list[bytes], folder: Path) -> dict[str, Any]:
    """The answer to `write`."""
    failed = {}
    for number, picture in enumerate(pictures):
        try:
            jpeg = conversion.convert(picture)
        except Exception as error:
            failed[str(number)] = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        (folder / f"{number:06d}.jpg").write_bytes(jpeg)
    return {"failed": failed}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def _stdout_to_ourselves() -> TextIO:
    """What was stdout, for our lines alone; whatever else a library prints goes to stderr."""
    ours = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return ours


def serve(kinds: dict[str, Kind]) -> int:
    """Answer for these rows until stdin ends; the exit code."""
    parser = argparse.ArgumentParser(description="Rows of the conversion benchmark; started by tools/bench_shards.py.")
    parser.add_argument("--rows", nargs="+", choices=kinds, required=True)
    parser.add_argument("--pictures", type=Path, required=True, help="tar or folder of JPEGs")
    parser.add_argument("--count", type=int, help="the first so many")
    given = parser.parse_args()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: do not outlive the benchmark
    warnings.simplefilter("ignore")
    out, pictures = _stdout_to_ourselves(), read_pictures(given.pictures, given.count)
    try:
        rows = {name: kinds[name].make(pictures) for name in given.rows}
    except (ImportError, OSError) as error:  # OSError: a binding is there, but not its library
        print(json.dumps({"missing": " ".join(str(error).split())}), file=out)
        return MISSING
    for conversion in rows.values():
        run(conversion, pictures)  # warms up
    print(json.dumps({"ready": True, "versions": _versions()}), file=out)
    for line in sys.stdin:
        what, name, *folder = line.split(maxsplit=2)
        answer = run(rows[name], pictures) if what == "pass" else write(rows[name], pictures, Path(folder[0].rstrip("\n")))
        print(json.dumps(answer), file=out)
    return 0


if __name__ == "__main__":
    sys.exit(serve(PEERS))
