"""What the conversion benchmark makes of pictures and numbers."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tools.bench_shards_quality import judge, psnr, references, ssim
from tools.bench_shards_results import PICTURES, Measured, goals, hours, linearity, table
from tools.peer_converters import PEERS


def test_psnr_and_ssim_are_what_their_formulas_say() -> None:
    rng = np.random.default_rng(0)
    one = rng.integers(0, 256, (14, 17, 3)).astype(np.uint8)
    other = np.clip(one + rng.integers(-30, 31, one.shape), 0, 255).astype(np.uint8)
    error = sum((int(a) - int(b)) ** 2 for a, b in zip(one.ravel(), other.ravel(), strict=True)) / one.size
    assert psnr(one, other) == pytest.approx(10 * np.log10(255**2 / error))
    assert psnr(one, one) == pytest.approx(10 * np.log10(255**2 * one.size))
    assert ssim(one, other) == pytest.approx(slow_ssim(one, other), abs=1e-9)
    assert ssim(one, one) == pytest.approx(1)
    assert ssim(one, 255 - one) < 0


def slow_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Window by window, as Wang et al. write it."""
    x, y = (picture @ np.array([0.299, 0.587, 0.114]) for picture in (one, other))
    place = np.arange(11) - 5
    weights = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            spread_a, spread_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            both = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append((2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2)))
    return float(np.mean(values))


def test_nobody_pays_for_where_edges_are_rounded_to() -> None:
    """Of 333 x 500 the other side becomes 384.4 pixels: 384 or 385, and of 385 the middle begins at 64 or 65."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(2).integers(0, 256, (500, 333, 3)).astype(np.uint8)).save(file, "JPEG")
    found = references(file.getvalue())
    assert len(found) == 1 + 1 + 2
    assert {reference.shape for reference in found} == {(256, 256, 3)}
    whole = np.asarray(Image.open(file).resize((256, 385), Image.Resampling.LANCZOS))
    assert sum(bool((whole[65:321] == reference).all()) for reference in found) == 1
    assert not any((whole[63:319] == reference).all() for reference in found)
    assert references(file.getvalue()[:500]) == [], "a damaged file is like nothing"


def test_a_picture_is_judged_by_its_form_and_the_nearest_reference(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    right, wrong = (np.kron(rng.integers(0, 256, (32, 32, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(2))
    for number, (pixels, sampling) in enumerate([(right, "4:2:0"), (right, "4:4:4"), (right[:128], "4:2:0"), (right[..., 0], None)]):
        more = {"subsampling": sampling} if sampling else {}
        Image.fromarray(pixels).save(tmp_path / f"{number:06d}.jpg", quality=95, **more)
    judged = judge(tmp_path, [[wrong, right]] * 5, "4:2:0", {"4": "ValueError: no picture"})
    assert judged.other_form == {"256 x 256 RGB 4:4:4": 1, "256 x 128 RGB 4:2:0": 1, "256 x 256 L": 1}
    assert (judged.failed, judged.reason) == (1, "ValueError: no picture")
    values = [psnr(np.asarray(Image.open(tmp_path / f"{k:06d}.jpg").convert("RGB")), right) for k in (0, 1, 3)]
    assert judged.psnr_db == pytest.approx(np.mean(values), abs=0.006), "that of the wrong size is left out"
    assert judge(tmp_path, [[right]], "4:2:0", {"0": "x"}).psnr_db is None


# --- what is made of the numbers


def answers(seconds: float, cpu: float, processes: int = 1, **inside: float) -> list[dict[str, Any]]:
    return [{"pictures": 300, "failed": 0, "seconds": seconds, "cpu_seconds": cpu, "inside": inside}] * processes


def test_rates_are_medians_of_rounds_and_sums_over_processes() -> None:
    one = Measured("ours", 2, [answers(1, 1, 2), answers(2, 1.5, 2), [*answers(3, 3), *answers(1, 1)]])
    assert one.per_core() == [300, 150, 200]
    assert one.per_cpu_second() == [300, 200, 150]
    assert one.summary()["per_core"] == {"median": 200, "min": 150, "max": 300}
    parts = Measured("ours-sums", 1, [answers(1.03, 1, sums=0.03), answers(2, 1, sums=0.02), answers(1.05, 1, sums=0.05)])
    assert parts.inside() == {"sums": 100}
    assert parts.share("sums") == 0.03


def summary(row: str, processes: int, rate: float, **more: float | None) -> dict[str, Any]:
    spread = {rate_: {"median": rate, "min": rate, "max": rate} for rate_ in ("per_core", "per_cpu_s")}
    quality = {"psnr_db": 35.0, "ssim": 0.95, "bytes": 20000, "failed": 0, "other_form": "", "reason": "", "inside_us": {}}
    return {"row": row, "processes": processes, "whose": "peer" if row in PEERS else "ours", **spread, **quality, **more}


def test_goals_are_judged() -> None:
    rows = [summary("ours", 1, 480), summary("limit", 1, 600, psnr_db=None), summary("img2dataset", 1, 310, psnr_db=34.0, ssim=0.96)]
    rows += [summary("ours-q80", 1, 500, psnr_db=33.0, bytes=15000), summary("opencv", 1, 400)]
    sums = Measured("ours-sums", 1, [answers(1.04, 1, sums=0.04)])
    found = {goal["what"]: (goal["reached"], goal["met"]) for goal in goals(rows, [sums])}
    assert found == {
        "ours / img2dataset, pictures a second and core, 1 process": (1.5484, False),
        "ours / img2dataset, pictures a CPU-second, 1 process": (1.5484, False),
        "ours / fastest peer (opencv), pictures a second and core, 1 process": (1.2, None),
        "ours / limit, pictures a second and core, 1 process": (0.8, None),
        "ours - img2dataset, PSNR in dB": (1, True),
        "ours - img2dataset, SSIM": (-0.01, False),
        "ours-q80 - ours, PSNR in dB": (-2, None),
        "ours-q80 / ours, bytes": (0.75, None),
        "the sums, of what ours takes without them, 1 process": (0.04, False),
    }
    assert goals([summary("pillow", 1, 5)], []) == []


def test_hours_are_computed_from_the_most_processes() -> None:
    rows = [summary("ours", 1, 480), summary("ours", 2, 400), summary("pillow", 1, 240), summary("pillow", 2, 240)]
    assert hours(rows)[0] == {"row": "ours", "cores": {"2": round(PICTURES / 800 / 3600, 2), "16": round(PICTURES / 6400 / 3600, 2)}}
    assert [(line["row"], line["kept"]) for line in linearity(rows)] == [("ours", 0.833), ("pillow", 1)]
    assert linearity(rows[:1]) == []
    lines = table({"rows": rows, "left_out": {}, "goals": goals(rows, []), "linearity": linearity(rows), "hours": hours(rows)}).splitlines()
    assert lines[-1].split() == ["pillow", "0.77", "0.10"]
    assert "rate per core kept from 1 to 2 processes (1 is linear): ours 0.83, pillow 1.00" in lines
