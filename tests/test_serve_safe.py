"""Whatever is sent to the page is taken, or refused in one line."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops
from serving import JPEG, ask, drawn, encoded, refused, served
from serving import port as port
from serving import prepared as prepared

from model import serve_app
from model.serve_app import MOST
from model.serve_connection import Connection
from model.serve_upload import MAX_BYTES, MAX_SCANS, square_of

# --- pictures of any kind


def test_a_picture_is_resized_and_its_centre_taken() -> None:
    whole = drawn(301, 200)
    found = square_of(encoded(whole, "png"), 64)
    expected = np.asarray(whole.resize((96, 64), Image.Resampling.BICUBIC))[:, 16:80]
    assert found.shape == (64, 64, 3)
    assert np.abs(found.astype(int) - expected).max() <= 3
    assert np.array_equal(square_of(encoded(Image.fromarray(found), "png"), 64), found)  # stays as it is


KINDS: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
    "grey": (drawn().convert("L"), "png", {}),
    "grey and alpha": (drawn().convert("LA"), "png", {}),
    "palette": (drawn().quantize(200), "png", {}),
    "animation": (drawn().quantize(200), "gif", {"save_all": True, "append_images": [Image.new("RGB", (300, 200))]}),
    "webp": (drawn(), "webp", {"lossless": True}),
    "cmyk": (drawn().convert("CMYK"), "jpeg", {"quality": 95}),
    "progressive": (drawn(), "jpeg", {"quality": 95, "progressive": True}),
    "large": (drawn(1800, 1200), "jpeg", {"quality": 95}),
    "16 bits": (Image.fromarray(np.asarray(drawn().convert("L")).astype(np.uint16) << 8), "png", {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_picture_is_taken(name: str) -> None:
    picture, kind, settings = KINDS[name]
    found = square_of(encoded(picture, kind, **settings), 100).astype(int)
    like = drawn().convert("L") if "grey" in name or name == "16 bits" else drawn()
    expected = np.asarray(like.convert("RGB").resize((100, 100), Image.Resampling.BICUBIC, box=(50, 0, 250, 200)))
    assert np.abs(found - expected).mean() < 4


def test_cmyk_that_is_not_of_adobe_is_not_inverted() -> None:
    content = encoded(ImageChops.invert(drawn().convert("CMYK")), "jpeg", quality=95)
    start = content.index(b"\xff\xee")
    marked = content[start : start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]
    assert b"Adobe" in marked
    expected = square_of(encoded(drawn(), "png"), 100).astype(int)
    assert np.abs(square_of(content.replace(marked, b""), 100) - expected).mean() < 4


def test_one_bit_a_pixel() -> None:
    assert square_of(encoded(Image.new("1", (30, 20), 1), "png"), 16).min() == 255


def test_what_is_transparent_is_white() -> None:
    half = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 64, 32))
    found = square_of(encoded(half, "png"), 64)
    assert found[10, 10].tolist() == [255, 255, 255]
    assert found[50, 50].tolist() == [255, 0, 0]


STORED = {  # how a picture lies in a file with each EXIF orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_pictures_are_turned_upright(kind: str) -> None:
    expected = square_of(encoded(drawn(), "png"), 64).astype(int)
    for orientation, turn in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = drawn() if turn is None else drawn().transpose(turn)
        found = square_of(encoded(stored, kind, exif=exif, quality=95), 64)
        assert np.abs(found - expected).max() < 16, orientation
    assert np.abs(square_of(encoded(drawn(), "jpeg", quality=95, exif=b"Exif\0\0broken"), 64) - expected).max() < 16


# --- bad ones


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has so many pixels."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(255 - byte for byte in content[middle : middle + 40]) + content[middle + 40 :]


BAD = {
    "empty": (b"", 400, "empty"),
    "text": (b"<script>alert(1)</script>", 415, "not a JPEG, PNG, WebP or GIF"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a JPEG"),
    "another kind": (encoded(drawn(), "tiff"), 415, "not a JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a JPEG"),
    "cut short": (JPEG[: len(JPEG) // 2], 400, "cut short or damaged"),
    "cut short png": (encoded(drawn(), "png")[:-200], 400, "cut short or damaged"),
    "damaged": (damaged(encoded(drawn(), "png")), 400, "cut short or damaged"),
    "only a header": (JPEG[:20], 415, "not a JPEG"),
    "too many pixels": (png_that_claims(10_000, 5_001), 413, "more than 50 million pixels (10,000 x 5,001)"),
    "a bomb": (png_that_claims(60_000, 60_000), 413, "more than 50 million pixels"),
    "fewer than it claims": (png_that_claims(500, 500), 400, "cut short or damaged"),
    "many scans": (JPEG[:-2] + JPEG[JPEG.index(b"\xff\xda") : -2] * MAX_SCANS + JPEG[-2:], 400, "101 scans"),
    "too many bytes": (b"\xff" * (MAX_BYTES + 1), 413, "more than 20 MB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_upload_is_refused_in_one_line(port: int, name: str) -> None:
    content, status, words = BAD[name]
    refused(ask(port, "POST", "/answer?views=centre", content), status, words)


def test_uploads_are_counted_as_they_come(port: int) -> None:
    """Also one that does not say how long it is; the server answers and goes on."""
    piece = b"\xff" * 1_000_000
    refused(ask(port, "POST", "/answer", (piece for _ in range(22))), 413, "more than 20 MB")
    assert ask(port, "POST", "/answer", iter([JPEG[:100], JPEG[100:]]))[0] == 200


def test_other_questions_are_refused_in_one_line(port: int) -> None:
    refused(ask(port, "POST", "/answer?views=eleven", JPEG), 400, "ten or centre")
    refused(ask(port, "GET", "/answer"), 405)
    refused(ask(port, "GET", "/no<b>thing"), 404)
    refused(ask(port, "GET", "/../pyproject.toml"), 404)
    refused(ask(port, "OPTIONS", "/answer"), 405)


def test_only_its_own_page_may_ask(port: int) -> None:
    """Neither another's name for this machine, as in DNS rebinding, nor another's page."""
    for host in ("127.0.0.1:1", f"LocalHost:{port}", "[::1]:8000", "192.168.0.7"):
        assert ask(port, "GET", "/about", Host=host)[0] == 200, host
    for host in ("evil.example", f"127.0.0.1.evil.example:{port}", "localhost.evil.example", "", "localhost@evil.example", "2130706433"):
        refused(ask(port, "GET", "/", Host=host), 421, "another name")
        refused(ask(port, "POST", "/answer", JPEG, Host=host), 421, "another name")
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{port + 1}", f"http://127.0.0.1:{port}.evil.example"):
        refused(ask(port, "POST", "/answer", JPEG, Origin=origin), 403, "from elsewhere")
    assert ask(port, "POST", "/answer", JPEG, Origin=f"http://127.0.0.1:{port}")[0] == 200


def test_only_a_few_may_wait(port: int) -> None:
    """Those who send slowly have places too, which they leave when they go away."""
    head = f"POST /answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(JPEG)}\r\n\r\n".encode()
    slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(MOST)]
    for one in slow:
        one.sendall(head + JPEG[:100])
    _until(lambda: ask(port, "POST", "/answer", JPEG)[0] == 503)
    refused(ask(port, "POST", "/answer", JPEG), 503, "try again")
    slow[0].sendall(JPEG[100:])
    assert slow[0].recv(12) == b"HTTP/1.1 200"
    for one in slow:
        one.close()
    _until(lambda: ask(port, "POST", "/answer", JPEG)[0] == 200)


def _until(found: Any) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_nobody_is_waited_for_for_ever(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for a picture, nor for the head of a request, which takes a place of those that the server has."""
    monkeypatch.setattr(serve_app, "SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(b"POST /answer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\npart")
        assert slow.recv(12) == b"HTTP/1.1 408"
    monkeypatch.setattr(Connection, "patience", 0.2)
    with socket.create_connection(("127.0.0.1", port), timeout=30) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost")
        with contextlib.suppress(ConnectionResetError):
            assert slow.recv(1) == b""
    monkeypatch.undo()
    assert ask(port, "POST", "/answer", JPEG)[0] == 200


def test_a_fault_of_ours_is_not_told_to_others(prepared: Any) -> None:
    with served(replace(prepared[0], names=[]), {}) as port:  # no class has a name
        refused(ask(port, "POST", "/answer", JPEG), 500, "its log says why")
