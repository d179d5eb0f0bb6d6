"""Run by test_faults.py as one rank of two: ``stopped_worker.py evaluate --run ...``, where rank 1 stops when it would evaluate."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

from launch.console import errors
from launch.training import evaluation

real = evaluation.evaluate


def evaluate(*arguments: Any, **named: Any) -> evaluation.Evaluation:
    """Rank 1 stays there and does nothing, as one that waits for a dead file system."""
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **named)


if __name__ == "__main__":
    evaluation.evaluate = evaluate
    script = sys.argv.pop(1)
    errors.main(importlib.import_module(f"launch.{script}").main)
