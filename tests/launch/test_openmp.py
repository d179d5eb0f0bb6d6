"""The waiting policy of OpenMP threads is set before PyTorch is imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, sys
import launch
assert "torch" not in sys.modules
print(os.environ.get("GOMP_SPINCOUNT"), os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.parametrize(
    ("chosen", "found"),
    [
        ({}, "1000 None"),
        ({"GOMP_SPINCOUNT": "7"}, "7 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None active"),
    ],
)
def test_the_spin_is_short_unless_the_user_chose(chosen: dict[str, str], found: str) -> None:
    others = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=others | chosen, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == found


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "launch").glob("[a-z]*.py")))
def test_scripts_import_launch_before_torch(script: str) -> None:
    lines = (ROOT / "launch" / f"{script}.py").read_text().splitlines()
    ours = next(i for i, line in enumerate(lines) if line.startswith(("from launch", "import launch")))
    theirs = (
        "import torch",
        "from torch",
        "import datasets",
        "from datasets",
        "import metrics",
        "from metrics",
        "from nvae",
    )
    assert all(ours < i for i, line in enumerate(lines) if line.startswith(theirs))
