"""The report that compares runs: its tables, figures and sentences in order, and the folder that they are written to."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from torch.utils.tensorboard import SummaryWriter

from launch.console import figures as pictures
from launch.console.figures import Picture
from launch.machine import files
from launch.report import figures, words
from launch.report.data import HEADLINE_KIND, Comparable, Configuration, ScoredRun, clean, describe_terms, why_apart
from launch.report.statistics import spread
from launch.report.tables import (
    Block,
    Bullets,
    Figure,
    Heading,
    Table,
    Text,
    number,
    to_html,
    to_markdown,
    with_interval,
)

TITLE = "Hierarchical and flat VAEs compared"
MOST_HEAT_MAPS = 4  # configurations that get their own figures
LONGEST_REASON = 300  # characters
LISTED_SCORES = ("groups", "mig_sup", "modularity", "sap_r2", "dci", "factor_vae", "beta_vae", "total_correlation")
Draw: TypeAlias = Callable[[ScoredRun], Mapping[str, Picture]]


# --- Tables ---------------------------------------------------------------------------------------------------------


def _speed(run: ScoredRun) -> float | None:
    seen, seconds = run.trained("images_seen"), run.trained("seconds")
    return seen / seconds if seen and seconds else None


def training_table(compared: Comparable) -> Table:
    """List the cost of training each configuration."""
    rows = [
        [
            c.label,
            str(len(c.runs)),
            f"{c.first.record['num_parameters'] / 1e6:.2f} M",
            spread(c.values(lambda run: float(run.record["step"])), 0),
            spread(c.values(lambda run: run.trained("images_seen")), 0),
            spread(c.values(lambda run: run.epochs), 2),
            spread(c.values(lambda run: run.trained("seconds")) / 60, 1),
            spread(c.values(_speed), 0),
        ]
        for c in compared.configurations
    ]
    head = [
        "configuration",
        "runs",
        "parameters",
        "steps",
        "images seen",
        "epochs",
        "minutes",
        "images/s",
    ]
    caption = "Training (mean ± standard deviation over seeds; a dash if no run was completed)"
    return Table(head, rows, caption)


def likelihood_table(compared: Comparable) -> Table:
    """List the held-out likelihood of each configuration."""
    names = {"rate": 2, "distortion": 2, "elbo": 2, "bits_per_dim": 4, "psnr": 2, "active_units": 1}
    head = ["configuration", "rate", "distortion", "ELBO", "bits/dim", "reconstruction, dB", "active units"]
    caption = "Held-out images, in nats per image from one posterior sample; a higher ELBO is better"
    measures = [run.measure for run in compared.runs]
    if not any(measure.shows("bits_per_dim") for measure in measures):
        del names["bits_per_dim"]
        head.remove("bits/dim")
    if any(measure.is_density for measure in measures):
        caption += ". A normal likelihood is a density: its ELBO may have either sign and gives no comparable bits/dim"
    if not all(measure.has_rate for measure in measures):
        caption += ". An autoencoder trains no posterior variance: it has a distortion, but no rate and no ELBO"
    rows = [
        [c.label, *(spread(c.held_out(name), digits) for name, digits in names.items())]
        for c in compared.configurations
    ]
    return Table(head, rows, caption)


def score_table(compared: Comparable) -> Table:
    """List MIG at equal dimension by the same reductions, and that of untrained weights."""
    dim = compared.headline_dim
    columns = [(f"{HEADLINE_KIND} d={d}", HEADLINE_KIND, d, False) for d in compared.dims]
    columns += [(f"{kind} d={dim}", kind, dim, False) for kind in ("pool", "pca")]
    columns += [(f"untrained, {HEADLINE_KIND} d={dim}", HEADLINE_KIND, dim, True)]
    rows = [
        [c.label, *(spread(c.reduced(kind, d, untrained=untrained)) for _, kind, d, untrained in columns)]
        for c in compared.configurations
    ]
    caption = "MIG at equal dimension, after the same label-free reduction for every model; a dash if a code is smaller"
    return Table(["configuration", *(name for name, *_ in columns)], rows, caption)


def other_scores_table(compared: Comparable) -> Table:
    """List scores on each model's own code."""
    names = [n for n in LISTED_SCORES if any(run.score(n) is not None for run in compared.runs)]
    rows = [
        [c.label, clean(c.first.record["code"]), *(spread(c.score(n)) for n in names)] for c in compared.configurations
    ]
    caption = "Other scores, each on the model's own code; only group-MIG (groups) is meant for comparing families"
    return Table(["configuration", "code", *names], rows, caption, wordy=frozenset({1}))


def uncertainty_table(compared: Comparable) -> Table:
    """List the scores of each configuration's first run with their intervals over images and chance levels."""
    rows = [
        [c.label, str(c.first.seed), name, with_interval(value, found)]
        for c in compared.configurations
        for name in c.first.with_uncertainty
        if (value := c.first.score(name)) is not None and (found := c.first.uncertainty(name)) is not None
    ]
    caption = "Scores of one run of each configuration: score [95 % interval over images, where one would cover], chance level"
    return Table(["configuration", "seed", "score", "value"], rows, caption, folded=True, wordy=frozenset({2, 3}))


def _of_samples(run: ScoredRun, name: str, images: str = "samples") -> float | None:
    """Return a measurement of samples or reconstructions."""
    scores = run.record.get("samples")
    return float(scores[images][name]) if scores else None


def _coverage(run: ScoredRun, factor: int) -> float | None:
    """Return the fraction of a factor's values that samples cover."""
    scores = run.record.get("samples")
    return float(scores["samples"]["coverage"][factor]) if scores else None


def samples_table(compared: Comparable) -> Table:
    """List precision and coverage of samples, measured against every image of the data set."""
    first = next(run for run in compared.runs if run.record.get("samples"))
    within, covered = first.record["samples"]["samples"]["within"], range(len(first.record["factor_names"]))
    rows = [
        [
            c.label,
            spread(c.values(lambda run: _of_samples(run, "score")), 3),
            spread(c.values(lambda run: _of_samples(run, "median_distance")), 1),
            spread(c.values(lambda run: _of_samples(run, "score", "reconstructions")), 3),
            *(spread(c.values(partial(_coverage, factor=k)), 2) for k in covered),
        ]
        for c in compared.configurations
    ]
    head = ["configuration", f"precision at {within} px", "median distance, px", "precision of reconstructions"]
    head += [f"{clean(name)} covered" for name in first.record["factor_names"]]
    caption = "Samples at temperature 1 against every image of the data set: fraction near one, fractions of factor values covered"
    return Table(head, rows, caption)


def difference_table(compared: Comparable) -> Table:
    """List the difference of each configuration from the reference, with 95 % intervals and a verdict."""
    reference, dim = compared.configurations[0], compared.headline_dim
    rows = []
    for other in compared.configurations[1:]:
        for name, found, digits in (
            ("ELBO, nats", words.elbo_difference(other, reference), 2),
            (f"MIG ({HEADLINE_KIND}, d = {dim})", words.score_difference(other, reference, dim), 3),
        ):
            over = found.over if found else "-"
            rows.append([other.label, name, words.interval(found, digits), over, words.verdict(found)])
    return Table(
        ["configuration", "quantity", "difference ± 95 %", "interval over", "verdict"],
        rows,
        f"Differences from {reference.label}: Welch's interval over seeds, or paired over images if one side has a single run",
        wordy=frozenset({4}),
    )


def run_table(compared: Comparable) -> Table:
    """List every run."""
    dim = compared.headline_dim
    rows = [
        [
            c.label,
            str(run.path),
            str(run.seed),
            f"{run.record['step']:,}",
            number(run.held_out("elbo"), 2),
            number(run.held_out("rate"), 2),
            number(run.held_out("distortion"), 2),
            number(run.reduced(HEADLINE_KIND, dim)),
            number(run.score("groups")),
        ]
        for c in compared.configurations
        for run in c.runs
    ]
    head = ["configuration", "run", "seed", "step", "ELBO", "rate", "distortion", f"MIG d={dim}", "group-MIG"]
    return Table(head, rows, "Every run", folded=True)


# --- Figures --------------------------------------------------------------------------------------------------------


def _figures(compared: Comparable, prefix: str) -> Iterator[Block]:
    have_groups = [c for c in compared.configurations if all(run.has_groups for run in c.runs)]
    with_groups = have_groups[:MOST_HEAT_MAPS]
    if len(have_groups) > MOST_HEAT_MAPS:
        yield Text(
            f"Groups are shown for the first {MOST_HEAT_MAPS} of {len(have_groups)} configurations; to see others, list them first."
        )
    for i, c in enumerate(with_groups):
        title = f"Where the factors are encoded: {c.label}"
        yield Figure(f"{prefix}groups-{i}", title, figures.heat_map(c), words.heat_map(c))
    for i, c in enumerate(with_groups):
        yield Figure(f"{prefix}gain-{i}", f"What each group adds: {c.label}", figures.gains(c), words.gains(c))
    if compared.dims:
        drawing = figures.mig_against_dimension(compared)
        yield Figure(f"{prefix}mig", "MIG against dimension", drawing, words.dimension(compared))
    if compared.with_uncertainty:
        yield Figure(f"{prefix}intervals", "Scores and chance", figures.intervals(compared), words.INTERVALS)
    if any(run.held_out("rate") is not None for run in compared.runs):
        drawing = figures.rate_distortion(compared)
        yield Figure(f"{prefix}rate-distortion", "Rate, distortion and score", drawing, words.scatter(compared))


def _pictures(configurations: Sequence[Configuration], prefix: str, most: int, draw: Draw) -> Iterator[Block]:
    """Yield the same kinds of picture of each model, one after another."""
    drawn: list[tuple[str, Mapping[str, Picture]]] = []
    for c in configurations[:most]:
        try:
            drawn.append((c.label, draw(c.first)))
        except (ValueError, OSError) as error:
            yield Text(f"No pictures of {c.label}: {clean(str(error).partition('; ')[0], LONGEST_REASON)}.")
    if len(configurations) > most > 0:
        yield Text(f"Pictures are shown for the first {most} configurations; --pictures shows more.")
    for kind, said in words.PICTURES.items():
        for index, (label, of_run) in enumerate(drawn):
            name = f"{prefix}{kind.replace(' ', '-')}-{index}"
            yield Figure(name, f"{kind.capitalize()}: {label}", figures.from_picture(of_run[kind]), said)


# --- The report -----------------------------------------------------------------------------------------------------


def _likelihood_tables(compared: Comparable) -> Iterator[Block]:
    if any(run.record["held_out"] for run in compared.runs):
        yield likelihood_table(compared)
    if any(run.record.get("samples") for run in compared.runs):
        yield samples_table(compared)


def _score_tables(compared: Comparable) -> Iterator[Block]:
    if compared.dims:
        yield score_table(compared)
    yield other_scores_table(compared)
    if compared.with_uncertainty:
        yield uncertainty_table(compared)


def _set_blocks(compared: Comparable, prefix: str, most_pictures: int, draw: Draw) -> Iterator[Block]:
    """Yield the sections of a set: findings, pictures, numbers; a section without content is left out."""
    differences = [difference_table(compared)] if len(compared.configurations) > 1 else []
    sections: tuple[tuple[str, Iterable[Block]], ...] = (
        ("In short", [Bullets(words.summary(compared))]),
        ("Pictures", _pictures(compared.configurations, prefix, most_pictures, draw)),
        ("Training", [training_table(compared)]),
        ("Likelihood", _likelihood_tables(compared)),
        ("Scores", _score_tables(compared)),
        ("Differences", differences),
        ("Figures", _figures(compared, prefix)),
        ("Runs", [run_table(compared)]),
    )
    for title, blocks in sections:
        if found := list(blocks):
            yield Heading(f"{title} ({prefix[:-1]})" if prefix else title, 3)
            yield from found


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def build(
    sets: Sequence[Comparable], skipped: Sequence[str], most_pictures: int, draw: Draw, *, made: str = ""
) -> list[Block]:
    """Build the report, with a section for each set of runs whose numbers are comparable.

    Args:
        sets: sets of runs whose numbers are comparable.
        skipped: for each run that was left out, the reason.
        most_pictures: number of configurations of each set whose pictures are shown.
        draw: function that draws the pictures of a run by name, or raises ValueError.
        made: date, commit and command of the report; empty for a report whose bytes must be reproducible.
    """
    count = sum(len(compared.runs) for compared in sets)
    configurations = sum(len(s.configurations) for s in sets)
    shown = f"{_counted(count, 'run')} of {_counted(configurations, 'configuration')}"
    blocks: list[Block] = [
        Heading(TITLE, 1),
        Text(f"{shown}, compared by launch/compare.py. Units are nats per image unless a name says bits/dim."),
    ]
    if made:
        blocks.append(Text(made))
    if skipped:
        blocks += [Text("Left out:"), Bullets(skipped)]
    if len(sets) > 1:
        apart = [
            f"Set {i + 1} differs from set 1: {why_apart(sets[0].terms, s.terms)}." for i, s in enumerate(sets) if i
        ]
        blocks += [Text("Not all runs are comparable. Do not compare numbers across these sets:"), Bullets(apart)]
    for index, compared in enumerate(sets):
        name = f"Set {index + 1}: " if len(sets) > 1 else ""
        blocks.append(Heading(name + describe_terms(compared.terms)))
        blocks += _set_blocks(compared, f"{index + 1}-" if len(sets) > 1 else "", most_pictures, draw)
    return [*blocks, Heading("Glossary"), Bullets(words.GLOSSARY)]


def _means(sets: Sequence[Comparable]) -> Iterator[tuple[str, float]]:
    for index, compared in enumerate(sets):
        dim = compared.headline_dim
        for c in compared.configurations:
            measures = {name: c.held_out(name) for name in ("elbo", "rate", "distortion", "bits_per_dim")}
            measures[f"mig_{HEADLINE_KIND}_d{dim}"] = c.reduced(HEADLINE_KIND, dim)
            measures["group_mig"] = c.score("groups")
            for name, values in measures.items():
                if len(values):
                    yield f"compare{index + 1}/{name}/{c.label}", float(values.mean())


def _differences(sets: Sequence[Comparable]) -> Iterator[dict[str, Any]]:
    for index, compared in enumerate(sets):
        reference, dim = compared.configurations[0], compared.headline_dim
        for other in compared.configurations[1:]:
            for name, found in (
                ("elbo", words.elbo_difference(other, reference)),
                (f"mig_{HEADLINE_KIND}_d{dim}", words.score_difference(other, reference, dim)),
            ):
                yield {
                    "set": index + 1,
                    "configuration": other.label,
                    "reference": reference.label,
                    "quantity": name,
                    "difference": None if found is None else asdict(found) | {"says": words.verdict(found)},
                }


def prepare(out: Path) -> None:
    """Create the folder of a report, or reuse that of an earlier one.

    Raises:
        ValueError: it holds something else, or cannot be created.
    """
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "comparison.json").is_file())):
        raise ValueError(f"{out} exists and holds no earlier report; choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the report folder {out} can't be created ({error.strerror}); choose another --out"
        ) from error


def write_markdown(out: Path, blocks: Sequence[Block], sets: Sequence[Comparable], skipped: Sequence[str]) -> None:
    """Write report.md, its figures and comparison.json; those of an earlier report are replaced."""
    shutil.rmtree(out / "figures", ignore_errors=True)
    for block in blocks:
        if isinstance(block, Figure):
            pictures.save(block.drawing.picture, out / "figures" / f"{block.name}.png")
    files.write_text(out / "report.md", to_markdown(blocks))
    record = {
        "sets": [
            {"terms": s.terms, "configurations": {c.label: [str(r.path) for r in c.runs] for c in s.configurations}}
            for s in sets
        ],
        "means": dict(_means(sets)),
        "differences": list(_differences(sets)),
        "skipped": list(skipped),
    }
    files.write_json(out / "comparison.json", record)


def write(out: Path, blocks: Sequence[Block], sets: Sequence[Comparable], skipped: Sequence[str]) -> None:
    """Write the report as report.html, report.md and comparison.json, and its pictures and text as TensorBoard events.

    TensorBoard gets no numbers: each would be a chart with one point, shown before the curves of the runs.
    """
    write_markdown(out, blocks, sets, skipped)
    files.write_text(out / "report.html", to_html(TITLE, blocks))
    for old in out.glob("events.out.tfevents.*"):
        old.unlink()
    with SummaryWriter(str(out)) as writer:
        for block in blocks:
            if isinstance(block, Figure):
                writer.add_image(f"report/{block.name}", block.drawing.picture, 0, dataformats="HWC")
        writer.add_text("report/text", to_markdown(blocks), 0)


def require_finite(runs: Sequence[ScoredRun]) -> None:
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
