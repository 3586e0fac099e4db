"""The report of a run: right numbers, nothing from elsewhere, no error in a browser; and never in a training's way."""

from __future__ import annotations

import json
import re
import shutil
import socket
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browser import ABSENT, BROWSER, look_at
from conftest import one_line
from made_run import RESUMED, made_run
from training import here

from model import compare, report
from model.charts import POINTS, Level, Line, Moment, chart, ticks
from model.page import page
from model.record import read_record, without_secrets, write_record
from model.report import write_report
from model.run_lines import read_run
from pipeline import InputError

VOID = {"meta", "link", "img", "path", "rect", "circle"}
NAMES = ("tench, Tinca tinca", "<lobster> & sons", "crane", "barn")


class Structure(HTMLParser):
    """Elements that are closed in order, and every address that a browser would ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]
        assert not [name for name, _ in attributes if name == "style" or name.startswith("on")], f"<{tag}>: the policy would not let it in"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)


def check_page(text: str) -> str:
    """The page is well-formed and asks for nothing; the text that it shows."""
    found = Structure(text)
    assert found.open == []
    assert all(address.startswith("data:") for address in found.addresses), found.addresses
    assert "@import" not in text
    assert "url(" not in text
    return " ".join(" ".join(found.words).split())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a bit of everything, and its report; not to be changed by a test."""
    folder = made_run(tmp_path_factory.mktemp("made") / "run <1>", NAMES)
    write_report(folder, None)
    return folder


def test_a_run_ends_with_a_report(finished: Path) -> None:
    text = write_report(finished, None).read_text()
    words = check_page(text)
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    final = next(line for line in lines if "val_ten_view_top1_error_percent" in line)
    assert f"{final['val_ten_view_top1_error_percent']:.2f} %" in words
    assert f"{max(line['step'] for line in lines)} steps" in words
    for what in (
        "37.5 / 17.0 %",
        "Figure 3",
        "Figure 4",
        "about 227",
        "model.maps ≠",
        "Units that never fire",
        "step 12, column 0 / 1 conv1",
        "SHA-256",
        "torch",
        "one cpu, the whole net on it",
        "Begun once",
    ):
        assert what in words, what
    pictures = re.findall(r"src='data:image/jpeg;base64,([^']+)'", text)
    assert len(pictures) == len(set(pictures)) == 8
    assert "report.html" in (finished / "said.txt").read_text()


def test_what_happened_to_a_run_is_told(made: Path) -> None:
    words = check_page((made / "report.html").read_text())
    for what in (
        "run <1>",
        "31.25 %",
        "9 of 9",
        "Gone on with once, started again after a fault once.",
        f"gone on with {RESUMED} 2 x cpu",
        "2 pictures skipped",
        "cannot</b> be decoded",
        "130 2.17 9.5 2.2 0.005",
        "decode 55.0 %",
        "<lobster> & sons",
        "rate 0.005",
    ):
        assert what in words, what
    text = (made / "report.html").read_text()
    assert [len(re.findall(f"<g class='{kind}'", text)) for kind in ("rate", "start", "spike")] == [3 + 2 + 2 + 2, 2 * 3, 3]
    differing = set(re.findall(r"<tr class=differs><th>([\w.]+)", text))
    assert {"train.batch", "model.maps"} <= differing
    assert not differing & {"train.momentum", "data.decoder", "train.log_every"}


def test_the_time_is_that_of_the_steps(made: Path) -> None:
    run = read_run(made)
    seconds = [run.batch / line["images_per_second"] for line in run.train]
    assert run.seconds() == pytest.approx(sum(seconds))
    assert run.seconds(60) == pytest.approx(sum(seconds[:60]))
    assert run.rate() == pytest.approx(len(seconds) * run.batch / sum(seconds))
    assert run.validation_seconds() == pytest.approx(9 * 1.5)
    assert [step for step, _ in run.drops()] == [300, 420]
    assert [report.time_text(s) for s in (43.4, 134, 8040, 442800)] == ["43 s", "2 min 14 s", "2 h 14 min", "5 d 3 h"]


def test_it_is_written_again_without_the_shards(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run", symlinks=True))
    result = here(report.main, ["--run", str(copy), "--shards", str(tmp_path / "none")])
    assert result.returncode == 0, result.stderr
    words = check_page((copy / "report.html").read_text())
    assert "Without pictures:" in words
    assert "image/jpeg" not in (copy / "report.html").read_text()


def test_other_shards_give_no_pictures(made: Path, made_shards: Path) -> None:
    words = check_page(write_report(made, str(made_shards)).read_text())
    assert "are not those of this run" in words
    record = read_record(made)
    (made / "run.json").write_text(json.dumps({**record, "shards": {**record["shards"], "folder": "s3://bucket/shards"}}))
    assert "give it by --shards to have it fetched" in check_page(write_report(made, None).read_text())  # no wait for a network
    (made / "run.json").write_text(json.dumps(record))


def test_a_run_in_progress_has_a_report(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", NAMES, ended=False, epochs=3)
    shutil.rmtree(folder / "checkpoints")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 200, "lo')  # being written
    words = check_page(write_report(folder, None).read_text())
    for what in ("Not ended yet: epoch 3.00 of 9", "no checkpoint yet", "made when the training ends", "top-1 error, centre view"):
        assert what in words, what


@pytest.mark.parametrize("damage", ["predictions", "checkpoint", "guess"])
def test_what_is_damaged_costs_only_its_part(tmp_path: Path, damage: str) -> None:
    folder = made_run(tmp_path / "run", NAMES, epochs=2, steps=5)
    if damage == "checkpoint":
        file = next((folder / "checkpoints").glob("step-*/*.safetensors"))
        file.write_bytes(file.read_bytes()[:40])
        wanted = "without its kernels"
    else:
        content = "[" if damage == "predictions" else json.dumps([{"id": 0, "label": "x", "best": []}])
        (folder / "predictions.json").write_text(content)
        wanted = "predictions.json is damaged"
    words = check_page(write_report(folder, None).read_text())
    assert wanted in words
    assert "31.25 %" in words


def test_what_is_no_run_is_one_line(tmp_path: Path, made: Path) -> None:
    one_line(here(report.main, ["--run", str(tmp_path)]), "is not the folder of a run")
    (tmp_path / "metrics.jsonl").write_text("")
    for content in ("{", "{}", '{"recipe": {}}'):
        (tmp_path / "run.json").write_text(content)
        one_line(here(report.main, ["--run", str(tmp_path)]), "is not the folder of a run", "damaged")
    shutil.copy(made / "run.json", tmp_path / "run.json")
    one_line(here(report.main, ["--run", str(tmp_path)]), "has no loss yet")
    for line in ("{not JSON", '["step"]', '{"step": "1"}', '{"step": 1, "loss_nats": "nan"}'):
        (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "loss_nats": 2.0}}\n{line}\n')
        with pytest.raises(InputError, match="line 2"):
            write_report(tmp_path, None)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss_nats": 2.0}\n')  # and no more than that is enough
    check_page(write_report(tmp_path, None).read_text())
    record = json.loads((made / "run.json").read_text())
    for key, value in (("shards", {}), ("starts", 3), ("versions", 3)):
        (tmp_path / "run.json").write_text(json.dumps({**record, key: value}))
        with pytest.raises(InputError, match="damaged file"):
            write_report(tmp_path, None)


def test_starts_are_kept_but_for_a_run_begun_anew(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", NAMES, epochs=1, steps=3)
    assert [(one["step"], one["restart"]) for one in read_record(folder)["starts"]] == [(0, 0), (RESUMED, 0), (RESUMED + 100, 1)]
    more: dict[str, Any] = {"recipe": {}, "layout": "", "world": 1, "shards": "", "digest": "", "names": [], "pictures": {}, "step": 0}
    write_record(folder, **more, restart=2)  # after a fault before the first checkpoint
    assert len(read_record(folder)["starts"]) == 4
    write_record(folder, **more)
    assert [one["restart"] for one in read_record(folder)["starts"]] == [0]
    assert socket.gethostname() not in (folder / "run.json").read_text()


def test_the_record_has_no_secret() -> None:
    assert without_secrets("https://me:word@host/shards?X-Signature=abc#x") == "https://host/shards"
    assert without_secrets("s3://bucket/shards") == "s3://bucket/shards"
    assert without_secrets("../my?shards") == "../my?shards"


def test_a_chart_has_round_numbers_and_leaves_out_what_is_no_number() -> None:
    assert ticks(0, 2.3) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert ticks(3, 3) == pytest.approx([3, 3.2, 3.4, 3.6, 3.8, 4])
    drawn = chart("a <b>", "nats", [Line("one", [0, 1, 2, 3], [1.0, float("nan"), 2.0, None])])
    assert "a &lt;b&gt;" in drawn
    assert re.findall(r"<path class='line c0' d='([^']*)'", drawn)[0].count("L") == 1
    assert re.findall(r"<tr data-x='([\d.]+)'><th>(\d)</th><td class='n' data-y='([\d.]+)'>(\d)", drawn) == [
        ("40.0", "0", "106.0", "1"),
        ("468.0", "2", "20.0", "2"),
    ]
    assert "nothing yet" in chart("none", "nats", [Line("one", [], [])])


def test_many_points_are_averaged_and_their_range_is_kept() -> None:
    drawn = chart("long", "nats", [Line("one", range(4000), [float(i % 2) for i in range(4000)], band=True)], levels=[Level(1, "top")])
    assert drawn.count("<tr data-x") == POINTS
    assert set(re.findall(r"data-y='[\d.]+'>([\d.]+)<", drawn)) == {"0.5"}
    assert re.findall(r"<path class='band c0' d='([^']*)'", drawn)[0].count(" 20.0") == POINTS  # the highest of each group, at the top


def test_a_leap_does_not_press_the_curve_flat() -> None:
    values = [2.0] * 99 + [1e4]
    drawn = chart("loss", "nats", [Line("one", range(100), values)], moments=[Moment(99, "leap", "spike"), Moment(500, "not there", "start")])
    assert re.findall(r"text-anchor='end'>([\d.,]+)<", drawn)[-1] == "2.5"
    assert "class='spike'" in drawn
    assert "not there" not in drawn


LOOK = """
  const { scrollWidth, clientWidth } = document.documentElement, svgs = [...document.querySelectorAll('figure.chart svg')], said = [];
  for (const svg of svgs) {
    const box = svg.getBoundingClientRect();
    svg.dispatchEvent(new window.PointerEvent('pointermove', { clientX: box.left + 0.6 * box.width, clientY: box.top + 20 }));
    said.push(svg.parentElement.querySelector('.values')?.textContent ?? '');
    svg.dispatchEvent(new window.KeyboardEvent('keydown', { key: 'Home' }));
    said.push(svg.parentElement.querySelector('.values')?.textContent ?? '');
    svg.dispatchEvent(new window.PointerEvent('pointerleave'));
  }
  const asked = window.performance.getEntriesByType('resource').map((entry) => entry.name);
  return { asked, wide: scrollWidth - clientWidth, said, left: document.querySelectorAll('.values').length };
"""


@pytest.mark.skipif(BROWSER is None, reason=ABSENT)
def test_both_pages_work_in_a_browser(made: Path, tmp_path: Path) -> None:
    """No console error, no wider than a phone, values under the pointer and by keys; what a page says besides is not run."""
    assert here(compare.main, [str(made), str(made), "--out", str(tmp_path / "compare.html")]).returncode == 0
    shutil.copy(made / "report.html", tmp_path / "report.html")
    (first, second), said = look_at([tmp_path / "report.html", tmp_path / "compare.html"], LOOK, tmp_path)
    assert said == first["asked"] == second["asked"] == []
    assert first["wide"] == second["wide"] == 0  # nothing beyond the edge
    assert first["left"] == second["left"] == 0
    assert re.fullmatch(r"epoch 5\.\d+ · step 3\d\d · 1\d s\d\.\d+", first["said"][0]), first["said"][0]
    assert re.match(r"epoch 0\.0\d+ · step \d · 0 s", first["said"][1])
    assert all(second["said"])


@pytest.mark.skipif(BROWSER is None, reason=ABSENT)
def test_what_is_wrong_in_a_browser_is_seen(tmp_path: Path) -> None:
    """Each kind of fault that the test above looks for, in a page of its own; the policy keeps out what is not ours."""
    elsewhere = "<img src='http://127.0.0.1:9/x.png'>"
    bodies = ["<script>console.error('an-error-said')</script>", "<script>nothingOfTheKind()</script>", elsewhere, "<pre>a line</pre>" + "wide" * 99]
    bad = [tmp_path / f"bad{number}.html" for number in range(len(bodies) + 1)]
    for path, body in zip(bad, bodies, strict=False):
        path.write_text(f"<!doctype html><html><head><title>bad</title></head><body>{body}</body></html>")
    bad[-1].write_text(page("policy", f"<script>document.title = 'ran'</script>{elsewhere}<p style='color: red'></p>"))
    found, said = look_at(bad, LOOK.replace("return {", "return { title: document.title,"), tmp_path)
    assert [bool(one["asked"]) for one in found] == [False, False, True, False, True]
    assert [one["wide"] > 0 for one in found] == [False, False, False, True, False]
    for what in (
        "an-error-said",
        "nothingOfTheKind is not defined",
        "inline script violates",
        "inline style violates",
        "the image 'http://127.0.0.1:9",
    ):
        assert any(what in line for line in said), (what, said)
    assert found[-1]["title"] == "policy"
