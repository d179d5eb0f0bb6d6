"""No process that we start outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.console import errors
from tests.conftest import ROOT
from tests.launch.running import environment

CHILD = """
import pathlib, signal, sys, time
sys.path.insert(0, {root!r})
from launch.console import errors
def main(arguments):
    stop = errors.StopRequest()
    stop.deferred = True
    (pathlib.Path(arguments[0]) / "started").touch()
    while not stop.asked:
        time.sleep(0.01)
    (pathlib.Path(arguments[0]) / "saved").touch()
    raise errors.Preempted("stopped; go on")
errors.main(main)
"""

PARENT = """
import sys
sys.path.insert(0, {root!r})
from launch.console import errors
from launch.training import jobs
from launch.machine import process
def work(name):
    code = process.run([sys.executable, *{child!r}])
    return f"exit code {{code}}" if code else None
def main(arguments):
    errors.stop_with_children()
    if {threads}:
        jobs.run_all(["a", "b", "c"], work, lambda job: False, 1, threads=True)
    else:
        work("a")
errors.main(main)
"""


def wait(path: Path, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} never came"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("number", "threads", "code"),
    [(signal.SIGTERM, True, 75), (signal.SIGINT, False, 75), (signal.SIGKILL, True, -signal.SIGKILL)],
)
def test_a_signal_to_the_parent_stops_the_child_too(number: int, threads: bool, code: int, tmp_path: Path) -> None:
    """Even if the parent is killed, the child saves its state."""
    child = tmp_path / "child.py"
    child.write_text(CHILD.format(root=str(ROOT)))
    program = PARENT.format(root=str(ROOT), child=[str(child), str(tmp_path)], threads=threads)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait(tmp_path / "started")
    os.kill(parent.pid, number)
    wait(tmp_path / "saved")
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == code, said
    assert "Traceback" not in said


def test_a_second_sigterm_while_the_child_saves_changes_nothing(tmp_path: Path) -> None:
    """`timeout` sends one to the process and one to its group; the second ended in a traceback."""
    child = tmp_path / "child.py"
    lingers = (
        '(pathlib.Path(arguments[0]) / "asked").touch()\n'
        '    while not (pathlib.Path(arguments[0]) / "go").exists():\n'
        "        time.sleep(0.01)\n    "
    )
    child.write_text(
        CHILD.format(root=str(ROOT)).replace(
            '(pathlib.Path(arguments[0]) / "saved")', lingers + '(pathlib.Path(arguments[0]) / "saved")'
        )
    )
    program = PARENT.format(root=str(ROOT), child=[str(child), str(tmp_path)], threads=False)
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    wait(tmp_path / "started")
    parent.send_signal(signal.SIGTERM)
    wait(tmp_path / "asked")
    parent.send_signal(signal.SIGTERM)
    (tmp_path / "go").touch()
    _, said = parent.communicate(timeout=60)
    assert parent.returncode == errors.EXIT_PREEMPTED, said
    assert "Traceback" not in said
    assert (tmp_path / "saved").exists()
