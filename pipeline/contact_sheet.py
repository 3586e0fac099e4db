"""A contact sheet: training pictures of many classes in rows, with the names of their classes below, as a PNG."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pipeline.atomic import atomic_file
from pipeline.errors import BadSample
from pipeline.manifest import ClassEntry
from pipeline.shards import ShardSet

COLUMNS, ROWS = 8, 6
TILE, GAP, CAPTION, MARGIN, HEADING = 148, 10, 24, 22, 58  # pixels
PAPER, INK, GREY, NONE = "#ffffff", "#22262b", "#6b717a", "#d5d8dc"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Fonts:
    title: Font
    line: Font
    caption: Font


def choose(ids: np.ndarray, labels: np.ndarray, most: int = COLUMNS * ROWS) -> np.ndarray:
    """Up to `most` of the ids, (n,) int64: of as many classes as there are, spread evenly over them, sorted by class."""
    first = np.argsort(labels, kind="stable")
    begins = np.flatnonzero(np.diff(labels[first], prepend=-1))
    turn = np.arange(len(first)) - np.repeat(begins, np.diff(np.append(begins, len(first))))  # the how-manieth of its class
    by_turn = first[np.argsort(turn, kind="stable")]
    if len(begins) > most:
        by_turn = by_turn[np.linspace(0, len(begins) - 1, most).round().astype(np.int64)]
    chosen = by_turn[:most]
    return ids[chosen[np.argsort(labels[chosen], kind="stable")]]


def sheet_size(pictures: int) -> tuple[int, int]:
    """Width and height in pixels of the sheet of so many pictures."""
    rows = -(-pictures // COLUMNS)
    return 2 * MARGIN + COLUMNS * (TILE + GAP) - GAP, 2 * MARGIN + HEADING + rows * (TILE + CAPTION + GAP) - GAP


def write_sheet(path: Path, shards: ShardSet, ids: np.ndarray, title: str, line: str) -> None:
    """Write the pictures `ids` of `shards` to `path`; title, line: what stands above them. Raises OSError."""
    sheet = Image.new("RGB", sheet_size(len(ids)), PAPER)
    draw, fonts = ImageDraw.Draw(sheet), _Fonts(*(ImageFont.load_default(size) for size in (22, 14, 13)))
    draw.text((MARGIN, MARGIN - 4), _fitting(title, fonts.title, sheet.width - 2 * MARGIN), INK, fonts.title)
    draw.text((MARGIN, MARGIN + 26), _fitting(line, fonts.line, sheet.width - 2 * MARGIN), GREY, fonts.line)
    for number, sample in enumerate(ids.tolist()):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * (TILE + GAP), MARGIN + HEADING + row * (TILE + CAPTION + GAP)
        tile, caption = _tile(shards, sample)
        sheet.paste(tile, (left, top))
        draw.text((left, top + TILE + 4), _fitting(caption, fonts.caption, TILE), INK, fonts.caption)
    with atomic_file(path) as file:
        sheet.save(file, "PNG", optimize=True)


def _tile(shards: ShardSet, sample: int) -> tuple[Image.Image, str]:
    """A picture, its central square as TILE x TILE, and its class; grey where it cannot be shown."""
    try:
        jpeg, label = shards.read(sample)
        picture = Image.open(io.BytesIO(jpeg.tobytes())).convert("RGB")
        return ImageOps.fit(picture, (TILE, TILE), Image.Resampling.LANCZOS), _caption(shards.manifest.classes[label])
    except (BadSample, OSError, SyntaxError):
        return Image.new("RGB", (TILE, TILE), NONE), "cannot be decoded"


def class_name(entry: ClassEntry) -> str:
    """The first of a class's words, or its wnid where there are none."""
    return entry.words.split(",")[0].strip() or entry.wnid


def _caption(entry: ClassEntry) -> str:
    """The name, or the wnid, or the number of a class: the first that can be written."""
    return next(name for name in (class_name(entry), entry.wnid, f"class {entry.index}") if _letters(name))


def _letters(text: str) -> str:
    """What is left of a text in ASCII: letters without their accents, nothing of other alphabets."""
    return " ".join(unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().split())


def _fitting(text: str, font: Font, width: int) -> str:
    """The text, or as much of its beginning as fits, in the letters that Pillow's own font has."""
    text = _letters(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
