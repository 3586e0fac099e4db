"""JPEG -> YUV 4:2:0 planes -> windows: the very pixels that libjpeg, and so DALI and Pillow, give."""

from __future__ import annotations

import ctypes
import io
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from PIL import Image, ImageDraw

from pipeline import turbojpeg_planes
from pipeline.errors import InputError
from pipeline.planes import PIXELS, cut_planes, rgb_of_planes
from pipeline.turbojpeg_planes import BadPicture, check_planes, decode_planes

KINDS = ("noise", "gradient", "saturated", "text")


def drawn(kind: str, size: int, seed: int) -> Image.Image:
    """A picture that is hard for upsampling (edges of colour), for conversion (all limits) or for neither."""
    rng = np.random.default_rng(seed)
    if kind == "noise":
        return Image.fromarray(rng.integers(0, 256, (size, size, 3), dtype=np.uint8))
    if kind == "gradient":
        ramp = np.linspace(0, 255, size)
        corners = rng.uniform(-1, 1, (3, 2))
        planes = [(128 + a * (ramp[:, None] - 128) + b * (ramp[None] - 128)).clip(0, 255) for a, b in corners]
        return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))
    if kind == "saturated":
        blocks = 255 * rng.integers(0, 2, (-(-size // 5), -(-size // 5), 3), dtype=np.uint8)
        return Image.fromarray(np.ascontiguousarray(blocks.repeat(5, 0).repeat(5, 1)[:size, :size]))
    picture = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(size // 2):
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        draw.text(tuple(rng.integers(-8, size, 2).tolist()), "Wq8&", fill=colour)
    return picture


def encoded(picture: Image.Image, quality: int = 90, **options: object) -> np.ndarray:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", **{"quality": quality, "subsampling": "4:2:0", "optimize": True, **options})
    return np.frombuffer(buffer.getvalue(), np.uint8)


def planes_of(jpeg: np.ndarray, size: int) -> np.ndarray:
    out = np.full(size * size * 3 // 2, 7, np.uint8)
    decode_planes(jpeg, out, size)
    return out


def by_pillow(jpeg: np.ndarray) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB"))


def by_turbojpeg(jpeg: np.ndarray, size: int) -> np.ndarray:
    """TurboJPEG's own RGB, of the library that gives us the planes."""
    library, out, accurate = turbojpeg_planes._library(), np.empty((size, size, 3), np.uint8), 4096
    number, pointer = ctypes.c_int, ctypes.c_void_p
    library.tjDecompress2.argtypes = [pointer, pointer, ctypes.c_ulong, pointer, number, number, number, number, number]
    handle = library.tjInitDecompress()
    assert library.tjDecompress2(handle, jpeg.ctypes.data, jpeg.size, out.ctypes.data, size, 0, size, 0, accurate) == 0
    library.tjDestroy(handle)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_planes_give_the_pixels_of_pillow_and_of_turbojpeg(kind: str) -> None:
    for size, quality, seed in product((16, 34, 50, 96, 224, 256), (25, 75, 90, 100), range(3)):
        jpeg = encoded(drawn(kind, size, seed), quality)
        rgb = rgb_of_planes(planes_of(jpeg, size)[None], size)[0]
        assert np.array_equal(rgb, by_pillow(jpeg)), (size, quality, seed)
        assert np.array_equal(rgb, by_turbojpeg(jpeg, size)), (size, quality, seed)


def test_many_threads_decode_at_once() -> None:
    size = 64
    jpegs = [encoded(drawn(KINDS[n % 4], size, n)) for n in range(400)]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda jpeg: planes_of(jpeg, size), jpegs))
    for jpeg, planes in zip(jpegs, together, strict=True):
        assert np.array_equal(rgb_of_planes(planes[None], size)[0], by_pillow(jpeg))


def windows_of(rgb: np.ndarray, slots: np.ndarray, y: np.ndarray, x: np.ndarray, flip: np.ndarray, crop: int) -> np.ndarray:
    """The plain form of the cut."""
    cut = [
        rgb[s, top : top + crop, left : left + crop][:, :: -1 if mirrored else 1] for s, top, left, mirrored in zip(slots, y, x, flip, strict=True)
    ]
    return np.stack(cut)


@pytest.mark.parametrize("crop", [224, 227, 255, 256])
def test_windows_at_corners_and_around_them(crop: int) -> None:
    size = 256
    store = np.random.default_rng(crop).integers(0, 256, (3, size * size * 3 // 2), dtype=np.uint8)  # all values, also those of no JPEG
    ends = sorted({0, min(1, size - crop), (size - crop) // 2, max(size - crop - 1, 0), size - crop})
    places = np.array(list(product(ends, ends, (0, 1))))
    y, x, flip = places[:, 0].copy(), places[:, 1].copy(), places[:, 2].astype(bool)
    slots = np.arange(len(places)) % 3
    out = np.zeros((len(places), crop, crop, 3), np.uint8)
    cut_planes(store, slots, y, x, flip, out)
    assert np.array_equal(out, windows_of(rgb_of_planes(store, size), slots, y, x, flip, crop))


@pytest.mark.parametrize("size", [16, 50, 70])
def test_windows_of_every_width_written_where_they_are_asked_for(size: int) -> None:
    rng = np.random.default_rng(size)
    store = rng.integers(0, 256, (5, size * size * 3 // 2), dtype=np.uint8)
    rgb, count = rgb_of_planes(store, size), 8
    for crop in {1, 2, 3, PIXELS - 1, PIXELS, PIXELS + 1, 2 * PIXELS - 1, 2 * PIXELS, size - 1, size}:
        if crop > size:
            continue
        slots, y, x = (rng.integers(0, end, count) for end in (5, size - crop + 1, size - crop + 1))
        flip, rows = rng.integers(0, 2, count).astype(bool), rng.permutation(count + 2)[:count]
        out = np.full((count + 2, crop, crop, 3), 7, np.uint8)
        cut_planes(store, slots, y, x, flip, out, rows)
        assert np.array_equal(out[rows], windows_of(rgb, slots, y, x, flip, crop)), crop
        others = np.setdiff1d(np.arange(count + 2), rows)
        assert (out[others] == 7).all(), f"wrote beside the rows asked for, crop {crop}"


@pytest.mark.parametrize(("slot", "top", "left"), [(2, 0, 0), (-1, 0, 0), (0, 6, 0), (0, 0, -1), (0, 0, 6)])
def test_a_window_outside_its_picture_is_not_cut(slot: int, top: int, left: int) -> None:
    store, out = np.zeros((2, 32 * 32 * 3 // 2), np.uint8), np.zeros((1, 27, 27, 3), np.uint8)
    with pytest.raises(AssertionError, match="is not within"):
        cut_planes(store, np.array([slot]), np.array([top]), np.array([left]), np.array([False]), out)


def in_rgb(jpeg: np.ndarray) -> np.ndarray:
    """The same file with Adobe's mark, instead of JFIF's, that its components are R, G and B."""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
    return np.frombuffer(b"\xff\xd8" + adobe + jpeg.tobytes()[20:], np.uint8)


def test_other_pictures_are_refused_and_nothing_is_written() -> None:
    size = 64
    picture = drawn("gradient", size, 0)
    good = encoded(picture)
    assert good[2:4].tolist() == [0xFF, 0xE0]
    assert good[4:6].tolist() == [0, 16], "JFIF segment expected first"
    cases = {
        "66 x 66": encoded(drawn("gradient", 66, 0)),
        "32 x 32": encoded(drawn("gradient", 32, 0)),
        "1 colour": encoded(picture.convert("L")),
        "4 colours": encoded(picture.convert("CMYK"), subsampling="4:4:4"),
        "not 2x2, 1x1, 1x1": encoded(picture, subsampling="4:2:2"),
        "1x1, 1x1, 1x1": encoded(picture, subsampling="4:4:4"),
        "baseline": encoded(picture, progressive=True),
        "not Y, Cb, Cr": in_rgb(good),
        "no JPEG header": np.zeros(0, np.uint8),
        "header that can be read": np.frombuffer(b"GIF89a" + bytes(100), np.uint8),
    }
    for why, jpeg in cases.items():
        out = np.full(size * size * 3 // 2, 7, np.uint8)
        with pytest.raises(BadPicture, match=why):
            decode_planes(jpeg, out, size)
        assert (out == 7).all(), why
    assert np.array_equal(by_pillow(in_rgb(good))[..., 0], planes_of(good, size)[: size * size].reshape(size, size)), "in_rgb is what it says"


def without(jpeg: np.ndarray, marker: int) -> np.ndarray:
    """The file less its segments of a kind."""
    data, kept, at = jpeg.tobytes(), b"\xff\xd8", 2
    while data[at + 1] != 0xDA:
        end = at + 2 + (data[at + 2] << 8 | data[at + 3])
        kept += b"" if data[at + 1] == marker else data[at:end]
        at = end
    return np.frombuffer(kept + data[at:], np.uint8)


@pytest.mark.parametrize("marker", [0xC4, 0xDB])  # tables of Huffman codes, of quantisation
def test_no_picture_borrows_the_tables_of_the_one_before(marker: int) -> None:
    jpeg = encoded(drawn("text", 64, 0))
    assert np.array_equal(without(jpeg, 0xFE), jpeg), "there is no comment to take away"
    bare, out = without(jpeg, marker), np.zeros(64 * 64 * 3 // 2, np.uint8)
    decode_planes(jpeg, out, 64)
    with pytest.raises(BadPicture):
        decode_planes(bare, out, 64)


def test_what_libjpeg_only_warns_of_is_refused() -> None:
    jpeg = encoded(drawn("noise", 64, 0))
    ended, restarted = jpeg.copy(), jpeg.copy()
    ended[len(jpeg) // 2 : len(jpeg) // 2 + 2] = 0xFF, 0xD9
    restarted[len(jpeg) // 2 : len(jpeg) // 2 + 2] = 0xFF, 0xD3
    for damaged in (jpeg[: len(jpeg) // 2], jpeg[:-2], ended, restarted):
        with pytest.raises(BadPicture):
            planes_of(damaged, 64)
    assert np.array_equal(rgb_of_planes(planes_of(jpeg, 64)[None], 64)[0], by_pillow(jpeg)), "a good one decodes after it"


def test_a_damaged_picture_is_refused_or_decoded_as_pillow_does() -> None:
    rng, size, refused, equal = np.random.default_rng(3), 48, 0, 0
    for seed in range(600):
        jpeg = encoded(drawn(KINDS[seed % 4], size, seed)).copy()
        for _ in range(rng.integers(1, 4)):
            jpeg[rng.integers(2, len(jpeg))] ^= np.uint8(1 << rng.integers(0, 8))
        if seed % 5 == 0:
            jpeg = jpeg[: rng.integers(0, len(jpeg))].copy()
        try:
            planes = planes_of(jpeg, size)
        except BadPicture:
            refused += 1
            continue
        assert np.array_equal(rgb_of_planes(planes[None], size)[0], by_pillow(jpeg)), seed
        equal += 1
    assert refused > 200, refused
    assert equal > 30, equal


@pytest.mark.parametrize("size", [16, 50, 256])
def test_sizes_that_can_be_kept(size: int) -> None:
    check_planes(size)


@pytest.mark.parametrize("size", [255, 14, 2])
def test_sizes_that_cannot(size: int) -> None:
    with pytest.raises(InputError, match=f"^pictures of {size} pixels.*must be even, 16 or more"):
        check_planes(size)


def test_a_library_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "turbojpeg.py").touch()
    (tmp_path / "turbojpeg.libs").mkdir()
    (tmp_path / "turbojpeg.libs" / "libturbojpeg-1.so.0").write_text("no library")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    code = (
        "from pipeline.turbojpeg_planes import check_planes; from pipeline.errors import one_line_errors\nwith one_line_errors(): check_planes(256)"
    )
    result = run_command("-c", code)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("\n") == 1, result.stderr
    for words in (str(tmp_path), "pip install turbojpeg==0.0.2"):
        assert words in result.stderr
