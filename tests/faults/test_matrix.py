"""A few cells of the matrix of faults; ``python tests/faults/matrix.py`` runs them all."""

from __future__ import annotations

import json

from tests.conftest import ROOT
from tests.faults import matrix
from tests.launch import running

COMMANDS, FAULTS = ["train", "evaluate", "compress"], ["full disk", "closed pipe", "renamed"]


def test_a_few_faults_end_as_they_may() -> None:
    script = ROOT / "tests" / "faults" / "matrix.py"
    done = running.run(script, "--commands", *COMMANDS, "--faults", *FAULTS)
    assert done.code == 0, done.err[-3000:]
    cells = [json.loads(line) for line in done.out.splitlines()]
    assert [(cell["command"], cell["fault"]) for cell in cells] == [(c, f) for c in COMMANDS for f in FAULTS]
    assert [cell for cell in cells if not cell["right"]] == []
    assert [cell["code"] for cell in cells] == [2, 0, 2, 2, 0, 2, 2, 0, 0]


def test_the_table_shows_what_is_wrong() -> None:
    cell = {
        "command": "train",
        "fault": "EIO",
        "code": 1,
        "right": False,
        "made": False,
        "error": "a|b",
        "left": "run: step 4",
    }
    codes, said = matrix.table([cell, {**cell, "fault": "no git", "code": 0, "right": True}]).split("\n\n")
    assert "| EIO | **1** |" in codes
    assert "| no git | 0 |" in codes
    assert said.splitlines()[2:] == ["| EIO | train | 1 | a\\|b | run: step 4 |"]
