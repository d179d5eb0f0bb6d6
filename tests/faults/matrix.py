"""Faults of the machine against every command: ``python tests/faults/matrix.py [--commands C ...] [--faults F ...]``.

Each cell runs a script in a process of its own, on the toy data set and a run of a few steps, under one fault, and prints
a JSON line: its exit code, whether that is one that the fault allows, what it said last, and what is left of the run.
``--table`` turns such lines into the tables of docs/reliability.md.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import IO, Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import pytest
import torch
import torch._dynamo  # the first optimiser or model of a process imports it: once here, and not in each fork

from launch import compare, compress, evaluate, quickstart, sample, score, sweep, train_flat_vae, train_nvae
from launch.console import errors
from launch.machine import process
from launch.training import checkpoint
from tests.launch import running, toy

SCRIPTS: list[ModuleType] = [train_flat_vae, train_nvae, sweep, evaluate, score, compare, compress, sample, quickstart]
MAINS = {module.__name__.rpartition(".")[2]: module.main for module in SCRIPTS}
SECONDS = 300
TOY = ["--dataset", "toy", "--preset", "tiny", "--max-steps", "8", "--checkpoint-every", "2", "--eval-every", "4"]
TOY += ["--log-every", "1", "--batch-size", "8", "--figure-images", "4", "--iw-samples", "2", "--conv-channels", "1"]
TOY += ["--latent-dim", "3"]
SCORED = ["--images", "54", "--elbo-images", "54", "--dims", "2", "--shuffles", "2", "--resamples", "2"]

Fault = Callable[[Path], None]
"""Causes the fault in the process that runs the script, once its inputs exist; takes the folder of the cell."""


def _limit_files(home: Path) -> None:
    """Keep files from growing, as on a full disk or beyond a quota."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _on_open(refuse: Callable[[str, bool], None], home: Path) -> None:
    """Call ``refuse(path, writes)`` before any file below ``home`` is opened, made, renamed or removed."""
    changing = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" and event not in changing:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike) or not os.fsdecode(path).startswith(str(home)):
            return
        writes = event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        refuse(os.fsdecode(path), writes)

    sys.addaudithook(hook)


def _read_only(home: Path) -> None:
    def refuse(path: str, writes: bool) -> None:
        if writes:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    _on_open(refuse, home)


def _unreadable(home: Path) -> None:
    """The newest checkpoint is on a bad sector."""
    newest = {str(found[0]) for folder in home.rglob("checkpoints") if (found := checkpoint.find(folder))}

    def refuse(path: str, writes: bool) -> None:
        if path in newest and not writes:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    _on_open(refuse, home)


def _renamed(home: Path) -> None:
    """Move the run folders away when a training script opens its fortieth file, or a reading script first writes one."""
    reads, opened = (home / "other").exists(), 0

    def move(path: str, writes: bool) -> None:
        nonlocal opened
        opened += writes or not reads
        if opened == (1 if reads else 40):
            opened += 1  # moving opens no file, but it changes one
            for run in [p for p in home.iterdir() if p.is_dir() and not p.name.endswith("-moved")]:
                os.rename(run, run.with_name(run.name + "-moved"))

    _on_open(move, home)


def _closed_pipe(home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.dup2(writer, 1)
    os.dup2(writer, 2)


def _full_log(home: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 1)
    os.dup2(full, 2)


def _no_git(home: Path) -> None:
    os.environ["PATH"] = ""


def _no_home(home: Path) -> None:
    os.environ.pop("HOME", None)
    import pwd

    def nobody(uid: int) -> Any:
        raise KeyError(uid)

    pwd.getpwuid = nobody  # type: ignore[assignment]


def _clock_set_back(home: Path) -> None:
    real = time.time
    time.time = lambda: real() - 10 * 365 * 86_400


def _no_memory(home: Path) -> None:
    """The allocator refuses the first tensor of more than a few bytes that the script asks for."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    torch.Tensor.to = refuse  # type: ignore[method-assign,assignment]
    torch.Tensor.float = refuse  # type: ignore[method-assign,assignment]


FAULTS: dict[str, tuple[Fault, set[int]]] = {
    "full disk": (_limit_files, {0, 2}),
    "read-only": (_read_only, {0, 2}),
    "closed pipe": (_closed_pipe, {0}),
    "full log": (_full_log, {0}),
    "no git": (_no_git, {0}),
    "no HOME": (_no_home, {0}),
    "EIO": (_unreadable, {0, 2}),
    "clock back": (_clock_set_back, {0}),
    "renamed": (_renamed, {0, 2}),
    "OOM": (_no_memory, {0, 2, 4}),
}


def _commands(home: Path) -> dict[str, tuple[str, list[str]]]:
    run, other = str(home / "run"), str(home / "other")
    return {
        "train": ("train_flat_vae", [*TOY, "--objective", "beta", "--run-dir", run, "--resume", "auto"]),
        "replicas": (
            "train_flat_vae",
            [*TOY, "--objective", "beta", "--replicas", "2", "--run-dir", str(home / "replicas"), "--resume", "auto"],
        ),
        "sweep": (
            "sweep",
            [
                "--values",
                "1",
                "--seeds",
                "1",
                "--out",
                str(home / "sweep"),
                "--workers",
                "1",
                "--",
                *TOY,
                "--objective",
                "beta",
            ],
        ),
        "evaluate": ("evaluate", ["--run", run, "--iw-samples", "2"]),
        "score": ("score", ["--run", run, *SCORED]),
        "compare": ("compare", ["--runs", run, other, "--out", str(home / "report")]),
        "compress": ("compress", ["--run", run, "--images", "4", "--out", str(home / "images.strata")]),
        "quickstart": (
            "quickstart",
            ["--out", str(home / "quickstart"), "--steps", "4", "--flat-steps", "4", "--images", "54"],
        ),
    }


RESULTS = {  # what a command that ends with 0 has made
    **{"train": "run/summary.json", "replicas": "replicas/seed1/summary.json", "sweep": "sweep/results.json"},
    **{"evaluate": "run/evaluation-test.json", "score": "run/scores.json", "compare": "report/report.html"},
    **{"compress": "images.strata", "quickstart": "quickstart/report/report.html"},
}


def _prepare(home: Path, command: str, made: Path) -> None:
    """A run half way for training, a finished and scored one for readers."""
    if command == "train":
        shutil.copytree(made / "half", home / "run")
    elif command not in {"replicas", "sweep", "quickstart"}:
        for name in ("run", "other"):
            shutil.copytree(made / "whole", home / name)
    if command == "score":
        (home / RESULTS[command]).unlink()


def _in_this_process(script: str, arguments: list[str]) -> int:
    """Run a script's start in this process, up to its exit code."""
    sys.argv = [f"launch/{script}.py", *arguments]
    try:
        errors.main(MAINS[script])
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("a script ends")


def _forked(script: str, arguments: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Run a script in a fork of this process, which saves the start of torch and inherits the fault."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            before()
            code = _in_this_process(script, arguments)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def _run_child(command: list[str], *, output: IO[str] | None = None, **_: Any) -> int:
    """Run a child of sweep or quickstart in a fork instead of a new interpreter, so that it meets the fault too."""

    def into_log() -> None:
        if output is not None:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)

    return _forked(Path(command[1]).stem, command[2:], into_log)


def _toy_commands(config: quickstart.QuickstartConfig) -> list[tuple[str, list[str]]]:
    """quickstart's commands on the toy data and a model of a few weights."""
    found = []
    for why, command in _quickstart_commands(config):
        words = [word for word in command if word not in ("--dsprites-source", "rendered")]
        words = ["toy" if word == "dsprites" else word for word in words]
        small = (
            running.MODEL[2:]
            if "train_nvae" in words[0]
            else ["--conv-channels", "1"]
            if "train_flat" in words[0]
            else []
        )
        found.append((why, [*words, *small]))
    return found


_quickstart_commands = quickstart.commands


def cell(command: str, fault: str, made: Path) -> dict[str, Any]:
    """Run one command under one fault."""
    home = Path(tempfile.mkdtemp(prefix="fault-"))
    _prepare(home, command, made)
    script, arguments = _commands(home)[command]
    reader, writer = os.pipe()  # a file could not grow under the fault that limits file sizes
    pieces: list[bytes] = []
    listener = threading.Thread(target=lambda: pieces.extend(iter(lambda: os.read(reader, 65_536), b"")))
    listener.start()
    bring_about, allowed = FAULTS[fault]

    def before() -> None:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.alarm(SECONDS)
        bring_about(home)

    began = time.monotonic()
    code = _forked(script, arguments, before)
    os.close(writer)
    listener.join()
    os.close(reader)
    said = b"".join(pieces).decode(errors="replace")
    problem = next((line for line in said.splitlines() if line.startswith("error: ")), "")
    left, is_made = _left(home), (home / RESULTS[command]).exists()
    shutil.rmtree(home)
    is_right = code in allowed and "Traceback" not in said and (code == 0) == (not problem) and (is_made or code != 0)
    return {
        **{"command": command, "fault": fault, "code": code, "right": is_right, "made": is_made, "left": left},
        "error": problem[7:].replace(str(home), ""),
        **{"seconds": round(time.monotonic() - began, 1), "tail": "" if is_right else said[-1500:]},
    }


def _left(home: Path) -> str:
    """State of the run folder after a cell, in a word or two."""
    found = []
    for run in sorted({path.parent for path in home.rglob("config.json")}):
        valid = next(checkpoint.newest_valid(run / "checkpoints", lambda text: None), None)
        step = valid[1]["step"] if valid else None
        found.append(f"{run.name}: step {step}{', summary' if (run / 'summary.json').exists() else ''}")
    return "; ".join(found)


def _say_on_stderr() -> None:
    os.dup2(2, 1)


def make_runs(made: Path) -> None:
    """The runs that the cells start from: one stopped half way, one finished and scored."""
    half, whole = str(made / "half"), str(made / "whole")
    steps = ["--objective", "beta", "--run-dir"]
    for script, arguments in (
        ("train_flat_vae", [*TOY, *steps, half, "--stop-at-step", "4"]),
        ("train_flat_vae", [*TOY, *steps, whole]),
        ("score", ["--run", whole, *SCORED]),
    ):
        code = _forked(script, arguments, _say_on_stderr)
        assert code == 0, (script, code)


def table(lines: list[dict[str, Any]]) -> str:
    """Exit codes of faults (rows) and commands (columns), bold where wrong, and what was said and kept where it is not 0."""
    commands, faults = (list(dict.fromkeys(line[name] for line in lines)) for name in ("command", "fault"))
    found = {(line["fault"], line["command"]): line for line in lines}

    def code(fault: str, command: str) -> str:
        cell = found.get((fault, command))
        return "" if cell is None else str(cell["code"]) if cell["right"] else f"**{cell['code']}**"

    codes = [["fault", *commands], ["---"] * (len(commands) + 1)]
    codes += [[fault, *(code(fault, command) for command in commands)] for fault in faults]
    said = [["fault", "command", "code", "message", "kept"], ["---"] * 5]
    said += [
        [line["fault"], line["command"], str(line["code"]), line["error"].replace("|", "\\|"), line["left"]]
        for line in sorted(lines, key=lambda line: faults.index(line["fault"]))
        if line["code"]
    ]
    return "\n\n".join("\n".join("| " + " | ".join(row) + " |" for row in rows) for rows in (codes, said))


def main() -> None:
    """Run cells and print a line for each, or a table of lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", nargs="*", default=list(_commands(Path())))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS))
    parser.add_argument("--made", type=Path, help="folder that keeps the runs that the cells start from")
    parser.add_argument("--table", type=Path, help="file of lines that an earlier call printed")
    options = parser.parse_args()
    if options.table:
        builtins.print(table([json.loads(line) for line in options.table.read_text().splitlines()]))
        return
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        patch.setattr(process, "run", _run_child)
        patch.setattr(quickstart, "commands", _toy_commands)
        made = options.made or Path(tempfile.mkdtemp(prefix="made-"))
        if not (made / "whole" / "scores.json").exists():
            make_runs(made)
        for command in options.commands:
            for fault in options.faults:
                print(json.dumps(cell(command, fault, made)), flush=True)
        if options.made is None:
            shutil.rmtree(made)


if __name__ == "__main__":
    main()
