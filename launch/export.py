"""Make a small copy of a trained run to share: the weights that are evaluated, configuration, summary and scores.

Examples:
  python launch/export.py --run runs/dsprites-nvae-dsprites-seed0 --out shared/dsprites-nvae
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import files
from launch.results.run import SavedRun, open_run
from launch.training import checkpoint, records
from launch.training.folder import RunFolder, without_places

CHECKED_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of an export."""

    run: Path
    """Run folder, of any family."""
    out: Path
    """New folder."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""


def export(run: SavedRun, out: Path) -> RunFolder:
    """Write ``run`` to ``out``: a run folder with one checkpoint, of the averaged weights if there are any.

    ``check.json`` holds the mean pixel of a few samples, to check a copy on another machine. Every script reads the
    export like the run, but training can't be resumed from it: it has no optimiser state.

    Raises:
        ValueError: ``out`` holds a run.
    """
    folder = RunFolder(out)
    if folder.config_path.exists():
        raise ValueError(f"{out} already holds a run; choose another --out")
    model, step = run.model, run.step  # read before anything is written
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json("config.json", without_places(run.record))
    content = {"model": {name: value.cpu() for name, value in model.state_dict().items()}, "ema": None}
    path = checkpoint.save(folder.checkpoints, step, content, keep=1)
    for name in ("summary.json", "scores.json"):
        if (run.folder / name).is_file():
            record = run.files.read_json(name)
            if name == "scores.json":  # the scores belong to these weights, whose file has changed
                record |= {"checkpoint": path.name, "checkpoint_sha256": checkpoint.recorded_sha256(path)}
            folder.write_json(name, record)
    means = run.sample(CHECKED_SAMPLES, seed=0).mean(dim=(1, 2, 3)).tolist()
    folder.write_json("check.json", {"seed": 0, "mean_of_samples": means})
    if held_out := records.held_out(run.folder):
        files.write_text(out / records.NAME, "".join(held_out))
    return folder


def main(arguments: list[str]) -> None:
    """Parse, copy, and print the size of the copy."""
    config = parse(ExportConfig, None, arguments, prog="export.py", description=__doc__ or "")
    folder = export(open_run(config.run, weights=config.weights), config.out)
    size = sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    say(
        f"{config.out}: {size / 2**20:.1f} MiB, a run folder for every script: python launch/sample.py --run {config.out}"
    )


if __name__ == "__main__":
    errors.main(main)
