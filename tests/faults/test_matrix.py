"""A few cells of the matrix of faults; ``python tests/faults/matrix.py`` runs them all."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.conftest import ROOT
from tests.launch.running import environment


def test_a_few_faults_end_as_they_may() -> None:
    faults = ["read-only", "closed pipe", "no HOME", "EIO"]
    command = [
        sys.executable,
        str(ROOT / "tests" / "faults" / "matrix.py"),
        "--commands",
        "evaluate",
        "--faults",
        *faults,
    ]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = [json.loads(line) for line in done.stdout.splitlines()]
    assert [cell["fault"] for cell in cells] == faults
    assert [cell for cell in cells if not cell["right"]] == []
