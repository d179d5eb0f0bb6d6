"""Run by test_faults.py as one rank of two: train_nvae.py, where rank 1's loss, and nothing else, is NaN from step 5 on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

from launch import train_nvae
from launch.console import errors
from launch.training import step as stepping
from metrics.objective import Loss

real = stepping.Trainer._accumulate


def accumulate(self: stepping.Trainer, *drawn: Any) -> Loss:
    """The gradients are averaged and finite everywhere, so that only the ranks' agreement stops rank 0."""
    loss = real(self, *drawn)
    return replace(loss, total=loss.total * float("nan")) if self.ranks.rank == 1 and self.state.step >= 5 else loss


if __name__ == "__main__":
    stepping.Trainer._accumulate = accumulate  # type: ignore[method-assign]
    errors.main(train_nvae.main)
