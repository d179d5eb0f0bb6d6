"""Check of correctness and speed on one GPU, in ten minutes.

Run ``make gpu-check`` or, with only PyTorch and the packages that docs/benchmarks/2026-11-27-gpu.md lists:

    python -m benchmarks.gpu_check --budget 540 --out DIR

Sections run one after the other, and each writes its result to DIR/gpu-check.json when it ends. If a result is wrong,
the exit code is 1. Without a GPU, the sections that need one are skipped and the others run on small models.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_results import (
    Check,
    NeedsGpu,
    between_ranks,
    machine,
    one_rank,
    precision,
    recording,
    resuming,
    skipping,
)
from benchmarks.gpu_speed import convolution_layouts, flat_speed, replicas_speed, sampling_speed, training_speed
from launch.machine import execution

SECTIONS: tuple[Callable[[Check], dict[str, Any]], ...] = (
    machine,
    precision,
    skipping,
    between_ranks,
    resuming,
    recording,
    training_speed,
    flat_speed,
    convolution_layouts,
    replicas_speed,
    sampling_speed,
)


def run(check: Check, out: Path) -> list[dict[str, Any]]:
    """Run all sections, even if one fails."""
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for section in SECTIONS:
        start = time.monotonic()
        row: dict[str, Any] = {"section": section.__name__, "what": (section.__doc__ or "").strip()}
        try:
            row |= {"status": "ok", "found": section(check)}
        except NeedsGpu as reason:
            row |= {"status": "needs a GPU", "found": str(reason)}
        except Exception:  # any error belongs in the report
            row |= {"status": "FAILED", "found": traceback.format_exc()}
        row["seconds"] = round(time.monotonic() - start, 1)
        rows.append(row)
        (out / "gpu-check.json").write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{row['status']:12}{row['section']} ({row['seconds']} s)", flush=True)
    (out / "gpu-check.md").write_text(_markdown(rows))
    return rows


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["# GPU check", "", "| section | status | seconds |", "|---|---|---|"]
    lines += [f"| {row['section']} | {row['status']} | {row['seconds']} |" for row in rows]
    for row in rows:
        found = row["found"] if isinstance(row["found"], str) else json.dumps(row["found"], indent=1)
        lines += ["", f"## {row['section']}", "", row["what"], "", "```", found.strip(), "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the check; the exit code is 1 if a result is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=540.0, help="seconds after which no timing starts")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    parser.add_argument("--rank", type=int, help="internal: act as one of two processes")
    options = parser.parse_args()
    execution.full_float32()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    if options.rank is not None:
        one_rank(options.rank, device)
    rows = run(Check(device, time.monotonic() + options.budget), options.out)
    sys.exit(any(row["status"] == "FAILED" for row in rows))


if __name__ == "__main__":
    main()
