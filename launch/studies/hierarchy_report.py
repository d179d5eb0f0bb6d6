"""The hierarchy study's report: a comparison for each data set and a summary page, from stored scores alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from launch.console.figures import Picture, save
from launch.report import comparison, words
from launch.report.runs import ScoredRun, read_runs
from launch.report.statistics import Comparable, Configuration, comparable_sets, spread
from launch.report.tables import Table, write_paragraphs
from launch.studies import hierarchy_curves
from launch.studies.family import DataName

ORDER = ("flat-vae", "nvae-", "flat-")  # the first is the reference
TITLES = {"dsprites": "Rendered dSprites", "celeba": "CelebA at 64x64, its 40 attributes as factors"}

FLOOR = {"dsprites": math.log(737_280)}  # nats: its images are equally likely, so no model has a smaller -ELBO
OPENING = (
    "NVAEs with four latent groups on one, two or three scales against flat VAEs: plain, beta 4, and beta-TCVAE with beta 4. "
    "All were trained for about the same CPU time, in which a flat VAE sees more images, by the [recipes](../recipes.md): a cosine "
    "schedule and averaged weights. A shorter run would lower its learning rate sooner, so intermediate points of a curve "
    "understate what shorter training reaches. Codes of every model are reduced to equal dimension in the same way, without "
    "labels ([how](../../metrics/hierarchy.md)).\n\n"
    "`python launch/studies/hierarchy.py` (`make study`) trains, scores and reports; with `--report-only` it writes this page "
    "and its figures again from the stored scores in [runs](runs)."
)


def write(folder: Path, stored: Mapping[DataName, Sequence[Path]]) -> Path:
    """Write ``index.md`` and a comparison with its figures for each data set; return the path of ``index.md``.

    Args:
        folder: folder of the report.
        stored: folders of the scored runs of each data set.
    """
    parts = ["# Does a hierarchy disentangle?", OPENING]
    for name, paths in stored.items():
        parts += _of_data(folder, name, sorted(paths, key=_rank))
    return write_paragraphs(folder / "index.md", parts)


def _rank(path: Path) -> tuple[int, str]:
    return next(i for i, start in enumerate(ORDER) if path.name.startswith(start)), path.name


def _of_data(folder: Path, name: DataName, paths: Sequence[Path]) -> list[str]:
    """Heading, sentences and table of one data set; write its full comparison beside the page."""
    runs, skipped = read_runs(paths, None)
    sets = comparable_sets(runs)
    comparison.prepare(folder / name)
    blocks = comparison.build(sets, skipped, most_pictures=0, draw=_no_pictures)
    comparison.write_markdown(folder / name, blocks, sets, skipped)
    (compared,) = sets
    title = f"{TITLES[name]}: negative ELBO while hierarchies and flat VAEs train, every line a run"
    save(hierarchy_curves.draw(compared, title, FLOOR.get(name)), folder / name / "curves.png")
    return [
        f"## {TITLES[name]}",
        _cost(compared),
        f"![learning curves]({name}/curves.png)",
        hierarchy_curves.leaders(compared),
        "\n".join(f"* {item}" for item in words.summary(compared)),
        _table(compared, FLOOR.get(name)),
        *_where(compared),
        f"All tables and figures: [{name}/report.md]({name}/report.md).",
    ]


def _no_pictures(run: ScoredRun) -> Mapping[str, Picture]:
    raise ValueError("stored runs have no weights")


def _cost(compared: Comparable) -> str:
    minutes = [found for run in compared.runs if (found := _cpu_minutes(run)) is not None]
    return f"{len(compared.runs)} run{'s' * (len(compared.runs) > 1)}, {sum(minutes) / 60:.1f} hours of one CPU core in total."


def _cpu_minutes(run: ScoredRun) -> float | None:
    minutes = hierarchy_curves.curve(run.path)[0]
    return float(minutes[-1]) if minutes.size else None


def _table(compared: Comparable, floor: float | None) -> str:
    """The numbers on which the sentences and the README rest."""
    dim = compared.headline_dim
    columns: dict[str, Callable[[Configuration], str]] = {
        "model": lambda c: c.label,
        "seeds": lambda c: str(len(c.runs)),
        "parameters": lambda c: f"{c.first.record['num_parameters'] / 1e6:.2f} M",
        "images seen": lambda c: spread(c.values(lambda run: run.summary.get("images_seen")), 0),
        "CPU minutes": lambda c: spread(c.values(_cpu_minutes), 1),
        "ELBO, nats": lambda c: spread(c.held_out("elbo"), 1),
        "rate": lambda c: spread(c.held_out("rate"), 1),
        "distortion": lambda c: spread(c.held_out("distortion"), 1),
        "bits/dim": lambda c: spread(c.held_out("bits_per_dim"), 4),
        f"MIG, d = {dim}": lambda c: spread(c.reduced("moments", dim)),
        "untrained": lambda c: spread(c.reduced("moments", dim, untrained=True)),
        "group-MIG": lambda c: spread(c.score("groups")),
    }
    if floor is not None:
        columns[f"-ELBO above {floor:.1f}"] = lambda c: spread(-c.held_out("elbo") - floor, 1)
    if all(run.record["samples"] for run in compared.runs):
        within = compared.runs[0].record["samples"]["samples"]["within"]
        columns[f"samples within {within} px"] = lambda c: spread(c.values(_precision))
    rows = [[cell(c) for cell in columns.values()] for c in compared.configurations]
    return Table(list(columns), rows).markdown()


def _precision(run: ScoredRun) -> float:
    """Share of samples near a real image."""
    return float(run.record["samples"]["samples"]["score"])


def _where(compared: Comparable) -> list[str]:
    """Groups of the deepest hierarchy in which the factors are found."""
    deepest: Configuration = max(compared.configurations, key=lambda c: len(c.first.record["group_shapes"]))
    scales = [c for c in compared.configurations if len({s[-1] for s in c.first.record["group_shapes"]}) > 1]
    chosen = scales[-1] if scales else deepest
    if not all("groups" in run.record["scores"] for run in chosen.runs):
        return []
    shapes = ", ".join("x".join(map(str, shape)) for shape in chosen.first.record["group_shapes"])
    return [
        f"**Where {chosen.label} encodes the factors** (groups from the top: {shapes}). {words.heat_map(chosen)}",
        words.gains(chosen),
    ]
