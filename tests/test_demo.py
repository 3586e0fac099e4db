"""The demo's road on a small setting, and the README's word for it."""

from __future__ import annotations

import re
from pathlib import Path

from conftest import ROOT, run_command


def test_the_road_from_archives_to_pictures(tmp_path: Path) -> None:
    small = ["--classes", 4, "--train", 12, "--val", 5, "--side", 96, "--shard-size", 16, "--at-most", 101]
    quick = ["--set", "train.epochs=1", "--set", "train.drop_epochs=[]", "--set", "train.batch=8", "--set", "model.input=99"]
    result = run_command("tools/demo.py", "--folder", tmp_path / "demo", *small, *quick)
    assert result.returncode == 0, result.stderr
    assert re.search(r"top-1 error, ten views +\d+\.\d %  \(chance 75 %\)", result.stdout)
    assert "two ranks on the CPU, one column each" in result.stdout
    for name in ("augmented.png", "run/curves.png", "run/kernels.png", "run/predictions.png"):
        path = tmp_path / "demo" / name
        assert str(path) in result.stdout
        assert path.stat().st_size > 5_000


def test_what_the_readme_names_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    assert not re.search(r"[A-Z]_(TABLE|DATE)", text), "README has a gap that was to be filled in"
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"README names make {target}"
    for path in set(re.findall(r"\]\(([^)]+)\)", text)):
        assert path.startswith("http") or (ROOT / path).exists(), f"README links to {path}"
    for script in set(re.findall(r"python (tools/\w+\.py)", text)):
        assert (ROOT / script).is_file(), f"README names {script}"
    for module in set(re.findall(r"python -m ([\w.]+)", text)):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), f"README names {module}"
    for option in set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text)):
        sources = "".join(path.read_text() for folder in ("tools", "model") for path in (ROOT / folder).glob("*.py"))
        assert f'"{option}"' in sources, f"README names {option}"
