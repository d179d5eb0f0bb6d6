"""Fuzz a target in a process of its own with a bound on memory and time: ``python tests/fuzz/fuzz.py images --cases 10000``.

Prints one JSON line per target. A finding's number is its seed: ``--first N --cases 1 --debug`` shows it again.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import IO, Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import torch
import torch._dynamo  # the first optimiser or model of a process imports it: once here, and not in each fork
import torchvision  # noqa: F401  the same for the extractor, whose import loads a library

from tests.fuzz.ends import Target
from tests.fuzz.targets import TARGETS

MEMORY_GIB = 1.0  # beyond what the process has when it starts
SECONDS = 20  # of one case
SHARE = {"folder-layouts": 4, "exif": 2}  # of the cases where all targets run: these build caches
FORBIDDEN = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "ctypes.dlopen")


class Hang(BaseException):
    """A case took too long."""


def _alarm(number: int, frame: object) -> None:
    raise Hang


def _bound_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(MEMORY_GIB * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def run(name: str, first: int, cases: int, done: mmap.mmap, report: IO[str], *, debug: bool) -> None:
    """Run all cases in this process and write a line for each finding; ``done`` counts the cases, even if one crashes."""
    executed: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        target = TARGETS[name](Path(home))
        _bound_memory()
        signal.signal(signal.SIGALRM, _alarm)
        sys.addaudithook(lambda event, _: executed.append(event) if event in FORBIDDEN else None)
        for seed in range(first, first + cases):
            struct.pack_into("q", done, 0, seed)
            end = _one(target, seed, debug=debug)
            if executed:
                end = f"executed {executed.pop()}"
            print(json.dumps([seed, end]), file=report, flush=True)


def _one(target: Target, seed: int, *, debug: bool) -> str:
    """End of a case: "read", "refused", or the finding."""
    said = io.StringIO()
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return "read" if target(random.Random(seed)) else "refused"
    except (Exception, Hang) as error:
        if debug:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(where.filename).name}:{where.name}: {str(error)[:90]}"
    finally:
        signal.alarm(0)


def fuzz(name: str, first: int, cases: int, *, debug: bool = False) -> dict[str, Any]:
    """Return counts and, per kind of finding, its number and first seed; after a crash, continue with the next case."""
    began, done, at, peak = time.monotonic(), mmap.mmap(-1, 8), first, 0.0
    ends: dict[int, str] = {}
    while at < first + cases:
        with tempfile.NamedTemporaryFile("w+") as report:
            pid = os.fork()
            if pid == 0:
                run(name, at, first + cases - at, done, report, debug=debug)
                report.flush()
                os._exit(0)
            _, status, usage = os.wait4(pid, 0)
            peak = max(peak, usage.ru_maxrss / 2**20)
            seed = struct.unpack_from("q", done)[0]
            report.seek(0)
            for line in report.read().splitlines():
                with contextlib.suppress(ValueError):  # cut short by the crash
                    number, end = json.loads(line)
                    ends[number] = end
        if status:
            ends[seed] = f"the process ended with {os.waitstatus_to_exitcode(status)}"
        at = seed + 1
    counts = collections.Counter(end if end in ("read", "refused") else "finding" for end in ends.values())
    kinds: dict[str, list[int]] = {}
    for seed, end in ends.items():
        if end not in ("read", "refused"):
            kinds.setdefault(end, []).append(seed)
    findings = [{"what": kind, "times": len(seeds), "seed": seeds[0]} for kind, seeds in kinds.items()]
    seconds = round(time.monotonic() - began, 1)
    return {
        "target": name,
        "cases": cases,
        **counts,
        "findings": findings,
        "peak_GiB": round(peak, 2),
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], help="default: all")
    parser.add_argument("--cases", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--debug", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.targets or TARGETS:
        cases = options.cases if options.targets else options.cases // SHARE.get(name, 1)
        print(json.dumps(fuzz(name, options.first, cases, debug=options.debug)), flush=True)


if __name__ == "__main__":
    main()
