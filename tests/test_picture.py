from __future__ import annotations

import gzip
import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import run_command
from PIL import Image, ImageFile

from pipeline.jpeg_header import read_frame
from pipeline.manifest import Settings
from tools.picture import Converted, PictureError, convert, plain_pixels

ImageFile.MAXBLOCK = 1 << 24  # bytes: Pillow cannot write noise as progressive JPEG with less


def settings(**given: object) -> Settings:
    return Settings.model_validate({"size": 256, "quality": 95, "shard_size": 1, "seed": 0, "decode": "scaled", **given})


def made(data: bytes, **given: object) -> Converted:
    return convert(data, settings(**given))


def scene(width: int, height: int) -> np.ndarray:
    """A smooth (height, width, 3) uint8 picture whose halves differ in colour."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    red = 128 + 100 * np.sin(5 * x)
    return np.stack((red, 128 + 100 * np.cos(4 * y), 200 - 100 * x), axis=2).astype(np.uint8)


def encode(picture: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **options)
    return out.getvalue()


def expected(pixels: np.ndarray, size: int = 256) -> np.ndarray:
    """Shorter side to `size` with Pillow's bicubic, central square, as a float array."""
    picture = Image.fromarray(pixels)
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + short, top + short))).astype(float)


def opened(jpeg: bytes) -> Image.Image:
    picture = Image.open(io.BytesIO(jpeg))
    picture.load()
    return picture


def difference(jpeg: bytes, wanted: np.ndarray) -> float:
    return float(np.abs(np.asarray(opened(jpeg)).astype(float) - wanted).mean())


def test_form_of_the_output() -> None:
    source = encode(Image.fromarray(scene(500, 375)), "JPEG", quality=95, exif=exif(6), comment=b"hello", progressive=True)
    picture = opened(made(source, quality=90).jpeg)
    assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (256, 256))
    assert "exif" not in picture.info
    assert "comment" not in picture.info
    assert "progressive" not in picture.info
    assert picture.layer[0][1:3] == (2, 2)  # type: ignore[attr-defined]  # 4:2:0


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def with_exif(jpeg: bytes, payload: bytes) -> bytes:
    """The JPEG with an APP1 segment right behind its first marker."""
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload + jpeg[2:]


def without_adobe(jpeg: bytes) -> bytes:
    """The JPEG without its APP14 segment, of which four colours are then what their numbers say, not inverted."""
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + struct.unpack(">H", jpeg[at + 2 : at + 4])[0] :]


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """(h, w, 3) uint8 as RGB PNG of 16 bits, which Pillow cannot write."""
    high = (pixels.astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in high)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def jpeg_of(pixels: np.ndarray, **options: object) -> bytes:
    return encode(Image.fromarray(pixels), "JPEG", quality=98, **options)


PIXELS = scene(500, 375)
GREY = np.repeat(PIXELS[:, :, :1], 3, axis=2)
CMYK = Image.fromarray(PIXELS).convert("CMYK")
GIF = Image.fromarray(PIXELS).convert("L")
ODD = {
    "jpeg": (jpeg_of(PIXELS, subsampling=0), PIXELS),
    "png named JPEG": (encode(Image.fromarray(PIXELS), "PNG"), PIXELS),
    "png with alpha": (encode(Image.fromarray(np.dstack((PIXELS, PIXELS[:, :, 0]))), "PNG"), PIXELS),
    "cmyk, inverted as Adobe has it": (encode(CMYK, "JPEG", quality=98), PIXELS),
    "cmyk, not inverted": (without_adobe(encode(Image.fromarray(255 - np.asarray(CMYK), "CMYK"), "JPEG", quality=98)), PIXELS),
    "grey": (jpeg_of(PIXELS[:, :, 0]), GREY),
    "16-bit grey": (encode(Image.fromarray(PIXELS[:, :, 0].astype(np.uint16) * 257), "PNG"), GREY),
    "16-bit colour": (png_of_16_bits(PIXELS), PIXELS),
    "rotated by EXIF only": (jpeg_of(PIXELS, exif=exif(6)), PIXELS),
    "broken EXIF": (with_exif(jpeg_of(PIXELS), b"Exif\0\0II*\0\xff\xff\xff\xff"), PIXELS),
    "broken XMP": (with_exif(jpeg_of(PIXELS), b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta \xff\xfe\xc3("), PIXELS),
    "progressive": (jpeg_of(PIXELS, progressive=True), PIXELS),
    "wrapped in gzip": (gzip.compress(jpeg_of(PIXELS)), PIXELS),
    "portrait": (jpeg_of(scene(300, 801)), scene(300, 801)),
    "very wide": (jpeg_of(scene(3000, 30)), scene(3000, 30)),
    "as wide as they come": (jpeg_of(scene(20_000, 30)), scene(20_000, 30)),
    "one pixel": (encode(Image.fromarray(scene(1, 1)), "PNG"), scene(1, 1)),
    "one pixel, jpeg": (jpeg_of(scene(1, 1)), scene(1, 1)),
    "gif": (encode(GIF, "GIF"), np.repeat(np.asarray(GIF)[:, :, None], 3, 2)),
    "gif of a palette": (encode(Image.fromarray(PIXELS), "GIF"), np.asarray(Image.fromarray(PIXELS).quantize(256).convert("RGB"))),
    "webp": (encode(Image.fromarray(PIXELS), "WEBP", lossless=True), PIXELS),
    "bmp": (encode(Image.fromarray(PIXELS), "BMP"), PIXELS),
    "tiff": (encode(Image.fromarray(PIXELS), "TIFF"), PIXELS),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_files_become_the_right_picture(name: str) -> None:
    data, pixels = ODD[name]
    assert difference(made(data, quality=95).jpeg, expected(pixels)) < 2.0  # grey levels, mean over the picture


def test_antialiased() -> None:
    """Fine stripes become an even grey, not coarse stripes."""
    stripes = np.zeros((1024, 1024, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.asarray(opened(made(encode(Image.fromarray(stripes), "PNG")).jpeg)).std() < 2.0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html>not found</html>", "not a picture"),
        (ODD["jpeg"][0][: len(ODD["jpeg"][0]) * 6 // 10], "truncated"),
        (ODD["png named JPEG"][0][:200], "truncated|broken|cut"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PictureError, match=reason) as caught:
        made(data)
    assert "\n" not in str(caught.value)


def bomb(jpeg: bytes, width: int, height: int) -> bytes:
    """The JPEG with another size in its header."""
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_what_claims_to_be_enormous_is_refused_before_it_is_decoded(wrap: object) -> None:
    assert callable(wrap)
    for data in (bomb(jpeg_of(PIXELS), 65_500, 65_500), encode(Image.new("1", (30_000, 30_000)), "PNG")):
        with pytest.raises(PictureError, match=r"claims .* more than the 100,000,000|exceeds limit"):
            made(wrap(data))


@pytest.mark.parametrize("data", [gzip.compress(jpeg_of(PIXELS))[:-30], b"\x1f\x8bno gzip at all"])
def test_damaged_gzip(data: bytes) -> None:
    with pytest.raises(PictureError, match=r"wrapped in gzip, and cut short|wrapped in gzip and damaged"):
        made(data)


def test_a_fault_that_libjpeg_only_warns_of_is_told() -> None:
    """As in ImageNet's own files with bytes too many: decoded, and listed."""
    whole = jpeg_of(PIXELS)
    assert made(whole).doubt is None
    at = whole.rindex(b"\xff\xd9")
    found = made(whole[:at] + b"garbage" + whole[at:])
    assert found.doubt is not None
    assert "extraneous" in found.doubt
    assert difference(found.jpeg, expected(PIXELS)) < 2.0


@pytest.mark.parametrize(("width", "height"), [(900, 300), (300, 900)])
@pytest.mark.parametrize("at", [0.02, 0.5, 0.9])
def test_damage_is_told_of_wherever_it_is(width: int, height: int, at: float) -> None:
    """Also outside of the central square, which is all that is decoded: a marker in the middle of the data, and an end too early."""
    whole = jpeg_of(np.asarray(photo(0, width, height, grey=False)))
    begin = whole.index(b"\xff\xda") + 14
    place = begin + int(at * (len(whole) - begin))
    assert made(whole).doubt is None
    assert made(whole[:place] + b"\xff\xd3" + whole[place + 2 :]).doubt is not None
    with pytest.raises(PictureError, match=r"truncated|broken"):
        made(whole[:place])


def photo(seed: int, width: int, height: int, grey: bool) -> Image.Image:
    """Noise over a smooth picture: every pixel counts."""
    noise = np.random.default_rng(seed).normal(0, 25, (height, width, 3))
    picture = Image.fromarray(np.clip(scene(width, height) + noise, 0, 255).astype(np.uint8))
    return picture.convert("L") if grey else picture


SIZES = [(500, 375), (375, 500), (256, 256), (257, 511), (1030, 520), (2100, 1100), (200, 90), (33, 700), (5, 4), (1, 1), (640, 17)]


@pytest.mark.parametrize("sampling", [0, 1, 2, None])
def test_the_fast_way_and_pillow_give_the_same_pixels(sampling: int | None) -> None:
    """Bit for bit: 4:4:4, 4:2:2, 4:2:0 and grey; whole, halved and quartered; wide, tall and tiny; square and whole."""
    for seed, (width, height) in enumerate(SIZES):
        options = {} if sampling is None else {"subsampling": sampling}
        data = encode(photo(seed, width, height, sampling is None), "JPEG", quality=93, progressive=seed % 3 == 2, **options)
        for size in (256, 64, 17):
            for shape in ("square", "shorter"):
                given = settings(size=size, shape=shape)
                found = convert(data, given)
                assert found.doubt is None
                np.testing.assert_array_equal(found.pixels, plain_pixels(data, given), f"{width} x {height} to {size}, {shape}")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_applied_where_it_is_asked_for(orientation: int, form: str) -> None:
    """Against what Pillow's own turning gives."""
    picture = Image.fromarray(PIXELS)
    data = encode(picture, form, exif=exif(orientation), **({"quality": 98} if form == "JPEG" else {}))
    ways = [None, 0, 3, 1, 5, 4, 6, 2]  # of Image.Transpose, by orientation
    way = ways[orientation - 1]
    turned = picture if way is None else picture.transpose(Image.Transpose(way))
    assert difference(made(data, exif_orientation="applied").jpeg, expected(np.asarray(turned))) < 2.0
    assert difference(made(data).jpeg, expected(PIXELS)) < 2.0


@pytest.mark.parametrize(("width", "height", "wanted"), [(500, 375, (341, 256)), (375, 500, (256, 341)), (1000, 999, (256, 256))])
def test_the_shorter_side_with_the_aspect_kept(width: int, height: int, wanted: tuple[int, int]) -> None:
    found = made(jpeg_of(scene(width, height)), shape="shorter")
    assert opened(found.jpeg).size == wanted
    assert difference(found.jpeg, np.asarray(Image.fromarray(scene(width, height)).resize(wanted, Image.Resampling.BICUBIC)).astype(float)) < 2.0


def test_an_aspect_that_no_jpeg_can_have() -> None:
    with pytest.raises(PictureError, match="a JPEG has at most 65,500"):
        made(jpeg_of(scene(20_000, 30)), shape="shorter")


@pytest.mark.parametrize(("subsampling", "factors"), [("4:2:0", (2, 2)), ("4:4:4", (1, 1))])
def test_chroma_format(subsampling: str, factors: tuple[int, int]) -> None:
    for data in (jpeg_of(PIXELS, subsampling=0), jpeg_of(PIXELS[:, :, 0]), encode(CMYK, "JPEG")):
        frame = read_frame(made(data, subsampling=subsampling).jpeg)
        assert frame is not None
        assert frame.sampling == (factors, (1, 1), (1, 1))
        assert frame.baseline


def test_huffman_tables_are_optimised_without_loss() -> None:
    """Fewer bytes than Pillow's with standard tables, the same coefficients."""
    found = made(jpeg_of(np.asarray(photo(0, 500, 375, grey=False))), quality=90)
    standard = encode(Image.fromarray(found.pixels), "JPEG", quality=90, subsampling=2)
    assert len(found.jpeg) < len(standard)
    np.testing.assert_array_equal(np.asarray(opened(found.jpeg)), np.asarray(opened(standard)))


def test_a_picture_of_millions_of_rows_takes_no_memory_for_them() -> None:
    code = (
        "import io, resource, sys; from PIL import Image; from pipeline.manifest import Settings; from tools.picture import convert\n"
        "file = io.BytesIO(); Image.new('L', (1, 3_000_000), 90).save(file, 'PNG')\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "convert(file.getvalue(), Settings(size=256, quality=90, shard_size=1, seed=0))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    result = run_command("-c", code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 200_000  # kB


def test_more_scans_than_any_picture_has() -> None:
    whole = jpeg_of(PIXELS, progressive=True)
    at = whole.rindex(b"\xff\xda")
    with pytest.raises(PictureError, match="scans, more than the 100"):
        made(whole[:-2] + 200 * whole[at:-2] + whole[-2:])


@pytest.mark.parametrize("seed", range(20 if os.environ.get("SOAK") else 1))
def test_whatever_happens_to_a_file_is_a_picture_or_a_reason(seed: int) -> None:
    """Flipped, zeroed and cut; where nothing is found wrong, both ways give the same pixels."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(scene(60, 45))
    forms = [encode(small, form) for form in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")]
    forms += [
        encode(small, "JPEG", progressive=True),
        encode(small.convert("CMYK"), "JPEG"),
        gzip.compress(forms[0]),
        encode(small, "JPEG", exif=exif(6)),
    ]
    given = settings(size=32, exif_orientation=("ignored", "applied")[seed % 2])
    reasons = 0
    for _ in range(200):
        data = bytearray(forms[rng.integers(len(forms))])
        way, at = rng.integers(3), int(rng.integers(len(data)))
        if way == 0:
            data[at] ^= 1 << int(rng.integers(8))
        elif way == 1:
            data[at : at + 16] = bytes(len(data[at : at + 16]))
        else:
            del data[at:]
        try:
            found = convert(bytes(data), given)
        except PictureError:
            reasons += 1
            continue
        if found.doubt is None:
            inner = gzip.decompress(bytes(data)) if data[:2] == b"\x1f\x8b" else bytes(data)
            np.testing.assert_array_equal(found.pixels, plain_pixels(inner, given))
    assert 20 < reasons < 180
