"""Run by test_fake_cuda.py in a process of its own: training steps on fake CUDA tensors, reported as JSON.

A process of its own, because PyTorch may crash when Python collects the garbage of such a step (see the benchmark's page):
here nothing is collected, and the interpreter ends without a clean-up.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

from benchmarks import kernels
from datasets import ImageSpec
from launch.families.flat_vae import FLAT_PRESETS
from launch.families.nvae import NVAE_PRESETS
from launch.training.memory import image_spec
from tests.launch.test_captured import SPEC, config

BINARY = ImageSpec(channels=1, height=64, width=64, num_bits=1)
CASES: dict[str, dict[str, Any]] = {
    "nvae": {},
    "nvae, recomputed": {"checkpointing": True},
    "nvae, accumulated": {"accumulation": 2},
}


def chosen(case: str) -> tuple[Any, ImageSpec]:
    """Configuration and images of a case: small, or a preset by its name."""
    if case in CASES:
        return config(precision="bf16", **CASES[case]), SPEC
    preset = {**FLAT_PRESETS, **NVAE_PRESETS}[case].build()
    preset = replace(preset, run=replace(preset.run, batch_size=16, precision="bf16"))
    return preset, image_spec(preset) if case in NVAE_PRESETS else BINARY


def main(cases: list[str]) -> None:
    gc.disable()
    for name in cases:
        case, _, world_size = name.partition(" on ")
        recorder = kernels.record(*chosen(case), world_size=int(world_size))
        operations: Counter[str] = Counter()
        for launch in recorder.launches:
            operations[launch.name] += 1
        waits = sum(recorder.waits.values())
        print(json.dumps({"case": name, "kernels": recorder.kernels, "waits": waits, "operations": operations}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
