"""Procedurally drawn photographs-of-a-kind: classes that differ by structure, never by colour."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

Rng = np.random.Generator
Plane = npt.NDArray[np.float32]


def between(rng: Rng, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))  # as scales vary by ratio


def plane(rng: Rng, w: int, h: int, tilt: float) -> tuple[Plane, Plane]:
    """Two (h, w) float32 coordinates, unit = short side, 0 near the centre; turned by up to tilt, sheared and bent."""
    x, y = (((np.arange(n) - n / 2) / min(w, h) + rng.uniform(-0.12, 0.12)).astype(np.float32) for n in (w, h))
    turn = np.exp(1j * rng.uniform(-tilt, tilt)).astype(np.complex64)  # either way, as all here: no kind may prefer a hand
    hilly = Image.fromarray(rng.standard_normal((4, 4), dtype=np.float32) * rng.uniform(0, 0.03))
    bend = np.asarray(hilly.resize((w, h), Image.Resampling.BICUBIC))
    u, v = turn.real * x + (turn.imag * y)[:, None] + bend, (turn.real * y)[:, None] - turn.imag * x
    return u, v + float(rng.uniform(-0.15, 0.15)) * u


def draw_waves(kind: str, rng: Rng, w: int, h: int) -> Plane:
    """Kinds that are one formula over the plane; see KINDS."""
    x, y = plane(rng, w, h, 0.1 if kind == "hills" else np.pi)
    turn, squash = 6.283 / between(rng, 0.08, 0.2), between(rng, 0.78, 1.28)
    phase, shift = rng.uniform(0, 6.283, 25).tolist(), rng.uniform(-0.35, 0.35)
    if kind == "stripes":
        wave = np.sin(x * turn)
    elif kind == "target":
        wave = np.sin(np.hypot(x, y * squash) * turn + phase[0])
    elif kind == "sunburst":
        wave = np.sin(np.arctan2(y, x * squash) * int(rng.integers(7, 19)) + phase[0])
    elif kind == "checkerboard":
        wave = np.sin(x * (turn * 0.6)) * np.sin(y * (turn * squash * 0.6)) * 2 + shift  # takes the shift back
    elif kind == "zigzag":
        tooth = between(rng, 0.18, 0.4)
        wave = np.sin((y + np.abs((x / tooth) % 1 - 0.5) * (tooth * 2 * squash)) * turn)
    elif kind == "labyrinth":  # waves of one length in all directions, cut near the middle
        wave = np.full_like(x, shift * 0.8)
        for angle, start in zip(np.linspace(phase[12], phase[12] + np.pi, 12, endpoint=False), phase[:12], strict=True):
            wave += np.cos(x * float(turn * np.cos(angle)) + y * float(turn * np.sin(angle)) + start) * 0.5
    else:  # hills under a sky, each ridge of another tone than the one behind it
        wave, bases = np.zeros_like(x), np.linspace(rng.uniform(-0.28, -0.05), rng.uniform(0.15, 0.35), rng.integers(2, 5))
        for i, base in enumerate(bases):
            octaves = [rng.uniform(0.02, 0.07) / n * np.sin(x[0] * (4.5 * 1.8**n) + phase[5 * i + n]) for n in range(1, 6)]
            wave += ((0.35 if i % 2 else 1.0) - wave) * np.clip((y - float(base) - sum(octaves)) * min(w, h), 0, 1)
        return wave
    return (wave - shift) * between(rng, 0.7, 5) + 0.5


def draw_tiles(kind: str, rng: Rng, w: int, h: int) -> Plane:
    """Bricks in their joints; or spots, hoops or stars, one in each tile, moved a little from its middle."""
    bricks, stars = kind == "brick wall", kind == "stars"
    # at half size, for speed: a distance to the edge survives enlarging, so edges stay sharp
    (x, y), ratio = plane(rng, w // 2 + 1, h // 2 + 1, np.pi), float(rng.uniform(1.9, 2.8)) if bricks else 1.0
    high = between(rng, 0.25, 0.45) if stars else between(rng, 0.08, 0.16) if bricks else between(rng, 0.12, 0.26)
    row, along = np.floor(y / high), x / (high * ratio) + np.floor(y / high) % 2 / 2
    luck = np.sin(row * 12.9 + np.floor(along) * 78.2) * 437.5 % 1  # each tile its own
    across, down = (along % 1 - 0.5) * ratio, y / high - row - 0.5  # from the middle, in tile heights
    if bricks:
        joint = np.minimum(0.5 - np.abs(down), ratio / 2 - np.abs(across))
        mask = np.minimum((joint - rng.uniform(0.05, 0.11)) * 18, 1 - 0.4 * luck)
    else:
        across, down = across + 0.12 * np.cos(luck * 6.283), down + 0.12 * np.sin(luck * 6.283)
        radius, size = np.hypot(across, down), rng.uniform(0.29, 0.35) - luck * 0.06
        if stars:  # 4 to 7 points
            size = 0.13 + 0.25 * np.abs((np.arctan2(down, across) / 6.2832 + luck * 7) * int(rng.integers(4, 8)) % 1 * 2 - 1)
        edge = np.abs(radius - size + 0.06) - 0.06 if kind == "hoops" else radius - size
        mask = 0.5 - edge * (high * min(w, h) * 0.8)
    return np.asarray(Image.fromarray(mask.astype(np.float32)).resize((w, h), Image.Resampling.BILINEAR))


def draw_tree(kind: str, rng: Rng, w: int, h: int) -> Plane:
    """One bare tree in the middle, sometimes others beside it."""
    sheet, s = Image.new("L", (2 * w, 2 * h)), 2 * min(w, h)  # drawn double, for smooth edges
    pen, spread, shrink = ImageDraw.Draw(sheet), rng.uniform(0.35, 0.7), rng.uniform(0.72, 0.8)
    for place in (0.0, -0.7, 0.7)[: int(rng.integers(1, 4))]:
        twigs = [
            (
                w + s * (place + rng.uniform(-0.12, 0.12)),
                h + s * rng.uniform(0.4, 0.55),
                rng.uniform(-0.2, 0.2),
                s * rng.uniform(0.2, 0.28),
                s * between(rng, 0.04, 0.07),
            )
        ]
        for x, y, lean, length, width in twigs:  # grows while it is walked
            tip = x + length * np.sin(lean), y - length * np.cos(lean)
            pen.line((x, y, *tip), fill=255, width=max(2, round(width)))
            for turn in (-spread, spread) if len(twigs) < 255 else ():
                twigs.append((*tip, lean + turn * rng.uniform(0.5, 1.3), length * shrink * rng.uniform(0.85, 1.1), width * 0.74))
    return np.asarray(sheet.reduce(2), np.float32) * np.float32(1 / 255)


# words of the class, of which the first names the kind, and what draws it:
# (kind, rng, width, height) to (h, w) float32, 0 and below ground, 1 and above ink
KINDS: dict[str, Callable[[str, Rng, int, int], Plane]] = {
    "stripes, straight grating": draw_waves,
    "target, concentric rings": draw_waves,
    "spots, polka dots": draw_tiles,
    "brick wall, masonry": draw_tiles,
    "bare tree, branches": draw_tree,
    "labyrinth, winding paths": draw_waves,
    "sunburst, rays": draw_waves,
    "checkerboard, chequer": draw_waves,
    "hills, skyline": draw_waves,
    "stars, asterisks": draw_tiles,
    "hoops, open circles": draw_tiles,
    "zigzag, chevron": draw_waves,
}


def cloth(rng: Rng, w: int, h: int, colour: npt.NDArray[np.float64]) -> Image.Image:
    """A blotchy RGB surface about `colour`, coarse or fine."""
    cells = int(between(rng, 3, 48))
    grid = colour + rng.standard_normal((cells, cells, 3)) * rng.uniform(4, 32)
    return Image.fromarray(np.clip(grid, 0, 255).astype(np.uint8)).resize((w, h), Image.Resampling.BICUBIC)


def paint(rng: Rng, words: str, w: int, h: int) -> Image.Image:
    """The picture in RGB: ink on ground, stray blots, slanting light, blur and noise."""
    mask = Image.fromarray((np.clip(KINDS[words](words.split(",")[0], rng, w, h), 0, 1) * 255).astype(np.uint8))
    ground = ink = np.zeros(3)
    while abs(ground.mean() - ink.mean()) < 65:
        ground, ink = rng.uniform(20, 235, (2, 3))
    picture = Image.composite(cloth(rng, w, h, ink), cloth(rng, w, h, ground), mask)
    for _ in range(rng.integers(0, 4)):
        x, y, rx, ry = rng.uniform((0, 0, 0.04, 0.04), (w / h, 1, 0.13, 0.13)) * h
        ImageDraw.Draw(picture).ellipse((x - rx, y - ry, x + rx, y + ry), tuple(rng.integers(0, 256, 3).tolist()))
    if rng.random() < 0.35:
        picture = picture.filter(ImageFilter.BoxBlur(rng.uniform(0.3, 4) * min(w, h) / 375))
    slope = rng.uniform(-0.3, 0.3, 2)
    light = 1 + np.linspace(-slope[0], slope[0], w, dtype=np.float32) + np.linspace(-slope[1], slope[1], h, dtype=np.float32)[:, None]
    noise = rng.standard_normal((h, w), dtype=np.float32) * float(rng.uniform(0, 9))
    # mean and spread are drawn anew, or the share of ink would tell the class
    middle, spread, bands = rng.uniform(75, 165), rng.uniform(25, 60), []
    for band in picture.split():
        lit = np.asarray(band) * light
        gain = float(spread * rng.uniform(0.8, 1.2) / max(lit[::4, ::4].std(), 8))
        lit = lit * gain + noise + float(middle + rng.normal(0, 18) - lit[::4, ::4].mean() * gain)
        bands.append(Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8)))
    return Image.merge("RGB", bands)
