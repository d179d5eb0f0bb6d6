"""Compare runs of any family on one data set: tables, figures and conclusions, as report.html and report.md.

Examples:
  python launch/compare.py --runs runs/nvae-seed* runs/flat-seed* --out runs/comparison
  python launch/compare.py --runs runs/quickstart/nvae runs/quickstart/flat --images 1500 --out runs/quickstart/report

The first run's configuration is the reference that the others are compared with. Runs without scores are scored first.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from launch.console import errors
from launch.console.figures import Picture
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed
from launch.report import comparison, words
from launch.report.runs import ScoredRun, Scores, clean, read_record, read_runs
from launch.report.statistics import comparable_sets, why_apart
from launch.results import pictures
from launch.results.run import open_run
from launch.results.score_run import SCORES, ScoreConfig, score_run
from launch.training import folder

LONGEST_COMMAND = 500  # characters that the report shows


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Settings of a comparison."""

    runs: tuple[Path, ...]
    """Run folders, of any family."""
    out: Path
    """Folder of the report."""
    score_missing: bool = True
    """Score the runs that have no scores, or only scores of an older checkpoint."""
    split: str | None = None
    """Split for --score-missing: train, valid or test; default: the split of the first scored run, or test."""
    images: int | None = None
    """Number of images for --score-missing; default: the number of the first scored run, or 10,000."""
    untrained: bool = True
    """With --score-missing, also score untrained weights."""
    pictures: int = 4
    """Show samples, reconstructions, top groups and traversals of at most this many configurations; 0 shows none."""
    data_root: Path | None = None
    """Folder of the data, if it moved since training."""
    other_data: bool = False
    """Accept data that differ from those that the run was trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        if self.pictures < 0 or (self.images is not None and self.images < 8):
            raise ValueError("--pictures must be 0 or more and --images at least 8; change them")


def _scoring(config: CompareConfig) -> ScoreConfig:
    """Settings for scoring the runs without scores: those of the first run that has scores."""
    chosen: dict[str, Any] = {"untrained": config.untrained, "data_root": config.data_root, "device": config.device}
    chosen["other_data"] = config.other_data
    for path in config.runs:
        try:
            protocol = read_record(Scores, path / SCORES)["protocol"]
            stored: dict[str, Any] = {name: protocol[name] for name in ("split", "images", "seed", "full_grid")}
            ScoreConfig(**stored)  # raises ValueError for settings that score.py does not accept
            chosen |= stored
            break
        except (OSError, ValueError):
            continue  # read_runs reports what is wrong with it
    if config.split is not None:
        chosen["split"] = config.split
    if config.images is not None:
        chosen["images"] = config.images
    return ScoreConfig(**chosen)


def _made(arguments: list[str]) -> str:
    """Describe the origin of the report: date, commit and command."""
    at, commit = time.strftime("%Y-%m-%d %H:%M %Z"), folder.commit() or "unknown"
    return f"Made on {at} from commit {commit} by: python launch/compare.py {clean(shlex.join(arguments), LONGEST_COMMAND)}"


def _require_finite(runs: Sequence[ScoredRun]) -> None:
    """Reject runs whose held-out numbers are NaN or infinite, after the report is written.

    Raises:
        FloatingPointError: there are such runs; the message names them.
    """
    kinds = [(run, "elbo" if run.measure.has_rate else "distortion") for run in runs if run.record["held_out"]]
    values = {str(run.path): run.held_out(kind) for run, kind in kinds}
    broken = [name for name, value in values.items() if value is None or not math.isfinite(value)]
    if broken:
        raise FloatingPointError(
            f"the held-out ELBO or distortion of {len(broken)} of {len(runs)} runs is not finite ({', '.join(broken[:5])}); "
            "leave them out, or train them again with a lower --lr or --precision fp32"
        )


def main(arguments: list[str]) -> None:
    """Parse, score the runs without scores, and write the report."""
    config = parse(CompareConfig, None, arguments, prog="compare.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    if ranks.world_size > 1:
        raise ValueError("compare.py runs as one process; score large runs with torchrun launch/score.py first")
    how = _scoring(config)

    def score_now(path: Path) -> None:
        say(f"scoring {path}", file=sys.stderr)
        score_run(path, how, ranks)

    def draw(run: ScoredRun) -> Mapping[str, Picture]:
        saved = open_run(
            run.path,
            device=ranks.device,
            weights=run.record["weights"],
            data_root=config.data_root,
            other_data=config.other_data,
        )
        protocol = run.record["protocol"]
        return pictures.overview(saved, "all" if protocol["full_grid"] else protocol["split"], protocol["seed"])

    runs, skipped = read_runs(config.runs, score_now if config.score_missing else None)
    for reason in skipped:
        say(f"left out: {reason}", file=sys.stderr)
    if not runs:
        raise ValueError(f"none of {len(config.runs)} runs can be compared; see the reasons above, or train one first")
    comparison.prepare(config.out)
    sets = comparable_sets(runs)
    for other in sets[1:]:
        say(f"not comparable with the first set: {why_apart(sets[0].terms, other.terms)}", file=sys.stderr)
    blocks = comparison.build(sets, skipped, config.pictures, draw, made=_made(arguments))
    comparison.write(config.out, blocks, sets, skipped)
    for compared in sets:
        for item in words.summary(compared):
            say(f"* {item}")
    say(f"report   {config.out / 'report.html'}   (as Markdown: {config.out / 'report.md'})")
    _require_finite([run for compared in sets for run in compared.runs])


if __name__ == "__main__":
    errors.main(main)
