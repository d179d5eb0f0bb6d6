"""Kill -9, resume, compare, again and again; the short version is part of the ordinary suite."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.launch import running

LOOP = ROOT / "tests" / "soak" / "kill_loop.py"
KILLS = int(os.environ.get("STRATA_SOAK_KILLS", "30"))


def soak(folder: Path, *more: str, ranks: int, kills: int, seed: int = 0) -> dict[str, Any]:
    data = running.draw(folder / "images")
    done = running.run(LOOP, data, folder, "--ranks", ranks, "--kills", kills, "--seed", seed, *more)
    assert done.code == 0, done.err[-3000:]
    said: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    print(said)
    return said


def assert_nothing_lost(said: dict[str, Any], kills: int) -> None:
    assert said["kills"] >= kills
    assert said["lost"] == []
    assert said["orphans"] == 0
    assert said["runs"] >= 1  # each was compared with the uninterrupted run, bit for bit


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_few_kills(ranks: int, tmp_path: Path) -> None:
    assert_nothing_lost(soak(tmp_path, "--kinds", "plain", ranks=ranks, kills=2, seed=ranks), 2)


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [1, 2])
def test_many_kills(ranks: int, tmp_path: Path) -> None:
    """Every kind of run in turn; ``STRATA_SOAK_KILLS`` changes the number for each."""
    assert_nothing_lost(soak(tmp_path, ranks=ranks, kills=KILLS), KILLS)
