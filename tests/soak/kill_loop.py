"""Kill -9 training runs again and again, resume them, and compare: ``kill_loop.py DATA FOLDER --ranks 2 --kills 25 --seed 0``.

This process imports torch once and forks the ranks, so that an attempt takes only the time of its training. Each rank is
a process that runs a training script; each checkpoint is reported through a pipe when ``checkpoint.save`` has returned.
The kinds of runs take turns. Prints a JSON line: what was tried and what was lost.
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
import torch._dynamo  # the first optimiser or model of a process imports it: once here, and not in each fork

from launch import train_flat_vae, train_nvae
from launch.console import errors
from launch.training import checkpoint
from tests.launch import running

STEPS = 36
LIMIT_SECONDS = 240.0  # of one try

SCRIPTS = {"train_nvae": train_nvae, "train_flat_vae": train_flat_vae}
NVAE = ["train_nvae", *running.MODEL]
FLAT = ["train_flat_vae", "--preset", "tiny", "--conv-channels", "1", "--latent-dim", "3"]
KINDS = {
    "plain": NVAE,  # with averages: NVAE's default
    "accumulation": [*NVAE, "--accumulation", "2"],
    "recomputation": [*NVAE, "--checkpointing"],
    "bf16": [*NVAE, "--precision", "bf16"],
    "fp16": [*NVAE, "--precision", "fp16"],
    "factor": [*FLAT, "--objective", "factor", "--ema-decay", "0.9"],
    "replicas": [*FLAT, "--objective", "beta", "--replicas", "2", "--ema-decay", "0.9"],
}
ONE_PROCESS = {"replicas"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def be_rank(rank: int, ranks: int, port: int, script: str, arguments: list[str], report: int, words: Path) -> NoReturn:
    """In the forked child: train, and never return."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    handle = os.open(words, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    real = checkpoint.save

    def save(folder: Path, step: int, content: dict[str, Any], *, keep: int = 3) -> Path:
        path = real(folder, step, content, keep=keep)
        os.write(report, f"{path}\n".encode())  # whole: shorter than what a pipe takes at once
        return path

    checkpoint.save = save
    sys.argv = [f"{script}.py", *arguments]
    code = 1
    try:
        errors.main(SCRIPTS[script].main)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        os._exit(code)


class Try:
    """One start of the run on all its ranks."""

    def __init__(self, ranks: int, command: list[str], words: Path) -> None:
        self.reader, writer = os.pipe()
        port = free_port()
        self.pids = []
        for rank in range(ranks):
            pid = os.fork()
            if pid == 0:
                be_rank(rank, ranks, port, command[0], command[1:], writer, words)
            self.pids.append(pid)
        os.close(writer)
        self.alive = set(self.pids)
        self.codes: dict[int, int] = {}

    def reap(self) -> bool:
        """True if all have ended."""
        for pid in list(self.alive):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self.alive.discard(pid)
                self.codes[pid] = os.waitstatus_to_exitcode(status)
        return not self.alive

    def wait(self, condition: Any, seconds: float) -> bool:
        """Wait until the condition holds (True), all processes have ended, or the time limit has passed."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self.reap() or time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True

    def reported(self) -> dict[Path, int]:
        """The newest step of each folder of checkpoints that was reported as saved; the pipe is closed."""
        said = b""
        while select.select([self.reader], [], [], 0)[0] and (part := os.read(self.reader, 65_536)):
            said += part
        os.close(self.reader)
        paths = [Path(line) for line in said.decode().splitlines()]
        return {path.parent: int(path.stem[5:]) for path in paths}


def newest_step(checkpoints: Path) -> int:
    found = next(checkpoint.newest_valid(checkpoints, lambda text: None), None)
    return 0 if found is None else int(found[1]["step"])


def named_steps(run: Path) -> list[int]:
    """Steps of the checkpoints of a run or of its replicas, by their names."""
    return [int(path.stem[5:]) for path in run.rglob("step-*.pt")]


def kill_once(run: Path, attempt: Try, chance: random.Random) -> str:
    """Kill one rank or all at a random moment, in the write of a checkpoint, or at the start; return which, or "done"."""
    kind = chance.choice(["any time", "any time", "in a write", "in a write", "at the start"])
    if kind == "in a write":
        count, wanted = 0, chance.randrange(1, 4)
        seen: set[str] = set()

        def writing() -> bool:
            nonlocal count
            seen.update(p.name for p in run.rglob(".step-*.tmp"))
            count = len(seen)
            return count >= wanted

        hit = attempt.wait(writing, LIMIT_SECONDS)
    elif kind == "any time":
        goal = max(named_steps(run), default=0) + chance.randrange(1, 13)
        attempt.wait(lambda: max(named_steps(run), default=0) >= goal, LIMIT_SECONDS)
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


class Soak:
    """Runs of one kind after the other, each killed again and again until it ends, then compared with one that was not.

    Args:
        data: folder of images.
        folder: for runs.
        ranks: processes of each run.
        seed: of the moments.
    """

    def __init__(self, data: Path, folder: Path, ranks: int, seed: int) -> None:
        self.data, self.folder, self.ranks, self.chance = data, folder, ranks, random.Random(seed)
        self.words = folder / "words.txt"
        self.kills: collections.Counter[str] = collections.Counter()
        self.lost: list[Any] = []
        self.orphans = self.runs = 0

    def start(self, kind: str, run: Path) -> Try:
        """Start an attempt at the run in folder ``run``, which continues from its newest checkpoint."""
        script, *model = KINDS[kind]
        where = ["--dataset", "folder", "--data-root", str(self.data), "--run-dir", str(run), "--resume", "auto"]
        length = [*running.LENGTH, "--max-steps", str(STEPS), "--eval-every", "12", "--timeout-minutes", "0.5"]
        size = ["--batch-size", str(4 // self.ranks)]
        return Try(self.ranks, [script, *where, *model, *length, *size], self.words)

    def uninterrupted(self, kind: str, run: Path) -> None:
        """Let a run reach its end."""
        attempt = self.start(kind, run)
        assert not attempt.wait(lambda: False, LIMIT_SECONDS)
        assert set(attempt.codes.values()) == {0}, (kind, attempt.codes, self.words.read_text()[-2000:])
        attempt.reported()

    def kill(self, kind: str, run: Path) -> bool:
        """Start the run and kill it; True if it reached its end before."""
        attempt = self.start(kind, run)
        how = kill_once(run, attempt, self.chance)
        # the surviving processes must end without help within the limit
        if not attempt.reap() and attempt.wait(lambda: False, LIMIT_SECONDS) is False and attempt.alive:
            self.orphans += len(attempt.alive)
            for pid in attempt.alive:
                os.kill(pid, signal.SIGKILL)
        for checkpoints, reported in attempt.reported().items():
            if (found := newest_step(checkpoints)) < reported:
                self.lost.append({"kind": kind, "kill": self.kills.total(), "reported": reported, "found": found})
        if how == "done":
            assert set(attempt.codes.values()) == {0}, (kind, attempt.codes, self.words.read_text()[-2000:])
            return True
        self.kills[how] += 1
        return False

    def one_run(self, kind: str, most_kills: int) -> int:
        """Kill and resume a run up to ``most_kills`` times, compare it with the uninterrupted one; return the number of kills."""
        reference, run = self.folder / f"reference-{kind}", self.folder / f"run-{self.runs}"
        if not reference.exists():
            self.uninterrupted(kind, reference)
        kills, is_done = 0, False
        while not is_done and kills < most_kills:
            is_done = self.kill(kind, run)
            kills += not is_done
        if not is_done:
            self.uninterrupted(kind, run)
        members = sorted(path.parent.relative_to(reference) for path in reference.rglob("config.json"))
        for member in members:  # weights, averages, optimiser, order, every recorded number
            running.assert_same_run(run / member, reference / member)
        leftovers = list(run.rglob("*.tmp"))
        assert not leftovers, leftovers
        shutil.rmtree(run)
        self.runs += 1
        return kills


def soak(data: Path, folder: Path, ranks: int, kills: int, seed: int, kinds: list[str]) -> dict[str, Any]:
    all_runs, kinds = Soak(data, folder, ranks, seed), [k for k in kinds if ranks == 1 or k not in ONE_PROCESS]
    of_kind: collections.Counter[str] = collections.Counter()
    while of_kind.total() < kills:
        kind = kinds[all_runs.runs % len(kinds)]
        share = -(-(kills - of_kind.total()) // max(len(kinds) - all_runs.runs, 1))  # each kind has its turn
        of_kind[kind] += all_runs.one_run(kind, share)
    return {
        **{"ranks": ranks, "kills": of_kind.total(), "of kind": dict(of_kind), "moments": dict(all_runs.kills)},
        **{"lost": all_runs.lost, "orphans": all_runs.orphans, "runs": all_runs.runs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    began = time.monotonic()
    result = soak(options.data, options.folder, options.ranks, options.kills, options.seed, options.kinds)
    print(json.dumps(result | {"seconds": round(time.monotonic() - began)}))


if __name__ == "__main__":
    main()
