"""Turn a checkpoint of the published NVAE into a run folder, for evaluate, sample, traverse and compress.

Examples:
  python launch/import_official.py checkpoint.pt --out runs/celeba64-published --data-root data/celeba
  python launch/evaluate.py --run runs/celeba64-published --split valid --iw-samples 1000

No code in the file is executed. evaluate.py reports the exact likelihood and the published one.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.console.flags import parse
from launch.console.terminal import say
from launch.results import importing
from metrics.likelihoods import Edges


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Settings of an import."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """Checkpoint file that the published code saved."""
    out: Path
    """Run folder to create."""
    edges: Edges = "exact"
    """Edge bins of a mixture likelihood: exact gives a probability, legacy is the published rule; evaluate shows
    both."""
    data_root: Path | None = None
    """Folder of the data set; default data/<name>."""


def main(arguments: list[str]) -> None:
    """Parse, import, and print what was ignored."""
    config = parse(ImportConfig, None, arguments, prog="import_official.py", description=__doc__ or "")
    unknown = importing.import_checkpoint(config.checkpoint, config.out, edges=config.edges, data_root=config.data_root)
    if unknown:
        say(f"warning: ignored unknown arguments: {', '.join(unknown)}", file=sys.stderr)
    say(f"{config.out}: try it with python launch/sample.py --run {config.out} --temperature 0.7")


if __name__ == "__main__":
    errors.main(main)
