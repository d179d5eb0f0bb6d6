"""The hierarchy study's report: a comparison for each data set and a summary page, from stored scores alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.console.figures import Picture
from launch.report import comparison, words
from launch.report.data import Comparable, Configuration, ScoredRun, comparable_sets, read_runs
from launch.report.statistics import spread
from launch.report.tables import Table, write_paragraphs
from launch.studies.family import DataName

ORDER = ("flat-vae", "nvae-groups", "nvae-scales", "flat-")  # the first is the reference
TITLES = {"dsprites": "dSprites, drawn by rule", "celeba": "CelebA at 64x64, its 40 attributes as factors"}

OPENING = (
    "Written by `python launch/studies/hierarchy.py` (`make study`) from the scores in `docs/studies/family`; "
    "`python launch/studies/hierarchy.py --report-only` writes it and its figures again. NVAEs of four latent groups on 1, 2 "
    "and 3 scales stand against flat VAEs (plain, beta 4, beta-TCVAE with beta 4): each kind for a number of steps of its own, so "
    "compare the columns of minutes and images seen. Codes of equal dimension are made of both by the same reductions "
    "without labels (docs/metrics). **Minutes of training say how the tool works and how these small models differ, not what "
    "the architectures can reach.**"
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
    return [
        f"## {TITLES[name]}",
        _cost(compared),
        "\n".join(f"* {item}" for item in words.summary(compared)),
        _table(compared),
        *_where(compared),
        f"All tables and figures: [{name}/report.md]({name}/report.md).",
    ]


def _no_pictures(run: ScoredRun) -> Mapping[str, Picture]:
    raise ValueError("stored runs have no weights")


def _cost(compared: Comparable) -> str:
    seconds = [float(run.summary["seconds"]) for run in compared.runs if "seconds" in run.summary]
    return (
        f"{len(compared.runs)} runs, {sum(seconds) / 60:.0f} minutes of training in all (one thread each, on a machine that did "
        f"other work too, so minutes do not measure speed)."
    )


def _minutes(run: ScoredRun) -> float | None:
    seconds = run.summary.get("seconds")
    return None if seconds is None else float(seconds) / 60


def _table(compared: Comparable) -> str:
    """The numbers on which the sentences and the README rest."""
    dim = compared.headline_dim
    rows = [
        [
            c.label,
            str(len(c.runs)),
            f"{c.first.record['num_parameters'] / 1e6:.2f} M",
            spread(c.values(lambda run: run.summary.get("images_seen")), 0),
            spread(c.values(_minutes), 1),
            spread(c.held_out("elbo"), 1),
            spread(c.held_out("bits_per_dim"), 4),
            spread(c.reduced("moments", dim)),
            spread(c.reduced("moments", dim, untrained=True)),
            spread(c.score("groups")),
        ]
        for c in compared.configurations
    ]
    head = [
        "model",
        "seeds",
        "parameters",
        "images seen",
        "minutes",
        "ELBO, nats",
        "bits/dim",
        f"MIG, d = {dim}",
        "untrained",
        "group-MIG",
    ]
    return Table(head, rows).markdown()


def _where(compared: Comparable) -> list[str]:
    """Groups of the deepest hierarchy in which the factors are found."""
    deepest: Configuration = max(compared.configurations, key=lambda c: len(c.first.record["group_shapes"]))
    scales = [c for c in compared.configurations if len({s[-1] for s in c.first.record["group_shapes"]}) > 1]
    chosen = scales[-1] if scales else deepest
    if not all("groups" in run.record["scores"] for run in chosen.runs):
        return []
    shapes = ", ".join("x".join(map(str, shape)) for shape in chosen.first.record["group_shapes"])
    return [
        f"**Where the factors are in {chosen.label}** (groups from the top: {shapes}). {words.heat_map(chosen)}",
        words.gains(chosen),
    ]
