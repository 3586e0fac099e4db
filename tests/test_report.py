"""The report of a run, and runs over each other: right numbers, nothing from elsewhere, no error in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from conftest import one_line
from training import here

from model import compare, report
from model.charts import Line, chart, ticks

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
VOID = {"meta", "link", "img", "br", "line", "path", "circle", "input", "hr"}


class Structure(HTMLParser):
    """Elements that are closed in order, and every address that a browser would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def check_page(text: str) -> str:
    """The page is well-formed and asks for nothing; the text that it shows."""
    found = Structure(text)
    assert found.open == []
    assert all(address.startswith("data:") for address in found.addresses), found.addresses
    assert "@import" not in text
    assert "url(" not in text
    return " ".join(found.words)


def test_a_run_ends_with_a_report(finished: Path) -> None:
    said, text = (finished / "said.txt").read_text(), (finished / "report.html").read_text()
    words = check_page(text)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    final = next(line for line in lines if "val_ten_view_top1_error_percent" in line)
    assert f"{final['val_ten_view_top1_error_percent']:.2f} %" in words
    assert "2, 12" in words  # epochs, steps
    for what in (
        "37.5 / 17.0 % (2010)",
        "Figure 3",
        "Predictions",
        "waiting for data",
        "model.maps",
        "SHA-256",
        "torch",
        "one cpu, both columns on it",
    ):
        assert what in words, what
    assert "report.html" in said
    pictures = re.findall(r"src='data:image/jpeg;base64,([^']+)'", text)
    assert len(pictures) == 8
    assert len(set(pictures)) == 8
    differing = re.findall(r"<tr class=differs><td>([\w.]+)</td>", text)
    assert "train.batch" in differing
    assert "train.momentum" not in differing


def test_it_is_written_again_without_the_shards(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    (copy / "report.html").unlink()
    result = here(report.main, ["--run", str(copy), "--shards", str(tmp_path / "none")])
    assert result.returncode == 0, result.stderr
    words = check_page((copy / "report.html").read_text())
    assert "without pictures:" in words
    assert "image/jpeg" not in (copy / "report.html").read_text()


def test_runs_over_each_other(finished: Path, finished_pair: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(finished_pair, tmp_path / "pair", symlinks=True))
    record = json.loads((other / "run.json").read_text())
    record["recipe"]["train"]["rate"] = 0.25
    (other / "run.json").write_text(json.dumps(record))
    result = here(compare.main, [str(finished), str(other), "--out", str(tmp_path / "compare.html")])
    assert result.returncode == 0, result.stderr
    text = (tmp_path / "compare.html").read_text()
    words = check_page(text)
    assert "train.rate" in words
    assert "0.25" in words
    assert "train.batch" not in words  # in which they do not differ
    assert text.count("stroke='#2b6cb0'") == text.count("stroke='#c05621'") > 3


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    one_line(here(report.main, ["--run", str(tmp_path)]), "is not the folder of a run")
    one_line(here(compare.main, [str(tmp_path), str(tmp_path)]), "is not the folder of a run")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {}}))
    (tmp_path / "metrics.jsonl").write_text("")
    one_line(here(report.main, ["--run", str(tmp_path)]), "has no loss yet")
    (tmp_path / "metrics.jsonl").write_text("{not JSON\n")
    one_line(here(report.main, ["--run", str(tmp_path)]), "not JSON")


def test_a_chart_has_round_numbers_and_gaps() -> None:
    assert ticks(0, 2.3) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert ticks(3, 3) == pytest.approx([3, 3.2, 3.4, 3.6, 3.8, 4])
    drawn = chart("a <b>", [Line("one", [0, 1, 2, 3], [1.0, float("nan"), 2.0, None])], "step", "nats")
    assert "a &lt;b&gt;" in drawn
    assert re.findall(r"<path d='([^']*)'", drawn)[0].count("M") == 2
    long = chart("long", [Line("one", range(4000), [float(i % 2) for i in range(4000)])], "step", "nats")
    assert re.findall(r"<path d='([^']*)'", long)[0].count("L") == 399
    assert "nothing yet" in chart("none", [Line("one", [], [])], "step", "nats")


def console(page: Path, place: Path) -> list[str]:
    """What a browser's console says of a page."""
    assert BROWSER is not None
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [BROWSER, "--headless", "--no-sandbox", *quiet, "--enable-logging=stderr", "--log-level=0", f"--user-data-dir={place}"]
    result = subprocess.run(
        [*command, "--virtual-time-budget=3000", "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=False
    )
    assert "</html>" in result.stdout, result.stderr
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)")
def test_no_error_in_a_browser(finished: Path, tmp_path: Path) -> None:
    """And one that is there is seen: an error put into the same page."""
    assert console(finished / "report.html", tmp_path / "profile") == []
    bad = tmp_path / "bad.html"
    bad.write_text((finished / "report.html").read_text().replace("</body>", "<script>nothingOfTheKind()</script></body>"))
    assert any("nothingOfTheKind is not defined" in line for line in console(bad, tmp_path / "profile"))
