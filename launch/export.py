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
from launch.results.export import export
from launch.results.run import open_run


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Settings of an export."""

    run: Path
    """Run folder, of any family."""
    out: Path
    """New folder."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""


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
