"""A store of shards on 127.0.0.1 that fails, cuts off, flips, stalls as it is told to, and what its tests look at."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from conftest import ROOT

PIECE = 16 << 10  # bytes that a slow answer sends at once
FLOOD = 128 << 20


class Store(ThreadingHTTPServer):
    """Serves a folder. faults: by file name, what happens to its next requests, one each; requests: (name, first byte asked for)."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.folder, self.ranges = folder, True
        self.faults: dict[str, list[Fault]] = {}
        self.requests: list[tuple[str, int]] = []
        self.reached, self.go_on = threading.Event(), threading.Event()  # an answer that stalls says so, and waits
        self.flooded = 0  # bytes that clients took beyond the end of a file
        self.url = f"http://127.0.0.1:{self.server_address[1]}/some/shards"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed, or gave up, is no error of the store."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def asked(self, name: str) -> list[int]:
        """The first byte asked for, of each request for a file."""
        return [start for asked, start in self.requests if asked == name]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else head and body, written one after the other, wait for each other
    server: Store

    def do_GET(self) -> None:
        name = self.path.split("?")[0].removeprefix("/some/shards/")
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        self.server.requests.append((name, start))
        faults = self.server.faults.get(name)
        fault = faults.pop(0) if faults else whole
        path = self.server.folder / name
        if not path.is_file():
            fault = failing(404)
        body = path.read_bytes() if path.is_file() else b""
        start = start if self.server.ranges else 0
        try:
            fault(self, start, body[start:])
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def head(self, start: int, size: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + size - 1}/{start + size}")
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Not among what the tests look at on stderr."""


Fault = Callable[[Answer, int, bytes], None]  # the answer, where its body begins in the file, the body


def whole(answer: Answer, start: int, body: bytes) -> None:
    if start and not body:
        failing(416)(answer, start, body)
    else:
        answer.head(start, len(body))
        answer.wfile.write(body)


def failing(status: int) -> Fault:
    return partial(_fail, status)


def _fail(status: int, answer: Answer, start: int, body: bytes) -> None:
    answer.send_response(status)
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def in_circles(answer: Answer, start: int, body: bytes) -> None:
    """Sent on to the same place."""
    answer.send_response(302)
    answer.send_header("Location", answer.path)
    answer.send_header("Content-Length", "0")
    answer.end_headers()


def cut(answer: Answer, start: int, body: bytes) -> None:
    answer.head(start, len(body))
    answer.wfile.write(body[: len(body) // 2])
    answer.close_connection = True


def short(answer: Answer, start: int, body: bytes) -> None:
    """As if the file had 100 bytes less."""
    whole(answer, start, body[:-100])


def flip(answer: Answer, start: int, body: bytes) -> None:
    """One bit, which in an index is in the word jpg of the first sample."""
    at = body.index(b"jpg")
    whole(answer, start, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])


def slow(answer: Answer, start: int, body: bytes) -> None:
    answer.head(start, len(body))
    for at in range(0, len(body), PIECE):
        answer.wfile.write(body[at : at + PIECE])
        time.sleep(0.02)


def stall(answer: Answer, start: int, body: bytes) -> None:
    """Half of it, and the rest when told to go on."""
    answer.head(start, len(body))
    answer.wfile.write(body[: len(body) // 2])
    answer.server.reached.set()
    answer.server.go_on.wait(60)
    answer.wfile.write(body[len(body) // 2 :])


def flood(answer: Answer, start: int, body: bytes) -> None:
    """The file, and much behind it."""
    answer.head(start, len(body) + FLOOD)
    answer.wfile.write(body)
    for _ in range(FLOOD >> 20):
        answer.wfile.write(bytes(1 << 20))
        answer.server.flooded += 1 << 20


@contextmanager
def serving(folder: Path) -> Iterator[Store]:
    server = Store(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()


def command(code: str, store: Store, cache: Path, limit: int | None = None) -> list[str]:
    """A command that opens `remote` and runs `code`, in which `shards` are those of the training split, as a tool would."""
    lines = [
        "import sys; from pathlib import Path",
        "from pipeline.errors import one_line_errors; from pipeline.manifest import read_manifest; from pipeline.remote import RemoteShards",
        "with one_line_errors():",
        f"    remote = RemoteShards({store.url!r}, Path({str(cache)!r}), {limit}, tries=5, backoff=0.01)",
        "    shards = read_manifest(remote.open())[0].splits['train'].shards",
        *(f"    {line}" for line in code.splitlines()),
    ]
    return [sys.executable, "-c", "\n".join(lines)]


def in_process(code: str, store: Store, cache: Path, says: str | None = None) -> subprocess.Popen[str]:
    """Run `command` apart, and wait until it has printed the line `says`."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(command(code, store, cache), cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    if says is not None:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{says}\n", process.communicate()
    return process


def tars(cache: Path) -> list[str]:
    """Names of the tars in the cache, whole or on their way."""
    return sorted(path.name for path in cache.glob("*/*") if ".tar" in path.name)


def bytes_of_tars(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/*") if ".tar" in path.name)


def temporaries(cache: Path) -> list[Path]:
    return list(cache.rglob("*.tmp"))
