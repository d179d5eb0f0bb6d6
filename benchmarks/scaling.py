"""Growth of the time and memory of an NVAE step, one quantity varied at a time, with a fitted cost model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls

from benchmarks import harness
from benchmarks.counting import count_work
from benchmarks.harness import Case, Row
from benchmarks.steps import nvae_config, random_images, trainer_of
from datasets import ImageSpec
from launch.families.nvae import NVAETrainConfig
from launch.training import memory
from nvae import NVAEConfig

BASE = NVAEConfig(
    groups_per_scale=(2, 1, 1), channels_enc=16, channels_dec=16, cells_per_group_enc=1, cells_per_group_dec=1
)

BATCH = 4


def variations() -> Iterator[tuple[str, NVAEConfig, int, int]]:
    """(what, model, side of the image, batch)."""
    yield "base", BASE, 64, BATCH
    for groups in ((4, 2, 2), (8, 4, 4)):
        yield f"groups {sum(groups)}", replace(BASE, groups_per_scale=groups), 64, BATCH
    yield "scales 2", replace(BASE, num_scales=2, groups_per_scale=(2, 1)), 64, BATCH
    yield "scales 4", replace(BASE, num_scales=4, groups_per_scale=(2, 1, 1, 1)), 64, BATCH
    for channels in (32, 64):
        yield f"channels {channels}", replace(BASE, channels_enc=channels, channels_dec=channels), 64, BATCH
    for side in (32, 128):
        yield f"side {side}", BASE, side, BATCH
    for batch in (1, 16):
        yield f"batch {batch}", BASE, 64, batch


def scaling(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """The table and the fit: seconds = a * operations + b * GFLOP + c * GB touched, none negative."""
    rows: list[Row] = []
    for name, model, side, batch in variations():
        spec = ImageSpec(channels=3, height=side, width=side, num_bits=8)
        case = _case(name, nvae_config(model, batch, options.precision[0]), spec, device)
        rows.append(harness.timing_row("scaling", case, harness.interleave([case], options.rounds, device)[name]))
    return [*rows, *processes(options, device), fit(rows)]


def _case(name: str, config: NVAETrainConfig, spec: ImageSpec, device: torch.device) -> Case:
    trainer, images = trainer_of(config, spec, device), random_images(spec, config.run.batch_size)

    def step() -> object:
        return trainer.train_step(images)

    step()
    work, needs = count_work(config, spec, len(images)), memory.count(config, spec)
    counts: Row = {
        "operations": work.operations,
        "gflop": work.gflop,
        "gb_touched": work.gb_touched,
        "parameters_m": needs.num_parameters / 1e6,
        "saved_mib_per_image": needs.activation_bytes_per_image / harness.MIB,
    }
    return Case(name, step, len(images), counts)


def processes(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time the base on several processes, each with its own batch; each number of processes is one call of torchrun."""
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    counts = options.processes or [count for count in (1, 2, 4, 8) if count <= most]
    worker = [str(Path(__file__).with_name("ranks_worker.py")), options.precision[0], device.type]
    worker += ["--default-allocator"] if options.default_allocator else []
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(options.rounds):
        for count in counts:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            done = subprocess.run([*command, *worker], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{count} processes: {done.stderr.strip()[-500:]}", file=sys.stderr)
                continue
            seconds[count] += json.loads(done.stdout.splitlines()[-1])["seconds"]
    rows = []
    for count in filter(seconds.get, counts):
        case = Case(f"processes {count}", lambda: None, BATCH * count)
        rows.append(harness.timing_row("scaling", case, seconds[count]))
    return rows


def fit(rows: list[Row]) -> Row:
    """Coefficients by least squares of the relative error, and the error that is left."""
    terms = ("operations", "gflop", "gb_touched")
    seconds = np.array([row["median_s"] for row in rows])
    table = np.array([[float(row[term]) for term in terms] for row in rows])
    weights, _ = nnls(table / seconds[:, None], np.ones(len(rows)))
    relative = np.abs(table @ weights / seconds - 1.0)
    named = dict(zip(("seconds_per_operation", "seconds_per_gflop", "seconds_per_gb"), weights.tolist(), strict=True))
    return {
        "benchmark": "scaling",
        "variant": "cost model",
        **named,
        "median_error": float(np.median(relative)),
        "largest_error": float(relative.max()),
    }
