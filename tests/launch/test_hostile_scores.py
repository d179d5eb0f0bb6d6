"""Run folders of unknown origin: a broken record leaves its run out, and names are only displayed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.report.runs import LONGEST_NAME, read_runs
from tests.conftest import ROOT
from tests.launch import toy
from tests.launch.running import call

STORED = ROOT / "tests" / "fixtures" / "runs"
Path_ = tuple[str | int, ...]


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / "nvae", tmp_path / "run"))


def change(file: Path, place: Path_, value: Any) -> None:
    record = json.loads(file.read_text())
    inside = record
    for step in place[:-1]:
        inside = inside[step]
    inside[place[-1]] = value
    file.write_text(json.dumps(record))


WRONG: list[tuple[Path_, Any]] = [
    (("format",), 2),
    (("format",), "1"),
    (("scores",), []),
    (("scores", "mig"), 3),
    (("scores", "mig", "score"), "high"),
    (("scores", "reduced", "rows"), {}),
    (("scores", "reduced", "rows", 0, "mig"), "1e3"),
    (("scores", "reduced", "rows", 0, "dim"), None),
    (("scores", "groups", "matrix"), []),
    (("scores", "groups", "matrix", 0), [0.1]),
    (("scores", "groups", "conditional_gain"), [[1.0]]),
    (("scores", "groups", "entropy", 0), None),
    (("scores", "groups", "kept"), [0, 1, 2, -1]),
    (("protocol", "full_grid"), "no"),
    (("protocol", "seed"), [1]),
    (("held_out", "elbo"), "-3"),
    (("held_out", "rate"), [1.0]),
    (("held_out",), 7),
    (("data", "name"), None),
    (("num_images",), 0),
    (("step",), 1.5),
    (("weights",), "best"),
    (("num_parameters",), True),
    (("factor_names",), "shape"),
    (("group_shapes",), [[1, 2]]),
    (("group_shapes",), []),
    (("kl_of_units",), [1.0]),
    (("checkpoint_sha256",), 5),
]


@pytest.mark.parametrize(("place", "value"), WRONG)
def test_a_wrong_type_in_scores_is_named(place: Path_, value: Any, run: Path) -> None:
    change(run / "scores.json", place, value)
    runs, skipped = read_runs([run, STORED / "flat"], None)
    assert [found.path for found in runs] == [STORED / "flat"]
    (reason,) = skipped
    assert str(run / "scores.json") in reason
    assert str(place[0]) in reason or "group" in reason or "factor" in reason


@pytest.mark.parametrize(("place", "value"), [(("seconds",), "long"), (("images_seen",), [1]), (("step",), -1)])
def test_a_wrong_type_in_the_summary_is_named(place: Path_, value: Any, run: Path) -> None:
    change(run / "summary.json", place, value)
    runs, (reason,) = read_runs([run, STORED / "flat"], None)
    assert len(runs) == 1
    assert "summary.json" in reason
    assert str(place[0]) in reason


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def nested(path: Path) -> None:
    path.write_text("[" * 100_000)


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


@pytest.mark.parametrize("name", ["scores.json", "summary.json", "scores.npz", "config.json"])
@pytest.mark.parametrize("damage", [truncated, nested, not_text])
def test_damaged_files_leave_one_run_out(damage: Callable[[Path], None], name: str, run: Path) -> None:
    damage(run / name)
    runs, skipped = read_runs([run, STORED / "flat"], None)
    assert (len(runs), len(skipped)) == (1, 1)
    assert "\n" not in skipped[0]


def test_a_pipe_in_the_place_of_scores_does_not_wait(run: Path) -> None:
    import os

    (run / "scores.json").unlink()
    os.mkfifo(run / "scores.json")
    runs, skipped = read_runs([run], None)
    assert (len(runs), len(skipped)) == (0, 1)


EVIL = "$\\frac{$ \x1b[31m\n# Heading\n<script>alert(1)</script>" + "x" * 3000


def test_names_are_shown_and_do_nothing(run: Path, tmp_path: Path) -> None:
    """Mathematics, terminal sequences, line ends, mark-up and length: in a preset, a factor, the data and the code."""
    change(run / "config.json", ("config", "preset"), EVIL)
    change(run / "config.json", ("data", "name"), EVIL)
    change(run / "scores.json", ("factor_names", 0), EVIL)
    change(run / "scores.json", ("code",), EVIL)
    (run / "checkpoints" / "step-000000016.pt.sha256").unlink()  # the message names a file out of the folder
    out = tmp_path / "out"
    result = call("compare", "--runs", run, "--out", out, "--pictures", "0", "--no-score-missing")
    assert result.code == 0, result.err
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for text in (result.out, result.err, markdown):
        assert "\x1b" not in text
    assert "\n# Heading" not in markdown
    assert "<script>" not in page
    assert "\x1b" not in page
    label = next(iter(json.loads((out / "comparison.json").read_text())["sets"][0]["configurations"]))
    assert len(label) <= 2 * LONGEST_NAME
    assert len(list((out / "figures").iterdir())) >= 3
