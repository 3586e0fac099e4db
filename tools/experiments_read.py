"""What the commands of tools/experiments.py have found, read from what they wrote and printed. Errors in percent."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from tools.experiments_steps import MIXED, TUNING, VGG, VGG_FROM_A, VGG_NETS, VGG_VIEWS, Plan, said, view_name
from tools.run_files import read_metrics

# One line of model.evaluate: a checkpoint or the average of several, what was seen of each picture, and the errors.
LINE = re.compile(r"^(?P<net>.+), (?P<views>[^:]+): top-1 error (?P<top1>[\d.]+) % \(.*\), top-5 error (?P<top5>[\d.]+) % \(.*\)$")
AVERAGE = re.compile(r"average of the \d+ nets")
Row = dict[str, Any]  # what: words; top1, top5: lists of percent, one a training or net; more by part


def row(what: str, errors: list[tuple[float, float]], **more: object) -> Row:
    return {"what": what, "top1": [top1 for top1, _ in errors], "top5": [top5 for _, top5 in errors], **more}


def read_json(path: Path) -> Any:
    """Raises InputError."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete it, and the same command makes it again") from None


def errors_of_run(run: Path) -> tuple[float, float]:
    """Top-1 and top-5 of the ten views at the end of a training. Raises InputError."""
    last = read_metrics(run)[-1]
    try:
        return last["val_ten_view_top1_error_percent"], last["val_ten_view_top5_error_percent"]
    except KeyError:
        raise InputError(f"{run} has no error of ten views at its end; delete the folder, and the same command trains it again") from None


def errors_said(path: Path) -> list[tuple[str, float, float]]:
    """(net, top-1, top-5) of each line of model.evaluate, the average's last; a net's name is that of its run's folder. Raises InputError."""
    found = [match for match in map(LINE.match, path.read_text("utf-8").splitlines()) if match]
    if not found:
        raise InputError(f"{path} holds no line of errors; delete it, and the same command evaluates again")
    return [(_net(match["net"]), float(match["top1"]), float(match["top5"])) for match in found]


def _net(words: str) -> str:
    return "average" if AVERAGE.fullmatch(words) else Path(words).parent.parent.name


def ablate(plan: Plan) -> dict[str, Any]:
    """The rows of model.ablate as they are."""
    return {"rows": read_json(plan.out / "ablate" / "ablations.json")}


def ensemble(plan: Plan) -> dict[str, Any]:
    rows = []
    for name, kind in (("average-seeds", "of other seeds"), ("average-kinds", "of other kinds")):
        *each, (last, *average) = errors_said(said(plan, name))
        if last != "average" or not each:
            raise InputError(f"{said(plan, name)} does not end with the average of several nets; delete it, and the same command evaluates again")
        rows.append(row(f"each of {len(each)} nets {kind}", [(top1, top5) for _, top1, top5 in each], nets=[net for net, _, _ in each]))
        rows.append(row(f"average of the {len(each)}", [(average[0], average[1])]))
    return {"rows": rows, "kinds": list(MIXED)}


def finetune(plan: Plan) -> dict[str, Any]:
    folder = plan.out / "finetune"

    def of(name: str) -> list[tuple[float, float]]:
        return [errors_of_run(folder / f"{name}-{seed}") for seed in plan.seeds]

    rows = [row("the first half of the classes", of("first"))]
    for pictures, words in (("all", "the second half"), ("few", "a tenth of the second half's pictures")):
        rows.append(row(f"{words}, from scratch", of(f"scratch-{pictures}"), settings=list(TUNING[pictures])))
        rows.append(row(f"{words}, from the first half's net", of(f"tuned-{pictures}"), settings=list(TUNING[pictures])))
    return {"rows": rows}


def vgg(plan: Plan) -> dict[str, Any]:
    rows = []
    for name in (*VGG_NETS, *(f"{name}-from-A" for name in VGG_FROM_A)):
        rows.append(row(f"{name.replace('-from-', ' from ')}, ten views", [errors_of_run(plan.out / "vgg" / name)]))
        for view in VGG_VIEWS if name in ("A", "A-jitter") else ():
            (_, *errors), *_ = errors_said(said(plan, view_name(name, view)))
            rows.append(row(f"{name}, {view}", [(errors[0], errors[1])]))
    return {"rows": rows, "settings": list(VGG)}


def figure1(plan: Plan) -> dict[str, Any]:
    """Without the curves, which stay in OUT/figure1."""
    found = read_json(plan.out / "figure1" / "figure1.json")
    return {key: found[key] for key in ("pictures", "plan", "batch", "rates", "epochs_to_target", "ratio", "ratio_is_lower_bound", "paper_ratio")}


def specialise(plan: Plan) -> dict[str, Any]:
    return dict(read_json(plan.out / "specialise" / "specialise.json"))


def retrieve(plan: Plan) -> dict[str, Any]:
    return dict(read_json(plan.out / "retrieve" / "retrieval.json"))


READ: dict[str, Callable[[Plan], dict[str, Any]]] = {
    "ablate": ablate,
    "ensemble": ensemble,
    "finetune": finetune,
    "vgg": vgg,
    "figure1": figure1,
    "specialise": specialise,
    "retrieve": retrieve,
}
