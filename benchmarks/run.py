"""Measure speed and memory; a table on the screen, JSON lines in --out.

Examples:
  OMP_NUM_THREADS=2 python benchmarks/run.py nvae-step --baseline plain --checkpointing --out results.jsonl
  python benchmarks/run.py nvae-step --preset celeba64 --batch-size 16 --precision bf16 --baseline plain
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])  # in place of this folder, whose modules would hide packages

import torch

from benchmarks import curves, flat, harness, pipeline, scaling, steps
from benchmarks.harness import Row
from launch.families.nvae import NVAE_PRESETS
from launch.machine import process

COMMANDS: dict[str, tuple[Callable[[argparse.Namespace, torch.device], list[Row]], str]] = {
    "nvae-step": (steps.nvae_step, "training steps of NVAE; --baseline plain: beside a straightforward port"),
    "flat-step": (
        flat.flat_step,
        "training epochs of the flat VAE; --replicas 10: ten at once; --pythae-python: beside pythae",
    ),
    "data": (pipeline.data, "batches read from a cache"),
    "sample": (pipeline.sample, "images drawn from the prior"),
    "evaluate": (pipeline.evaluate, "importance weights, the bottom-up pass shared or not"),
    "curve": (curves.curve, "loss curves in reduced precision beside fp32, several seeds"),
    "scaling": (scaling.scaling, "growth with groups, scales, channels, resolution and batch"),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        command.add_argument("--rounds", type=int, default=5, help="timed rounds (default 5)")
        command.add_argument("--batch-size", type=int, default=64 if name in ("flat-step", "data") else 8)
        command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        command.add_argument("--out", type=Path, help="file to append JSON lines to")
        command.add_argument("--default-allocator", action="store_true", help="let glibc give freed memory back")
        if name in ("nvae-step", "sample", "evaluate"):
            command.add_argument("--preset", choices=sorted(NVAE_PRESETS), help="a recipe; default a 7.65 M shape")
        if name in ("nvae-step", "flat-step", "scaling", "curve"):
            command.add_argument("--precision", nargs="+", choices=("fp32", "bf16", "fp16"), default=["fp32"])
        if name == "nvae-step":
            command.add_argument("--baseline", choices=("none", "plain"), default="none")
            command.add_argument("--checkpointing", action="store_true", help="also with cells recomputed")
            command.add_argument("--compile", action="store_true", help="also with compiled cells")
        if name == "flat-step":
            command.add_argument("--pythae-python", help="python of an environment that has pythae")
            command.add_argument("--replicas", type=int, default=1, help="also that many seeds as one batched model")
        if name == "evaluate":
            command.add_argument("--draws", type=int, default=10, help="K (default 10)")
        if name == "curve":
            command.add_argument("--steps", type=int, default=1000, help="of each run, a multiple of 10 (default 1000)")
            command.add_argument("--seeds", type=int, default=3, help="runs in each precision (default 3)")
            command.add_argument("--dataset", choices=("dsprites", "celeba", "folder"), default="dsprites")
            command.add_argument("--data-root", type=Path, help="where celeba or the folder is")
            command.add_argument("--image-size", type=int, default=32, help="of celeba or the folder (default 32)")
        if name == "scaling":
            command.add_argument(
                "--processes", type=int, nargs="+", help="numbers of processes (default 1 2; on GPUs up to 8)"
            )
        if name == "data":
            command.add_argument("--images", type=int, default=16384, help="images in the cache (default 16384)")
    return parser


def main() -> None:
    options = _parser().parse_args()
    if not options.default_allocator:
        process.keep_freed()  # as every script does
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    cuda = torch.cuda.is_available() if options.device == "auto" else options.device == "cuda"
    device = torch.device("cuda" if cuda else "cpu")
    about = harness.machine(device)
    measure, _ = COMMANDS[options.command]
    rows = measure(options, device)
    about |= {"matrix_gflops": harness.matrix_rate(device) / 1e9, "copy_gb_s": harness.copy_bandwidth(device) / 1e9}
    harness.report(rows, about, options.out)


if __name__ == "__main__":
    main()
