"""All other experiments in one command: their commands, what is read from them, the tables; no training but by the commands' own parsers."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, one_line, run_here
from made_run import made_run
from PIL import Image

from model import ablate, specialise
from model.arguments import read_arguments
from model.evaluate import Result
from model.evaluate_arguments import read_arguments as read_evaluation
from model.figure1_net import Activation, Curve
from model.figure1_result import Result as FigureResult
from model.figure1_result import write_result
from model.figure1_store import Plan as FigurePlan
from model.metrics import Metrics
from model.recipe import read_recipe
from model.retrieve_table import Row
from model.views import name_of
from pipeline import InputError
from tools import experiments, experiments_read, experiments_run, experiments_steps
from tools.experiments_data import class_folders, lay_out
from tools.experiments_plot import write_plot
from tools.experiments_steps import PARTS, Part, Plan, Step, said, step
from tools.experiments_table import TABLES, markdown, spread, tables

CLASSES, TRAIN, VAL = 5, 20, 2
FALLS: tuple[tuple[Activation, float], ...] = (("relu", 20.0), ("tanh", 5.0))  # points of the second epoch


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tar laid out as tiny-20.tar, of five classes; not to be changed by a test."""
    path = tmp_path_factory.mktemp("tiny") / "tiny-5.tar"
    names = [f"t/{split}/n{c}/n{c}_{i:02d}.JPEG" for split, count in (("train", TRAIN), ("val", VAL)) for c in range(CLASSES) for i in range(count)]
    with tarfile.open(path, "w") as tar:
        for name in (*names, "t/words.txt", "t/train/../out.JPEG"):
            content = picture()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Plan:
    return Plan(tiny, tmp_path / "out", seeds=(0, 4), nets=3, changes=("train.log_every=7",))


def words_of(plan: Plan, program: str) -> list[list[str]]:
    """What follows `python -m PROGRAM` in all commands."""
    found = [one.words for part in PARTS.values() for one in part.steps(plan) if one.words[1] == program]
    assert found, program
    return [list(words[2:]) for words in found]


def test_the_pictures_are_shared_out(tiny: Path, tmp_path: Path) -> None:
    for _ in range(2):  # what is there stays
        lay_out(tiny, tmp_path)
    counts = {name: len(list((tmp_path / name / "train").glob("*/*.JPEG"))) for name in ("all", "first", "second", "few")}
    assert counts == {"all": 100, "first": 40, "second": 60, "few": 6}
    halves = [set(class_folders(tmp_path / "all"))] + [{path.name for path in (tmp_path / name / "val").iterdir()} for name in ("first", "second")]
    assert halves == [{"n0", "n1", "n2", "n3", "n4"}, {"n0", "n1"}, {"n2", "n3", "n4"}]
    assert len(list((tmp_path / "few" / "val").glob("*/*.JPEG"))) == 3 * VAL
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all", "few", "first", "second"]


def test_every_training_can_begin(plan: Plan) -> None:
    """Options and recipe keys are read by the training's own parsers, which refuse a net that cannot be."""
    runs = set()
    for words in words_of(plan, "model.train"):
        given = read_arguments(words)
        recipe = read_recipe(given.recipe, given.set)
        assert recipe.train.log_every == 7
        assert given.resume == "auto", "a training that was stopped goes on"
        assert given.new_last_layer == ("tuned" in given.run.name)
        assert (given.init_from is not None) == (given.new_last_layer or "from-A" in given.run.name)
        runs.add((given.run.relative_to(plan.out).as_posix(), recipe.train.seed, getattr(recipe.model, "conv6", None)))
    fine = {(f"finetune/{name}-{seed}", seed, 64) for name in ("first", "scratch-all", "tuned-all", "scratch-few", "tuned-few") for seed in (0, 4)}
    nets = {(f"vgg/{name}", 0, None) for name in ("A", "A-LRN", "A-jitter", "B", "B-from-A", "D", "D-from-A")}
    assert runs == {("ensemble/whole-1", 1, None), *fine, *nets}


def test_the_fine_tuned_net_has_the_epochs_of_the_one_from_scratch(plan: Plan) -> None:
    recipes = {}
    for words in words_of(plan, "model.train"):
        given = read_arguments(words)
        recipes[given.run.name] = read_recipe(given.recipe, given.set).train
    for pictures in ("all", "few"):
        scratch, tuned = (recipes[f"{kind}-{pictures}-4"] for kind in ("scratch", "tuned"))
        assert (
            scratch.model_copy(update={key: getattr(tuned, key) for key in ("last_rate_factor", "last_rate_epochs", "conv1_freeze_epoch")}) == tuned
        )
        assert tuned.last_rate_factor == 10
        assert tuned.last_rate_epochs is not None and tuned.conv1_freeze_epoch is not None  # noqa: PT018
        assert tuned.last_rate_epochs < tuned.conv1_freeze_epoch < tuned.epochs


def test_nets_are_averaged_that_are_there(plan: Plan) -> None:
    seeds, kinds, *vgg = (read_evaluation(words).checkpoint for words in words_of(plan, "model.evaluate"))
    assert {path.parent.parent.name for (path,) in vgg} == {"A", "A-jitter"}
    assert [path.relative_to(plan.out).as_posix() for path in seeds] == [
        f"{run}/checkpoints/latest" for run in ("ablate/whole-0", "ablate/whole-4", "ensemble/whole-1")
    ]
    assert len(kinds) == 5
    assert {path.parent.parent.name.removesuffix("-0") for path in kinds} <= {one.name for one in ablate.ABLATIONS}


def test_the_ablations_are_those_of_the_recipe(plan: Plan) -> None:
    ((*words,),) = words_of(plan, "model.ablate")
    shown = run_here(ablate.main, *words, "--list")
    assert shown.returncode == 0, shown.stderr
    assert "input-224" in shown.stdout
    assert words[words.index("--seeds") + 1] == "0,4"


def test_the_recipe_makes_maps_as_many_places_as_small_pictures_have() -> None:
    recipe = read_recipe("tiny", [])
    assert recipe.alexnet.sides() == (27, 13, 6, 2)
    assert recipe.alexnet.maps[4] == int(experiments_steps.SIXTH.partition("=")[2])


def trained(run: Path, top1: float, top5: float, ended: bool = True) -> None:
    """The metrics of a training, by its own writer."""
    metrics = Metrics(run)
    metrics.write(1, epoch=1, loss_nats=2.5)
    if ended:
        metrics.write(2, val_ten_view_top1_error_percent=top1, val_ten_view_top5_error_percent=top5)
    metrics.close()


def evaluated(plan: Plan, name: str, runs: list[str], wrong: list[int]) -> None:
    """What model.evaluate prints, by its own words."""
    said(plan, name).parent.mkdir(parents=True, exist_ok=True)
    lines = [
        f"/a, b/{run}/checkpoints/latest, {name_of('10', ())}: {Result(200, count, count // 2)}" for run, count in zip(runs, wrong, strict=False)
    ]
    lines.append(f"average of the {len(runs)} nets, {name_of('10', ())}: {Result(200, wrong[-1], 1)}")
    said(plan, name).write_text("a warning: of nothing\n" + "\n".join(lines) + "\n")


def test_averages_are_read_as_they_are_printed(plan: Plan) -> None:
    evaluated(plan, "average-seeds", ["whole-0", "whole-4"], [100, 102, 90])
    evaluated(plan, "average-kinds", ["whole-0", "tanh-0"], [100, 120, 96])
    found = experiments_read.ensemble(plan)["rows"]
    assert [(one["top1"], one["top5"]) for one in found] == [([50, 51], [25, 25.5]), ([45], [0.5]), ([50, 60], [25, 30]), ([48], [0.5])]
    assert found[2]["nets"] == ["whole-0", "tanh-0"]
    said(plan, "average-kinds").write_text("Killed\n")
    with pytest.raises(InputError, match=r"average-kinds\.txt holds no line of errors"):
        experiments_read.ensemble(plan)


def test_vgg_nets_are_read_from_the_runs_and_what_was_said(plan: Plan) -> None:
    for name in ("A", "A-LRN", "A-jitter", "B", "B-from-A", "D", "D-from-A"):
        trained(plan.out / "vgg" / name, 31.25, 14.5)
    said(plan, "x").parent.mkdir(parents=True)
    for number, (net, view) in enumerate((net, view) for net in ("A", "A-jitter") for view in experiments_steps.VGG_VIEWS):
        line = f"{plan.out}/vgg/{net}/checkpoints/latest, {name_of('dense', (112, 128))}: {Result(100, 20 + number, number)}"
        said(plan, experiments_steps.view_name(net, view)).write_text(line + "\n")
    found = {one["what"]: (one["top1"], one["top5"]) for one in experiments_read.vgg(plan)["rows"]}
    assert found["A, 50 crops, one scale"] == ([22], [2])
    assert found["A-jitter, both, one scale"] == ([27], [7])
    assert found["B from A, ten views"] == found["B, ten views"] == ([31.25], [14.5])
    assert len(found) == 7 + 8


def test_fine_tuning_is_read_from_the_runs(plan: Plan) -> None:
    for number, name in enumerate(("first", "scratch-all", "tuned-all", "scratch-few", "tuned-few")):
        for seed in plan.seeds:
            trained(plan.out / "finetune" / f"{name}-{seed}", 30 + number + seed / 10, 20, ended=(name, seed) != ("tuned-few", 4))
    with pytest.raises(InputError, match="tuned-few-4 has no error of ten views"):
        experiments_read.finetune(plan)
    trained(plan.out / "finetune" / "tuned-few-4", 34.4, 21)
    found = experiments_read.finetune(plan)["rows"]
    assert [one["top1"] for one in found] == [[30, 30.4], [31, 31.4], [32, 32.4], [33, 33.4], [34, 34.4]]
    assert found[-1]["top5"] == [20, 21]


def content() -> dict[str, Any]:
    """A result with every part, from what the commands' own classes write."""
    rows = [
        ablate.Outcome(ablate.WHOLE, "nothing taken away", [50.0, 52.0], [20.0, 20.0], (1, 1), (None, None), ""),
        ablate.Outcome("no-lrn", "no LRN", [51.0, 55.0], [21.0, 20.0], (1, 1), (1.4, None), "section 3.3"),
        ablate.Outcome("batch-half", "half the batch", [49.0, 50.0], [20.0, 19.0], (1, 1), (None, None), ""),
    ]
    methods = [Row("exact, features", 1024, 1.0, None, 4321.0, None), Row("codes", 16, 0.5, 0.25, 9876.0, 1.5)]
    errors = {"rows": [experiments_read.row("each of 2 nets", [(50.0, 20.0), (52.0, 20.0)]), experiments_read.row("average", [(48.0, 19.0)])]}
    results: dict[str, Any] = {
        "ablate": {"rows": [asdict(one) for one in rows]},
        "ensemble": errors,
        "finetune": errors,
        "vgg": errors,
        "figure1": {
            "pictures": "64 pictures of 2 classes",
            "plan": {"target": 25.0},
            "rates": {"relu": 0.01, "tanh": 0.002},
            "epochs_to_target": {"relu": [2.0, 4.0], "tanh": [12.0, None]},
            "ratio": 4.5,
            "ratio_is_lower_bound": True,
            "paper_ratio": 6.0,
        },
        "retrieve": {"k": 6, "queries": 100, "pictures": 1000, "methods": [one.as_json() for one in methods]},
    }
    parts = {name: {"what": PARTS[name].what, "seconds": 12.4, "commands": [], "result": one} for name, one in results.items()}
    about = {"date": "2026-01-02T03:04:05", "machine": {"cpu": "a CPU"}, "pictures": {"train": 1000, "classes": 20}}
    return json.loads(json.dumps({**about, "parts": parts}))


def test_the_tables() -> None:
    shown = tables(content())
    assert "## ablate: what each part of the net is worth (12 s)" in shown
    assert "| nothing taken away | 51.0 ± 1.4 | 20.0 ± 0.0 |  |  |  |" in shown
    assert "| no LRN | 53.0 ± 2.8 | 20.5 ± 0.7 | +2.0 ± 1.4 | +0.5 ± 0.7 | +1.4 / - |" in shown
    assert "| half the batch | 49.5 ± 0.7 | 19.5 ± 0.7 | -1.5 ± 0.7 | -0.5 ± 0.7 |  |" in shown
    assert "| average | 1 | 48.0 | 19.0 |" in shown
    assert "| exact, features | 1.000 | - | 1,024 | 4,321 |" in shown
    assert "| tanh | 0.002 | 12.00, not reached |" in shown
    assert "more than 4.5" in shown
    assert spread([1.0]) == "1.0"
    assert markdown(["", "n"], [["a", "1"]]) == "|  | n |\n| --- | ---: |\n| a | 1 |"
    assert set(TABLES) == set(experiments_read.READ) == set(PARTS), "each part is read and shown"


def test_figure_1_is_read_as_it_is_written(plan: Plan) -> None:
    (plan.out / "figure1").mkdir(parents=True)
    curves = {name: [Curve(name, 0.01, seed, [50.0, 40.0, 40.0 - drop], [1.0, 1.0], [0.1, 0.1]) for seed in plan.seeds] for name, drop in FALLS}
    asked = FigurePlan(list(plan.seeds), [0.01], 1, 2, 25.0)
    write_result(plan.out / "figure1", FigureResult(asked, curves, curves, "64 pictures of 2 classes"))
    shown = TABLES["figure1"](experiments_read.figure1(plan)).splitlines()
    assert shown[2] == "| relu | 0.01 | 1.75, 1.75 |"
    assert shown[3] == "| tanh | 0.01 | not reached, not reached |"
    assert "more than 1.1 (the paper, on CIFAR-10: 6)" in shown[4]


def test_the_colour_of_the_columns_is_read_and_shown(plan: Plan) -> None:
    runs = [made_run(plan.whole(seed), ["a", "b"], settings=[f"train.seed={seed}"]) for seed in plan.seeds]
    done = run_here(specialise.main, *runs, "--out", plan.out / "specialise")
    assert done.returncode == 0, done.stderr
    shown = TABLES["specialise"](experiments_read.specialise(plan)).splitlines()
    assert [line.split(" | ")[0] for line in shown[2:]] == ["| seed 0", "| seed 4"]
    assert all(line.endswith(("| yes |", "| no |")) for line in shown[2:])


def test_the_picture(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_plot(content(), tmp_path / f"{name}.png")
    assert Image.open(tmp_path / "a.png").size[0] >= 1000
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def script(plan: Plan, name: str, code: str) -> Step:
    return step(name, plan.out / name, "-c", code.replace("MADE", repr(str(plan.out / name))))


def test_what_is_done_is_not_done_again(plan: Plan) -> None:
    plan.out.mkdir()
    first = script(plan, "first", "open(MADE, 'a').write('x')")
    for _ in range(2):
        experiments_run.run_step(plan, first, experiments_run.Done(plan))
    assert first.makes.read_text() == "x"
    changed = Step(first.name, (*first.words, "more"), first.makes)
    experiments_run.run_step(plan, changed, experiments_run.Done(plan))
    assert first.makes.read_text() == "xx", "another command is another step"
    changed.makes.unlink()
    experiments_run.run_step(plan, changed, experiments_run.Done(plan))
    assert first.makes.read_text() == "x", "what was deleted is made again"
    (command,) = experiments_run.Done(plan).of([changed])
    assert "OUT/first" in command["command"]
    assert str(plan.out) not in command["command"]
    assert command["seconds"] > 0


def test_a_command_that_fails_is_told_with_its_last_line(plan: Plan) -> None:
    plan.out.mkdir()
    bad = script(plan, "bad", "import sys; print('a warning'); sys.exit('error: no such thing; do that')")
    done = experiments_run.Done(plan)
    with pytest.raises(InputError, match=r"^the command bad ended with exit code 1, and said last: no such thing; do that$"):
        experiments_run.run_step(plan, bad, done)
    assert not experiments_run.Done(plan).has(bad)


def test_the_others_go_on_after_a_failure(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole road, shards too, but with two parts whose commands take no time: one looks at the other's runs, which are not there."""

    def averages(plan: Plan) -> list[Step]:
        return [script(plan, "average", "open(MADE, 'w')")]

    def fails(plan: Plan) -> list[Step]:
        return [script(plan, "fails", "raise SystemExit(3)")]

    parts = {"ablate": Part("a part", fails), "finetune": Part("another", averages), "retrieve": Part("a third", averages, ("ablate",))}
    for name in parts:
        monkeypatch.setitem(PARTS, name, parts[name])
    monkeypatch.setitem(experiments.READ, "finetune", lambda plan: content()["parts"]["finetune"]["result"])
    result = tmp_path / "result.json"
    assert experiments.run_all(plan, ["ablate", "finetune", "retrieve"], result) == 2
    out, error = capsys.readouterr()
    assert [line for line in error.splitlines() if line.startswith("failed")] == [
        "failed: ablate: the command fails ended with exit code 3, and said last: nothing",
        "failed: retrieve: it looks at the runs of the part ablate, which is not done; run: --only ablate,retrieve",
    ]
    assert "## finetune: another" in out
    written = json.loads(result.read_text())
    assert list(written["parts"]) == ["finetune"]
    assert written["pictures"] == {"classes": CLASSES, "train": CLASSES * TRAIN, "val": CLASSES * VAL, "size": 128}
    assert str(tmp_path) not in result.read_text(), "no folder of this machine is written down"
    assert experiments.run_all(plan, ["finetune"], result) == 0
    assert "shards-all" not in capsys.readouterr().out, "the shards are there"


def test_stopped_it_stops_what_it_started(tmp_path: Path) -> None:
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '100']); print(p.pid, flush=True); p.wait()"
    code = f"""
import signal, sys; from pathlib import Path; from tools.experiments_run import run
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143)); run(['-c', {child!r}], Path({str(tmp_path / "said")!r}))
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    _wait(lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text().endswith("\n"))
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    pid = int((tmp_path / "said").read_text())
    _wait(lambda: not Path(f"/proc/{pid}").exists() or Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z")


def _wait(there: Callable[[], bool]) -> None:
    for _ in range(600):
        if there():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come to it in a minute")


def test_another_tar_or_setting_needs_another_folder(tiny: Path, tmp_path: Path) -> None:
    experiments.check_origin(Plan(tiny, tmp_path))
    with pytest.raises(InputError, match=r"another tar, --size, --set or tiny\.yaml; name another --out"):
        experiments.check_origin(Plan(tiny, tmp_path, changes=("train.epochs=1",)))


def test_what_cannot_be_used_is_one_line(tiny: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tar", "w"):
        pass
    (tmp_path / "x.tar").write_bytes(b"not a tar" * 100)
    result = ("--result", tmp_path / "result.json", "--out", tmp_path / "out")
    cores = len(os.sched_getaffinity(0))
    for options, words in (
        (("--tiny", tmp_path / "none.tar", *result), ("none.tar", "is not there")),
        (("--tiny", tmp_path / "x.tar", "--result", tmp_path / "result.json", "--out", tmp_path / "x"), ("no whole tar",)),
        (("--tiny", tmp_path / "empty.tar", "--result", tmp_path / "result.json", "--out", tmp_path / "e"), ("the same classes", "0 in train/")),
        (("--tiny", tiny, *result, "--only", "all"), ("--only all is not one of ablate, ensemble",)),
        (("--tiny", tiny, *result, "--seeds", "1,01"), ("--seeds must be different",)),
        (("--tiny", tiny, *result, "--nets", 2), ("--nets must be",)),
        (("--tiny", tiny, *result, "--threads", cores + 1), ("--threads must be",)),
        (("--tiny", tiny, "--result", tmp_path / "none" / "r.json"), ("--result", "folder that exists")),
    ):
        one_line(run_here(experiments.main, *options), *words)
    assert not (tmp_path / "result.json").exists()
