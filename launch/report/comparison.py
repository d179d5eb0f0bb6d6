"""The report that compares runs: its tables, figures and sentences in order, and the folder that they are written to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, TypeAlias

from torch.utils.tensorboard import SummaryWriter

from launch.console import figures as pictures
from launch.console.figures import Picture
from launch.machine import files
from launch.report import figures, words
from launch.report.runs import ScoredRun, clean
from launch.report.statistics import HEADLINE_KIND, Comparable, Configuration, describe_terms, spread, why_apart
from launch.report.tables import Block, Bullets, Figure, Heading, Table, Text, to_html, to_markdown, with_interval

TITLE = "Hierarchical and flat VAEs compared"
MOST_HEAT_MAPS = 4  # configurations that get their own figures
LONGEST_REASON = 300  # characters
LISTED_SCORES = ("groups", "mig_sup", "modularity", "sap_r2", "dci", "factor_vae", "beta_vae", "total_correlation")
MakeTable: TypeAlias = Callable[[Comparable], Table]
Cell: TypeAlias = Callable[[Configuration], str]
Draw: TypeAlias = Callable[[ScoredRun], Mapping[str, Picture]]


# --- Tables ---------------------------------------------------------------------------------------------------------


def _table(configurations: Sequence[Configuration], columns: Mapping[str, Cell], caption: str, **look: Any) -> Table:
    """A row for each configuration; ``columns`` maps the name of a column to the function that gives its cells."""
    rows = [[c.label, *(cell(c) for cell in columns.values())] for c in configurations]
    return Table(["configuration", *columns], rows, caption, **look)


def _mean(measure: Callable[..., float | None], digits: int = 3, **arguments: Any) -> Cell:
    """Mean and standard deviation of ``measure(run, **arguments)`` over the runs of a configuration."""
    return lambda c: spread(c.values(partial(measure, **arguments)), digits)


def training_table(compared: Comparable) -> Table:
    """List the cost of training each configuration."""

    def speed(run: ScoredRun) -> float | None:
        seen, minutes = run.summary.get("images_seen"), compared.minutes(run)
        return seen / minutes / 60 if seen and minutes else None

    columns: dict[str, Cell] = {
        "runs": lambda c: str(len(c.runs)),
        "parameters": lambda c: f"{c.first.record['num_parameters'] / 1e6:.2f} M",
        "steps": _mean(lambda run: run.record["step"], 0),
        "images seen": _mean(lambda run: run.summary.get("images_seen"), 0),
        "epochs": _mean(lambda run: run.epochs, 2),
        compared.clock: _mean(compared.minutes, 1),
        "images/s": _mean(speed, 0),
    }
    caption = "Training (mean ± standard deviation over seeds; a dash if no run was completed)"
    return _table(compared.configurations, columns, caption)


def likelihood_table(compared: Comparable) -> Table:
    """List the held-out likelihood of each configuration."""
    columns = {
        "rate": _mean(ScoredRun.held_out, 2, name="rate"),
        "distortion": _mean(ScoredRun.held_out, 2, name="distortion"),
        "ELBO": _mean(ScoredRun.held_out, 2, name="elbo"),
        "bits/dim": _mean(ScoredRun.held_out, 4, name="bits_per_dim"),
        "reconstruction, dB": _mean(ScoredRun.held_out, 2, name="psnr"),
        "active units": _mean(ScoredRun.held_out, 1, name="active_units"),
    }
    caption = "Held-out images, in nats per image from one posterior sample; a higher ELBO is better"
    measures = [run.measure for run in compared.runs]
    if not any(measure.shows("bits_per_dim") for measure in measures):
        del columns["bits/dim"]
    for note in dict.fromkeys(measure.note for measure in measures if measure.note):
        caption += f". {note}"
    if not all(measure.has_rate for measure in measures):
        caption += ". An autoencoder trains no posterior variance: it has a distortion, but no rate and no ELBO"
    return _table(compared.configurations, columns, caption)


def score_table(compared: Comparable) -> Table:
    """List MIG at equal dimension by the same reductions, and that of untrained weights."""
    dim = compared.headline_dim
    columns = {f"{HEADLINE_KIND} d={d}": _mean(ScoredRun.reduced, kind=HEADLINE_KIND, dim=d) for d in compared.dims}
    columns |= {f"{kind} d={dim}": _mean(ScoredRun.reduced, kind=kind, dim=dim) for kind in ("pool", "pca")}
    columns[f"untrained, {HEADLINE_KIND} d={dim}"] = _mean(
        ScoredRun.reduced, kind=HEADLINE_KIND, dim=dim, untrained=True
    )
    caption = "MIG at equal dimension, after the same label-free reduction for every model; a dash if a code is smaller"
    return _table(compared.configurations, columns, caption)


def other_scores_table(compared: Comparable) -> Table:
    """List scores on each model's own code."""
    names = [n for n in LISTED_SCORES if any(run.score(n) is not None for run in compared.runs)]
    columns: dict[str, Cell] = {"code": lambda c: clean(c.first.record["code"])}
    columns |= {name: _mean(ScoredRun.score, name=name) for name in names}
    caption = "Other scores, each on the model's own code; only group-MIG (groups) is meant for comparing families"
    return _table(compared.configurations, columns, caption, wordy=frozenset({1}))


def uncertainty_table(compared: Comparable) -> Table:
    """List the scores of each configuration's first run with their intervals over images and chance levels."""
    rows = [
        [c.label, str(c.first.seed), name, with_interval(value, found)]
        for c in compared.configurations
        for name, (value, found) in c.first.uncertain.items()
    ]
    caption = "Scores of one run per configuration: score [95 % interval over images, where coverage was verified], chance level"
    return Table(["configuration", "seed", "score", "value"], rows, caption, folded=True, wordy=frozenset({2, 3}))


def samples_table(compared: Comparable) -> Table:
    """List precision and coverage of samples, measured against every image of the data set."""
    first = next(run.record for run in compared.runs if run.record.get("samples"))
    columns = {
        f"precision at {first['samples']['samples']['within']} px": _mean(_of_samples, 3, path=("samples", "score")),
        "median distance, px": _mean(_of_samples, 1, path=("samples", "median_distance")),
        "precision of reconstructions": _mean(_of_samples, 3, path=("reconstructions", "score")),
    }
    for k, name in enumerate(first["factor_names"]):
        columns[f"{clean(name)} covered"] = _mean(_of_samples, 2, path=("samples", "coverage", k))
    caption = "Samples at temperature 1 against every image of the data set: fraction near one, fractions of factor values covered"
    return _table(compared.configurations, columns, caption)


def _of_samples(run: ScoredRun, path: Sequence[str | int]) -> float | None:
    """A number in the record of samples, if the run has one."""
    samples = run.record.get("samples")
    return float(reduce(getitem, path, samples)) if samples else None


def difference_table(compared: Comparable) -> Table:
    """List the difference of each configuration from the reference, with 95 % intervals and a verdict."""
    rows = [
        [other.label, name, words.interval(found, digits), found.over if found else "-", words.verdict(found)]
        for other, elbo, score in compared.differences
        for name, found, digits in (("ELBO, nats", elbo, 2), (compared.headline, score, 3))
    ]
    head = ["configuration", "quantity", "difference ± 95 %", "interval over", "verdict"]
    caption = f"Differences from {compared.configurations[0].label}: Welch's interval over seeds, or paired over images"
    caption += " if one side has a single run"
    return Table(head, rows, caption, wordy=frozenset({4}))


def run_table(compared: Comparable) -> Table:
    """List every run."""
    columns: dict[str, Cell] = {
        "run": lambda c: str(c.first.path),
        "seed": lambda c: str(c.first.seed),
        "step": lambda c: f"{c.first.record['step']:,}",
        "ELBO": _mean(ScoredRun.held_out, 2, name="elbo"),
        "rate": _mean(ScoredRun.held_out, 2, name="rate"),
        "distortion": _mean(ScoredRun.held_out, 2, name="distortion"),
        f"MIG d={compared.headline_dim}": _mean(ScoredRun.reduced, kind=HEADLINE_KIND, dim=compared.headline_dim),
        "group-MIG": _mean(ScoredRun.score, name="groups"),
    }
    single = [Configuration(c.label, [run]) for c in compared.configurations for run in c.runs]
    return _table(single, columns, "Every run", folded=True)


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
    if compared.uncertain:
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


def _made(compared: Comparable, tables: Mapping[MakeTable, object]) -> list[Table]:
    """Make the tables that have content."""
    return [table(compared) for table, content in tables.items() if content]


def _set_blocks(compared: Comparable, prefix: str, most_pictures: int, draw: Draw) -> Iterator[Block]:
    """Yield the sections of a set: findings, pictures, numbers; a section without content is left out."""
    held_out, samples = (any(run.record.get(name) for run in compared.runs) for name in ("held_out", "samples"))
    scores: dict[MakeTable, object] = {score_table: compared.dims, other_scores_table: True}
    scores[uncertainty_table] = compared.uncertain
    sections: tuple[tuple[str, Iterable[Block]], ...] = (
        ("In short", [Bullets(words.summary(compared))]),
        ("Pictures", _pictures(compared.configurations, prefix, most_pictures, draw)),
        ("Training", [training_table(compared)]),
        ("Likelihood", _made(compared, {likelihood_table: held_out, samples_table: samples})),
        ("Scores", _made(compared, scores)),
        ("Differences", _made(compared, {difference_table: compared.differences})),
        ("Figures", _figures(compared, prefix)),
        ("Runs", [run_table(compared)]),
    )
    for title, blocks in sections:
        if found := list(blocks):
            yield Heading(f"{title} ({prefix[:-1]})" if prefix else title, 3)
            yield from found


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
    counts = {"run": sum(len(s.runs) for s in sets), "configuration": sum(len(s.configurations) for s in sets)}
    shown = " of ".join(f"{count} {noun}{'s' * (count != 1)}" for noun, count in counts.items())
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
        for other, elbo, score in compared.differences:
            for name, found in (("elbo", elbo), (f"mig_{HEADLINE_KIND}_d{compared.headline_dim}", score)):
                yield {
                    "set": index + 1,
                    "configuration": other.label,
                    "reference": compared.configurations[0].label,
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
        raise ValueError(f"the folder {out} can't be created ({error.strerror}); choose another --out") from error


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
