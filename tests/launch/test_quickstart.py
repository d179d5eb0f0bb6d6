"""The quickstart from its first command to the printed path of the report, with toy images in place of dSprites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datasets import registry
from launch import quickstart
from tests.launch import toy
from tests.launch.running import assert_one_error, call


def run_in_this_process(command: list[str], **_: Any) -> int:
    script = Path(command[1]).stem
    few = ["--shuffles", "2", "--resamples", "4"] if script == "score" else []
    result = call(script, *command[2:], *few)
    assert result.code == 0, result.err
    return result.code


def test_quickstart_ends_with_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(registry._OPENERS, "dsprites", toy.open_toy)
    monkeypatch.setattr(quickstart.process, "run", run_in_this_process)
    short = ["--steps", "3", "--flat-steps", "4", "--images", "24"]
    result = call("quickstart", "--out", tmp_path / "first", *short)
    assert result.code == 0, result.err
    assert str(tmp_path / "first" / "report" / "report.html") in result.out
    assert all(f"[{number}/6] took " in result.out for number in range(1, 7))
    assert (tmp_path / "first" / "zoo-samples.png").is_file()
    record = json.loads((tmp_path / "first" / "report" / "comparison.json").read_text())
    assert record["skipped"] == []
    (one_set,) = record["sets"]  # the two runs are comparable
    assert "bernoulli" in one_set["terms"]["likelihood"]
    assert len(one_set["configurations"]) == 2
    page = (tmp_path / "first" / "report" / "report.html").read_text()
    assert "Short training" in page or "Training:" in page
    assert "single run" in page


def test_a_command_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(quickstart.process, "run", lambda *_, **__: 75)
    assert call("quickstart", "--out", tmp_path).code == 75
    assert_one_error(call("quickstart", "--steps", "0"), "--steps")
