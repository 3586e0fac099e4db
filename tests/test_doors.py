"""Who may import whom: tools -> pipeline; model -> pipeline's public face; nothing imports tools, pipeline knows no model."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from conftest import ROOT

import pipeline

NETWORK = {
    "alexnet",
    "net",
    "nets",
    "net_design",
    "vgg",
    "vgg_design",
    "columns",
    "design",
    "lrn",
    "sgd",
    "schedule",
    "stop",
    "launch",
    "exchange",
    "hybrid",
    "convolve",
    "ways",
    "lrn_pool",
    "lrn_pool_cpu",
    "lrn_pool_kernel",
    "sgd_cpu",
    "sgd_kernel",
    "graphed",
}  # know nothing of pictures or shards
MEASURE_THE_MODEL = ("bench_step", "bench_endtoend", "bench_growth", "bench_curve", "roofline")  # benchmarks of it, and their parts


def imports(path: Path) -> list[tuple[str, list[str]]]:
    """(module, names taken from it) of every import in a file."""
    found: list[tuple[str, list[str]]] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, []) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append((node.module or "", [alias.name for alias in node.names]))
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").glob("*.py")), ids=lambda path: path.name)
def test_pipeline_knows_neither_model_nor_tools(path: Path) -> None:
    for module, _ in imports(path):
        assert module.split(".")[0] not in ("model", "tools"), f"{path} imports {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "model").glob("*.py")), ids=lambda path: path.name)
def test_model_uses_only_the_public_face_of_pipeline(path: Path) -> None:
    for module, names in imports(path):
        top = module.split(".")[0]
        assert top not in ("tools", "tarfile", "nvidia", "webdataset"), f"{path} imports {module}"
        if top == "pipeline":
            assert path.stem not in NETWORK, f"{path} imports pipeline"
            assert module == "pipeline", f"{path} reaches into {module}"
            assert set(names) <= set(pipeline.__all__), f"{path} takes {names}"


@pytest.mark.parametrize("path", sorted((ROOT / "tools").glob("*.py")), ids=lambda path: path.name)
def test_tools_do_not_import_the_model(path: Path) -> None:
    for module, _ in imports(path):
        if not path.stem.startswith(MEASURE_THE_MODEL):
            assert module.split(".")[0] != "model", f"{path} imports {module}"


def test_every_public_name_is_there() -> None:
    for name in pipeline.__all__:
        assert name.isupper() or getattr(pipeline, name).__name__ == name
