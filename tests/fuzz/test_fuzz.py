"""A bounded run of the fuzzers; ``STRATA_FUZZ_CASES=10000 pytest tests/fuzz`` is the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.fuzz.fuzz import SHARE
from tests.fuzz.targets import TARGETS
from tests.launch.running import environment

CASES = int(os.environ.get("STRATA_FUZZ_CASES", "200"))
NEVER_REFUSED = {"exif", "event-files", "script-log"}  # these are read whatever they say
MOST_GIB = 1.6  # torch, scipy and PIL take 0.5; a case may take 1 more


@pytest.fixture(scope="module")
def fuzzed() -> dict[str, dict[str, Any]]:
    """All targets in one process, whose start costs more than the cases; each is forked with its own bound."""
    command = [sys.executable, str(ROOT / "tests" / "fuzz" / "fuzz.py"), "--cases", str(CASES)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {said["target"]: said for said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_or_right(name: str, fuzzed: dict[str, dict[str, Any]]) -> None:
    said = fuzzed[name]
    assert said["findings"] == []
    assert said.get("refused", 0) + said.get("read", 0) == CASES // SHARE.get(name, 1)
    assert said.get("refused", 0) > 0 or name in NEVER_REFUSED
    assert said["peak_GiB"] < MOST_GIB
