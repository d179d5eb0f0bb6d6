"""The notebooks, cell by cell, at toy length: their scripts run in this process on a few images."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest

from datasets import registry
from tests.conftest import ROOT
from tests.docs.test_commands import SHORT, SHORT_SCORES, open_few_dsprites
from tests.launch import running

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
SHORTER = {
    "train_nvae": [*running.MODEL, *SHORT],
    "train_flat_vae": SHORT,
    "score": SHORT_SCORES,
    "compare": ["--pictures", "1"],
}


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text())
    assert content["nbformat"] == 4
    return ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == kind]


def run_script(command: list[Any], *, check: bool) -> None:
    """Run a command of the notebooks' ``script``, made short by the flags that come last."""
    name = Path(command[1]).stem
    result = running.call(name, *command[2:], *SHORTER[name])
    assert check
    assert result.code == 0, result.err


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._OPENERS, "dsprites", open_few_dsprites)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    names: dict[str, Any] = {"__name__": "__main__"}
    first, *rest = cells(path, "code")
    monkeypatch.chdir(path.parent)
    exec(compile(first, path.name, "exec"), names)
    assert Path(names["STRATA"]) == ROOT
    names["subprocess"] = SimpleNamespace(run=run_script)
    monkeypatch.chdir(tmp_path)  # what it makes goes here
    for number, cell in enumerate(rest, start=2):
        exec(compile(cell, f"{path.name}, cell {number}", "exec"), names)
    assert os.listdir(tmp_path / "runs")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    """Their outputs belong to one machine, and a picture would fill every later change of the file."""
    for cell in json.loads(path.read_text())["cells"]:
        assert not cell.get("outputs")
