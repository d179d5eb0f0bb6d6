"""The common part of all benchmarks: interleaved timing, memory, the machine's limits, and the form of results."""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
MIB = 2.0**20
Row = dict[str, Any]


@contextmanager
def waiting_for_the_device_is_an_error() -> Iterator[None]:
    """Raise an error if the host waits for the GPU; PyTorch's warning that this mode is experimental is dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("default")


@dataclass
class Case:
    """A case to time.

    Args:
        variant: its name in the report.
        step: what is timed; it must leave no work running.
        images: images that a step handles.
        counts: further columns of its row.
    """

    variant: str
    step: Callable[[], object]
    images: int
    counts: Row = field(default_factory=dict)


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _give_back() -> None:
    """Return freed memory to the system once, so that later measurements of memory count only later allocations."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


class PeakMemory:
    """Highest memory above the level at the start: of the device, or on CPU of the process as Linux counts it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        _give_back()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._now("VmRSS")

    def _now(self, key: str) -> float:
        if self.device.type == "cuda":
            peak = key == "VmHWM"
            return float(
                torch.cuda.max_memory_allocated(self.device) if peak else torch.cuda.memory_allocated(self.device)
            )
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith(key))

    def mib(self) -> float:
        """Rise since the start, MiB."""
        return (self._now("VmHWM") - self.before) / MIB


def peak_memory_mib(step: Callable[[], object], device: torch.device) -> float:
    """Rise of memory within one step, MiB."""
    peak = PeakMemory(device)
    step()
    synchronise(device)
    return peak.mib()


BURST = 20  # steps on a GPU between two readings of the clock: waiting after each would leave the device idle


def interleave(cases: Sequence[Case], rounds: int, device: torch.device, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds per step of each case, measured in turn, so that other load affects all alike.

    A turn is one step on a CPU, and on a GPU a burst of steps without a wait between them.
    """
    burst = BURST if device.type == "cuda" else 1
    for case in cases:
        for _ in range(warmup):
            case.step()
    seconds: dict[str, list[float]] = {case.variant: [] for case in cases}
    for number in range(rounds):
        ordered = cases if number % 2 == 0 else list(reversed(cases))
        for case in ordered:
            synchronise(device)
            start = time.perf_counter()
            for _ in range(burst):
                case.step()
            synchronise(device)
            seconds[case.variant].append((time.perf_counter() - start) / burst)
    return seconds


def matrix_rate(device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Best FLOP/s of a square matrix product in this process."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3 / _best(lambda: a @ b, device)


def copy_bandwidth(device: torch.device) -> float:
    """Best bytes/s, read and written, of copying a buffer far larger than the caches."""
    source = torch.empty(2**28 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    source.zero_(), target.zero_()
    return 2.0 * source.numel() / _best(lambda: target.copy_(source), device)


def _best(work: Callable[[], object], device: torch.device, repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return min(times)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor()


def machine(device: torch.device) -> Row:
    """Hardware and versions, without the machine's name."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "device": device.type,
        "hardware": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": git.stdout.strip(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "python benchmarks/run.py " + " ".join(sys.argv[1:]),
    }


def timing_row(benchmark: str, case: Case, seconds: Sequence[float]) -> Row:
    """Median, quartiles, and images/s at the median."""
    median = statistics.median(seconds)
    quarter = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    return {
        "benchmark": benchmark,
        "variant": case.variant,
        "batch_size": case.images,
        "median_s": median,
        "quartiles_s": [quarter[0], quarter[2]],
        "rounds": len(seconds),
        "images_per_s": case.images / median,
        **case.counts,
    }


def ratio_row(benchmark: str, fast: str, slow: str, seconds: dict[str, list[float]]) -> Row:
    """Speed-up of ``fast``: the median over rounds of the ratio within a round, and its quartiles."""
    ratios = [b / a for a, b in zip(seconds[fast], seconds[slow], strict=True)]
    quarter = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
    return {
        "benchmark": benchmark,
        "variant": f"{fast} against {slow}",
        "speedup": statistics.median(ratios),
        "speedup_quartiles": [quarter[0], quarter[2]],
        "speedup_of_best": min(seconds[slow]) / min(seconds[fast]),
        "rounds": len(ratios),
    }


def report(rows: Sequence[Row], about: Row, out: Path | None) -> None:
    """Print a table; append JSON lines, each with hardware and versions, to ``out``."""
    hidden = {"benchmark", "rounds"}
    names = [name for row in rows for name in row if name not in hidden]
    columns = list(dict.fromkeys(names))
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(columns)]
    print("  ".join(f"{k}={v}" for k, v in about.items()))
    for line in [columns, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            for row in rows:
                file.write(json.dumps({**row, **about}) + "\n")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return "-".join(_cell(v) for v in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
