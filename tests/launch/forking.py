"""Scripts as separate processes that start at once, forked from a server that has imported their modules.

A new interpreter spends seven CPU seconds on imports before the first line of a script. Tests of signals, ranks and killed
processes, which do not depend on how a process starts, fork it here instead.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

from tests.conftest import ROOT

SCRIPTS = ("compress", "evaluate", "score", "train_flat_vae", "train_nvae")
PRELOADED = [
    "tests.launch.forking",
    "torch._dynamo",
    "matplotlib.figure",
    "benchmarks.steps",
    *(f"launch.{name}" for name in SCRIPTS),
]
_context = multiprocessing.get_context("forkserver")


def _be(command: list[str], environment: dict[str, str], out: str, err: str) -> None:
    """Run ``SCRIPT ...`` or ``-m MODULE ...`` in the forked child as Python does, output and exit handlers included."""
    for number, path in ((1, out), (2, err)):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    is_module = command[0] == "-m"
    sys.argv = command[is_module:]
    try:
        if is_module:
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(command[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


class Process:
    """A process that runs a script, with the methods of ``subprocess.Popen``; its output goes to files until it ends.

    Args:
        command: a script or ``-m`` and a module, and its arguments.
        environment: all variables of the process; it starts in the repository's root.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._paths = []
        for _ in range(2):
            handle, path = tempfile.mkstemp()
            os.close(handle)
            self._paths.append(Path(path))
        with_root = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        before = {name: os.environ.get(name) for name in with_root}
        os.environ |= with_root
        try:
            _context.set_forkserver_preload(PRELOADED)
            forkserver.ensure_running()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self._process = _context.Process(target=_be, args=(command, environment, *map(str, self._paths)))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) of the process when it has ended, as often as they are asked for.

        Raises:
            subprocess.TimeoutExpired: it has not ended by then.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0.0)
        out, err = (path.read_text(errors="replace") for path in self._paths)
        return out, err

    def __del__(self) -> None:
        for path in self._paths:
            path.unlink(missing_ok=True)
