"""The page's server on a thread of the tests, and what is asked of it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import serve
from model.serve_answer import Answerer
from model.serve_app import make_app
from model.serve_guard import POLICY

Reply = tuple[int, dict[str, Any]]


def encoded(picture: Image.Image, kind: str, **settings: Any) -> bytes:
    content = io.BytesIO()
    picture.save(content, kind, **settings)
    return content.getvalue()


def drawn(width: int = 300, height: int = 200) -> Image.Image:
    """Smooth, and different in every corner."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack((255 * x / width, 255 * y / height, 128 + 0 * x), axis=2).astype(np.uint8))


JPEG = encoded(drawn(), "jpeg")


def arguments(run: Path, *more: object) -> list[str]:
    return ["--checkpoint", str(run / "checkpoints" / "best"), *map(str, more)]


@pytest.fixture(scope="module")
def prepared(finished: Path) -> Iterator[tuple[Answerer, dict[str, Any]]]:
    """Who answers for the toy's net; its shards are found by the run's record."""
    threads = torch.get_num_threads()
    yield serve.prepare(serve.read_arguments(arguments(finished)))
    torch.set_num_threads(threads)


@contextmanager
def served(answerer: Answerer, about: dict[str, Any]) -> Iterator[int]:
    """The port of a server on a thread of this process."""
    with serve.listen("127.0.0.1", 0) as listening:
        server = serve.server_of(make_app(answerer, about, "127.0.0.1"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(prepared: tuple[Answerer, dict[str, Any]]) -> Iterator[int]:
    with served(*prepared) as found:
        yield found


def ask(port: int, method: str, path: str, body: Any = None, **headers: str) -> Reply:
    """Status and JSON of a reply, which carries the policy whatever it is."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    content = reply.read()
    connection.close()
    assert reply.headers["Content-Security-Policy"] == POLICY
    assert reply.headers["X-Content-Type-Options"] == "nosniff"
    return reply.status, json.loads(content) if reply.headers["Content-Type"] == "application/json" else {"text": content.decode()}


def refused(reply: Reply, status: int, *words: str) -> None:
    """A refusal in one line of plain text."""
    found, answer = reply
    assert found == status, answer
    assert list(answer) == ["error"]
    line = answer["error"]
    assert line.isprintable(), line
    assert len(line) < 200
    assert not {"<", ">"} & set(line)
    assert "Traceback" not in line
    assert all(word in line for word in words), line
