"""Generated images, a tiny model, and the scripts, run in this process or in one of their own."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from launch.console import errors
from launch.machine import process as child_processes
from launch.training import checkpoint
from tests.conftest import ROOT
from tests.launch import forking

STEPS = 16
MODEL = ["--preset", "tiny", "--num-scales", "2", "--groups-per-scale", "1", "1", "--latent-channels", "2"]
MODEL += ["--channels-enc", "4", "--channels-dec", "4", "--num-mixtures", "2"]
LENGTH = ["--max-steps", str(STEPS), "--checkpoint-every", "3", "--eval-every", "8", "--log-every", "1"]
LENGTH += ["--figure-images", "4", "--iw-samples", "2"]
COUNTS = {"train": 18, "valid": 5, "test": 7}


def draw(root: Path, counts: dict[str, int] | None = None, height: int = 12, width: int = 16) -> Path:
    """Smooth colour waves, sorted into split folders; not square, so that a swapped axis shows."""
    number = 0
    for split, count in (counts or COUNTS).items():
        (root / split).mkdir(parents=True)
        for _ in range(count):
            phase = np.random.default_rng(number).uniform(0.0, 6.0, (3, 3))
            y, x = np.mgrid[:height, :width]
            waves = [127 + 100 * np.sin(a + b * y / 9 + c * x / 9) for a, b, c in phase]
            Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(root / split / f"{number:03d}.png")
            number += 1
    return root


def flags(data: Path, run: Path, *more: str, batch: int = 4) -> list[str]:
    """Command line of a small training run."""
    where = ["--dataset", "folder", "--data-root", str(data), "--run-dir", str(run)]
    return [*where, *MODEL, *LENGTH, "--batch-size", str(batch), *more]


class Result(NamedTuple):
    code: int
    out: str
    err: str


@contextlib.contextmanager
def blank_plots() -> Iterator[None]:
    """Leave plots blank where a test looks at something else: drawing them takes most of a short run."""

    def save_blank(_: Figure, file: IO[bytes], *, format: str, **__: object) -> None:
        if format == "svg":
            file.write(b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>')
        else:
            Image.new("RGB", (8, 8), "white").save(file, format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", save_blank)
        patch.setattr(Figure, "draw_without_rendering", lambda _: None)
        patch.setattr(Figure, "get_tightbbox", lambda _: Bbox.unit())
        yield


def call(script: str, *arguments: object, draws: bool | None = None) -> Result:
    """Run a typed command without the cost of starting torch again; restore the signal handlers afterwards.

    Args:
        script: its name below ``launch/``, with a dot for a slash.
        arguments: the command line.
        draws: whether it draws its plots; by default all scripts do but those that train.
    """
    if draws is None:
        draws = not script.startswith("train_")
    module = importlib.import_module(f"launch.{script}")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    said, warned = io.StringIO(), io.StringIO()
    with (
        contextlib.nullcontext() if draws else blank_plots(),
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(warned),
    ):
        patch.setattr(sys, "argv", [f"launch/{script}.py", *map(str, arguments)])
        patch.setattr(threading, "excepthook", threading.excepthook)  # put back too
        try:
            with pytest.raises(SystemExit) as left:
                errors.main(module.main)
        finally:
            child_processes._stopping.clear()  # a script that was stopped starts no more children in its process
            for number, handler in before.items():
                signal.signal(number, handler)
    return Result(int(left.value.code or 0), said.getvalue(), warned.getvalue())


def do_job(command: Sequence[str], log: Path, *more: str) -> int:
    """Run the command of a study's job in this process, with its output in ``log``, for ``jobs.Devices.run``."""
    result = call(Path(command[1]).stem, *command[2:], *more)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(result.out + result.err)
    return result.code


def environment() -> dict[str, str]:
    """Environment of child processes: one thread each, without this process's rank."""
    ours = {k: v for k, v in os.environ.items() if k not in {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}}
    return {**ours, "OMP_NUM_THREADS": "1"}


def start(script: str, *arguments: object) -> forking.Process:
    """The script as a process of its own."""
    return forking.Process([str(ROOT / "launch" / f"{script}.py"), *map(str, arguments)], environment())


def run(*command: object) -> Result:
    """A script, or ``-m`` and a module, with its arguments in a process of its own, to its end."""
    process = forking.Process([*map(str, command)], environment())
    out, err = process.communicate()
    return Result(int(process.returncode or 0), out, err)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextlib.contextmanager
def ranks(number: int, script: Path, *arguments: object, per_machine: int = 8) -> Iterator[list[forking.Process]]:
    """Processes of one run without torchrun, which would stop all if one ends; they are killed at the end of the block."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    started = []
    try:
        for rank in range(number):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank % per_machine)}
            own |= {"LOCAL_WORLD_SIZE": str(min(number, per_machine))}
            command = [str(script), *map(str, arguments)]
            started.append(forking.Process(command, environment() | common | own))
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate(timeout=30)


def finish(process: forking.Process, seconds: float = 120.0) -> Result:
    """Wait until the process ends without being killed."""
    out, err = process.communicate(timeout=seconds)
    return Result(int(process.returncode or 0), out, err)


def torchrun(script: Path, *arguments: object, processes: int = 2) -> Result:
    """``torchrun --standalone`` on this machine; it finds its own port."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*starter, str(script), *map(str, arguments)],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[str] | forking.Process, seconds: float = 120.0
) -> None:
    """Wait until ``condition`` holds; fail with the process's output if it ends first or hangs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            for pid in (*children(process.pid), process.pid):  # torchrun's workers too: they hold the pipe
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            pytest.fail(f"ended with {process.poll()}: {process.communicate(timeout=30)[1][-2000:]}")
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that still exist."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(entry.name))
    return found


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in line.items() if k not in {"seconds", "cpu_seconds", "speed/images_per_s"}} for line in lines
    ]


def newest(run: Path) -> dict[str, Any]:
    """Content of the newest checkpoint, without where the run lives and how it was resumed."""
    content = checkpoint.load(checkpoint.find(run / "checkpoints")[0])
    for name in ("run_dir", "resume", "stop_at_step", "batch_size"):
        del content["config"]["run"][name]
    return content


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit for bit, in any depth; tensors with one NaN pattern count as the same."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(bits(one), bits(other)), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, f"{where}: {one} != {other}"


def assert_same_run(run: Path, reference: Path) -> None:
    """Weights, averages, optimiser, power iteration, counters and every recorded number, bit for bit."""
    assert_same(newest(run), newest(reference))
    assert records(run) == records(reference)


def assert_one_error(result: Result, *words: str) -> None:
    """Assert exit code 2, a line that says what is wrong, a line that says what to do, and no traceback."""
    assert result.code == errors.EXIT_BAD_INPUT, result
    lines = [line for line in result.err.splitlines() if line.strip()]
    assert "Traceback" not in result.err, result.err
    assert [line[:7] for line in lines if line.startswith(("error: ", "  fix: "))] == ["error: ", "  fix: "], result.err
    assert lines[-2].startswith("error: "), result.err
    assert lines[-1].startswith("  fix: "), result.err
    for word in words:
        assert word in result.err, f"{word!r} is not in {result.err!r}"
