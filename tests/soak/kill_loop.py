"""Kill -9 a training run again and again, resume it, and compare: ``kill_loop.py DATA FOLDER --ranks 2 --kills 25 --seed 0``.

A process of its own that has torch imported and forks the ranks, so that a try costs its training only. Each rank is a
process that runs launch/train_nvae.py; each saved step is reported through a pipe when ``checkpoint.save`` returned.
Prints a JSON line: what was tried and what was lost.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NoReturn

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import torch

from launch import train_nvae
from launch.console import errors
from launch.training import checkpoint
from tests.launch import running

STEPS = 36
LIMIT_SECONDS = 240.0  # of one try


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def be_rank(rank: int, ranks: int, port: int, arguments: list[str], report: int, words: Path) -> NoReturn:
    """In the forked child: train, and never return."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    handle = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    real = checkpoint.save

    def save(folder: Path, step: int, content: dict[str, Any], *, keep: int = 3) -> Path:
        path = real(folder, step, content, keep=keep)
        os.write(report, step.to_bytes(4, "little"))
        return path

    checkpoint.save = save
    sys.argv = ["train_nvae.py", *arguments]
    code = 1
    try:
        errors.main(train_nvae.main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


class Try:
    """One start of the run on all its ranks."""

    def __init__(self, ranks: int, arguments: list[str], words: Path) -> None:
        self.reader, writer = os.pipe()
        port = free_port()
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                be_rank(rank, ranks, port, arguments, writer, words)
            self.pids.append(pid)
        os.close(writer)
        self.alive = set(self.pids)
        self.codes: dict[int, int] = {}

    def reap(self) -> bool:
        """Whether all have ended."""
        for pid in list(self.alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.alive.discard(pid)
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return not self.alive

    def wait(self, condition: Any, seconds: float) -> bool:
        """Until the condition holds (True), all have ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.reap() or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def reported(self) -> int:
        """The newest step that was reported as saved; the pipe is closed."""
        newest = 0
        while select.select([self.reader], [], [], 0)[0] and (word := os.read(self.reader, 4)):
            newest = int.from_bytes(word, "little")
        os.close(self.reader)
        return newest


def newest_step(run: Path) -> int:
    found = next(checkpoint.newest_valid(run / "checkpoints", lambda text: None), None)
    return 0 if found is None else int(found[1]["step"])


def kill_once(run: Path, attempt: Try, chance: random.Random) -> str:
    """Kill at a random moment, in the write of a checkpoint, or at the start; all ranks, or one. Says which, or "done"."""
    kind = chance.choice(["any time", "any time", "in a write", "in a write", "at the start"])
    if kind == "in a write":
        count, wanted = 0, chance.randrange(1, 4)
        seen: set[str] = set()

        def writing() -> bool:
            nonlocal count
            seen.update(p.name for p in (run / "checkpoints").glob(".step-*.tmp"))
            count = len(seen)
            return count >= wanted

        hit = attempt.wait(writing, LIMIT_SECONDS)
    elif kind == "any time":
        first = newest_step(run)
        goal = first + chance.randrange(1, 13)
        attempt.wait(lambda: any(int(p.stem[5:]) >= goal for p in checkpoint.find(run / "checkpoints")), LIMIT_SECONDS)
        hit = not attempt.wait(lambda: False, chance.uniform(0.0, 0.1)) and bool(attempt.alive)
    else:
        hit = not attempt.wait(lambda: False, chance.uniform(0.0, 0.6)) and bool(attempt.alive)
    if attempt.reap() or not hit:
        return "done"
    whom = attempt.pids if len(attempt.pids) == 1 or chance.random() < 0.5 else [chance.choice(attempt.pids)]
    for pid in whom:
        if pid in attempt.alive:
            os.kill(pid, signal.SIGKILL)
    return kind if len(whom) == len(attempt.pids) else f"{kind}, one rank"


def soak(data: Path, folder: Path, ranks: int, kills: int, seed: int) -> dict[str, Any]:
    chance, words = random.Random(seed), folder / "words.txt"
    length = ["--max-steps", str(STEPS), "--eval-every", "12", "--timeout-minutes", "0.15"]

    def arguments(run: Path) -> list[str]:
        return running.flags(data, run, *length, "--resume", "auto", batch=4 // ranks)

    def uninterrupted(run: Path) -> None:
        attempt = Try(ranks, arguments(run), words)
        assert not attempt.wait(lambda: False, LIMIT_SECONDS)
        assert set(attempt.codes.values()) == {0}, (attempt.codes, words.read_text()[-2000:])
        attempt.reported()

    reference = folder / "reference"
    uninterrupted(reference)
    done: collections.Counter[str] = collections.Counter()
    lost: list[Any] = []
    orphans, runs, number, run = 0, 0, 0, folder / "run-0"
    while done.total() < kills or run.exists():
        if done.total() >= kills:
            uninterrupted(run)
            kind = "done"
        else:
            attempt = Try(ranks, arguments(run), words)
            kind = kill_once(run, attempt, chance)
            # whoever is left must end by itself, and soon: nothing waits for ever
            if not attempt.reap() and attempt.wait(lambda: False, LIMIT_SECONDS) is False and attempt.alive:
                orphans += len(attempt.alive)
                for pid in attempt.alive:
                    os.kill(pid, signal.SIGKILL)
            reported, found = attempt.reported(), newest_step(run)
            if found < reported:
                lost.append({"kill": done.total(), "reported": reported, "found": found})
            if kind != "done":
                done[kind] += 1
        if kind == "done":
            running.assert_same_run(run, reference)  # weights, averages, optimiser, order, every recorded number
            leftovers = list(run.rglob("*.tmp"))
            assert not leftovers, leftovers
            shutil.rmtree(run)
            runs, number = runs + 1, number + 1
            run = folder / f"run-{number}"
    return {"ranks": ranks, "kills": done.total(), "kinds": dict(done), "lost": lost, "orphans": orphans, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.monotonic()
    result = soak(options.data, options.folder, options.ranks, options.kills, options.seed)
    print(json.dumps(result | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
