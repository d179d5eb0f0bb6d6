"""Compare runs of either family on one data set: tables, figures and what they allow to be said, as report.html and report.md.

Examples:
  python launch/compare.py --runs runs/nvae-seed* runs/flat-seed* --out runs/comparison
  python launch/compare.py --runs runs/quickstart/nvae runs/quickstart/flat --images 1500 --out runs/quickstart/report

The first run's configuration is the reference that the others are compared with. Runs without scores are scored first.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

from torch.utils.tensorboard import SummaryWriter

from launch import score
from launch.console import errors, figures
from launch.console.flags import parse
from launch.machine import distributed, files
from launch.machine.distributed import Ranks
from launch.machine.files import plain
from launch.report import figures as report_figures
from launch.report import pictures as report_pictures
from launch.report import text as report_text
from launch.report.data import (
    HEADLINE_KIND,
    Comparable,
    Configuration,
    ScoredRun,
    comparable_sets,
    describe_terms,
    read_runs,
    why_apart,
)
from launch.report.page import Block, Bullets, Figure, Heading, Text, to_html, to_markdown
from launch.report.tables import (
    difference_table,
    dims_of,
    headline_dim,
    likelihood_table,
    other_scores_table,
    run_table,
    samples_table,
    score_table,
    training_table,
)
from launch.report.text import verdict

MOST_HEAT_MAPS = 4  # configurations with figures of their own


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """What to compare, and where the report goes."""

    runs: tuple[Path, ...]
    """Run folders of either family."""
    out: Path
    """Folder of the report."""
    score_missing: bool = True
    """Score runs that have no scores, or those of an older checkpoint."""
    split: str | None = None
    """Split of that scoring: train, valid or test; default that of the first scored run, else test."""
    images: int | None = None
    """Images of that scoring; default as many as the first scored run has, else 10,000."""
    untrained: bool = True
    """In that scoring, also score untrained weights."""
    pictures: int = 4
    """Of at most so many configurations show samples, reconstructions, top groups and traversals; 0 for none."""
    data_root: Path | None = None
    """Where the data is now, if it moved since training."""
    other_data: bool = False
    """Use the data even if they differ from those that the run was trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""

    def __post_init__(self) -> None:
        if self.pictures < 0 or (self.images is not None and self.images < 8):
            raise ValueError("--pictures must be 0 or more and --images at least 8; change them")


# --- Figures --------------------------------------------------------------------------------------------------------


def _figures(compared: Comparable, prefix: str) -> Iterator[Figure]:
    dims, dim = dims_of(compared), headline_dim(compared)
    with_groups = [c for c in compared.configurations if all("groups" in r.record["scores"] for r in c.runs)]
    for index, c in enumerate(with_groups[:MOST_HEAT_MAPS]):
        title = f"Where the factors are: {c.label}"
        yield Figure(f"{prefix}groups-{index}", title, report_figures.heat_map(c), report_text.heat_map(c))
    for index, c in enumerate(with_groups[:MOST_HEAT_MAPS]):
        title = f"What each level adds: {c.label}"
        yield Figure(f"{prefix}gain-{index}", title, report_figures.gains(c), report_text.gains(c))
    if dims:
        drawing = report_figures.mig_against_dimension(compared, dims)
        yield Figure(f"{prefix}mig", "MIG against dimension", drawing, report_text.dimension(compared, dims))
    if any(run.held_out("rate") is not None for run in compared.runs):
        drawing = report_figures.rate_distortion(compared, dim)
        yield Figure(
            f"{prefix}rate-distortion", "Rate, distortion and score", drawing, report_text.scatter(compared, dim)
        )


def _pictures(
    configurations: Sequence[Configuration], prefix: str, config: CompareConfig, ranks: Ranks
) -> Iterator[Block]:
    """The same kind of picture of each model, one after another."""
    drawn: list[tuple[str, Any]] = []
    for c in configurations[: config.pictures]:
        try:
            drawn.append(
                (c.label, report_pictures.draw(c.first, config.data_root, ranks.device, insist=config.other_data))
            )
        except (ValueError, OSError) as error:
            yield Text(f"No pictures of {c.label}: {str(error).partition('; ')[0]}.")
    if len(configurations) > config.pictures > 0:
        yield Text(f"Pictures of the first {config.pictures} configurations; more with --pictures.")
    for kind, said in report_text.PICTURES.items():
        for index, (label, of_run) in enumerate(drawn):
            name = f"{prefix}{kind.replace(' ', '-')}-{index}"
            yield Figure(name, f"{kind.capitalize()}: {label}", report_figures.from_picture(of_run[kind]), said)


# --- The report -----------------------------------------------------------------------------------------------------


def _set_blocks(compared: Comparable, prefix: str, config: CompareConfig, ranks: Ranks) -> list[Block]:
    dim = headline_dim(compared)
    blocks: list[Block] = [Bullets(report_text.what_it_says(compared, dim)), training_table(compared)]
    if any(run.record["held_out"] for run in compared.runs):
        blocks.append(likelihood_table(compared))
    if (samples := samples_table(compared)) is not None:
        blocks.append(samples)
    if dims_of(compared):
        blocks.append(score_table(compared))
    blocks.append(other_scores_table(compared))
    if len(compared.configurations) > 1:
        blocks.append(difference_table(compared))
    blocks += [run_table(compared), *_figures(compared, prefix)]
    return [*blocks, *_pictures(compared.configurations, prefix, config, ranks)]


def build(sets: Sequence[Comparable], skipped: Sequence[str], config: CompareConfig, ranks: Ranks) -> list[Block]:
    """The report as blocks: what compares stands together, what does not stands apart and is named."""
    count = sum(len(compared.runs) for compared in sets)
    blocks: list[Block] = [Heading("Hierarchical and flat VAEs compared", 1)]
    shown = f"{count} runs of {sum(len(s.configurations) for s in sets)} configurations"
    blocks.append(
        Text(f"{shown}, made by launch/compare.py. Nats per image unless a name says bits/dim. ± is over seeds.")
    )
    if skipped:
        blocks += [Text("Left out:"), Bullets(skipped)]
    if len(sets) > 1:
        apart = [f"Set {i + 1} against set 1: {why_apart(sets[0].terms, s.terms)}." for i, s in enumerate(sets) if i]
        blocks += [
            Text(
                "Not all runs compare; each set below stands for itself, and no number of one belongs beside one of another:"
            )
        ]
        blocks.append(Bullets(apart))
    for index, compared in enumerate(sets):
        name = f"Set {index + 1}: " if len(sets) > 1 else ""
        blocks.append(Heading(name + describe_terms(compared.terms)))
        blocks += _set_blocks(compared, f"{index + 1}-" if len(sets) > 1 else "", config, ranks)
    return [*blocks, Heading("Words"), Bullets(report_text.WORDS)]


def _scalars(sets: Sequence[Comparable]) -> Iterator[tuple[str, float]]:
    for index, compared in enumerate(sets):
        dim = headline_dim(compared)
        for c in compared.configurations:
            measures = {name: c.held_out(name) for name in ("elbo", "rate", "distortion", "bits_per_dim")}
            measures[f"mig_{HEADLINE_KIND}_d{dim}"] = c.reduced(HEADLINE_KIND, dim)
            measures["group_mig"] = c.score("groups")
            for name, values in measures.items():
                if len(values):
                    yield f"compare{index + 1}/{name}/{c.label}", float(values.mean())


def _differences(sets: Sequence[Comparable]) -> list[dict[str, Any]]:
    found = []
    for index, compared in enumerate(sets):
        reference, dim = compared.configurations[0], headline_dim(compared)
        for other in compared.configurations[1:]:
            for name, difference in (
                ("elbo", report_text.elbo_difference(other, reference)),
                (f"mig_{HEADLINE_KIND}_d{dim}", report_text.score_difference(other, reference, dim)),
            ):
                row = None if difference is None else asdict(difference) | {"says": verdict(difference)}
                found.append(
                    {
                        "set": index + 1,
                        "configuration": other.label,
                        "reference": reference.label,
                        "quantity": name,
                        "difference": row,
                    }
                )
    return found


def write(out: Path, blocks: Sequence[Block], sets: Sequence[Comparable], skipped: Sequence[str]) -> None:
    """report.html, report.md with figures/, comparison.json, and the same for TensorBoard; what was there is replaced."""
    shutil.rmtree(out / "figures", ignore_errors=True)
    for old in out.glob("events.out.tfevents.*"):
        old.unlink()
    markdown = to_markdown(blocks)
    with SummaryWriter(str(out)) as writer:
        for tag, value in _scalars(sets):
            writer.add_scalar(tag, value, 0)
        for block in blocks:
            if isinstance(block, Figure):
                figures.save(block.drawing.picture, out / "figures" / f"{block.name}.png")
                writer.add_image(f"compare/{block.name}", block.drawing.picture, 0, dataformats="HWC")
        writer.add_text("compare/report", markdown, 0)
    files.write_text(out / "report.html", to_html("Hierarchical and flat VAEs compared", blocks))
    files.write_text(out / "report.md", markdown)
    record = {
        "sets": [
            {"terms": s.terms, "configurations": {c.label: [str(r.path) for r in c.runs] for c in s.configurations}}
            for s in sets
        ],
        "means": dict(_scalars(sets)),
        "differences": _differences(sets),
        "skipped": list(skipped),
    }
    files.write_text(out / "comparison.json", json.dumps(plain(record), indent=1) + "\n")


def _prepare(out: Path) -> None:
    """Refuse a folder of something else before any work is done."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "comparison.json").is_file())):
        raise ValueError(f"{out} exists and holds no earlier report; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the report folder {out} can't be made ({error.strerror}); choose another --out") from error


def _scoring(config: CompareConfig) -> score.ScoreConfig:
    """How runs without scores are scored: as the first that has scores was."""
    chosen: dict[str, Any] = {"untrained": config.untrained, "data_root": config.data_root, "device": config.device}
    chosen["other_data"] = config.other_data
    for path in config.runs:
        try:
            protocol = json.loads((path / "scores.json").read_text(encoding="utf-8"))["protocol"]
            chosen |= {name: protocol[name] for name in ("split", "images", "seed", "full_grid")}
            break
        except (OSError, ValueError, KeyError, TypeError):
            continue  # read_runs says what is wrong with it
    if config.split is not None:
        chosen["split"] = config.split
    if config.images is not None:
        chosen["images"] = config.images
    return score.ScoreConfig(**chosen)


def main(arguments: list[str]) -> None:
    """Parse, score what has no scores, and write the report."""
    config = parse(CompareConfig, None, arguments, prog="compare.py", description=__doc__ or "")
    ranks = distributed.start(config.device)
    if ranks.world_size > 1:
        raise ValueError("compare.py runs as one process; score large runs with torchrun launch/score.py first")
    how = _scoring(config)

    def score_now(path: Path) -> None:
        print(f"scoring {path}", file=sys.stderr, flush=True)
        score.score_run(path, how, ranks)

    runs, skipped = read_runs(config.runs, score_now if config.score_missing else None)
    for reason in skipped:
        print(f"left out: {reason}", file=sys.stderr)
    if not runs:
        raise ValueError(f"none of {len(config.runs)} runs can be compared; see the reasons above, or train one first")
    _prepare(config.out)
    sets = comparable_sets(runs)
    if len(sets) > 1:
        for other in sets[1:]:
            print(f"not compared: {why_apart(sets[0].terms, other.terms)}; in a set of their own", file=sys.stderr)
    blocks = build(sets, skipped, config, ranks)
    write(config.out, blocks, sets, skipped)
    for compared in sets:
        print("\n".join(f"* {item}" for item in report_text.what_it_says(compared, headline_dim(compared))))
    print(f"report   {config.out / 'report.html'}   (the same as Markdown: {config.out / 'report.md'})")
    _require_finite([run for compared in sets for run in compared.runs])


def _require_finite(runs: Sequence[ScoredRun]) -> None:
    """Refuse, after the report is written, runs whose held-out numbers are NaN or infinite.

    Raises:
        FloatingPointError: naming them.
    """
    elbos = {str(run.saved.folder): run.held_out("elbo") for run in runs if run.record["held_out"]}
    broken = [name for name, elbo in elbos.items() if elbo is None or not math.isfinite(elbo)]
    if broken:
        raise FloatingPointError(
            f"the held-out ELBO of {len(broken)} of {len(runs)} runs is not finite ({', '.join(broken[:5])}); "
            "leave them out, or train them again with a lower --lr or --precision fp32"
        )


if __name__ == "__main__":
    errors.main(main)
