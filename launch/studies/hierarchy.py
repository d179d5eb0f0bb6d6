"""Does a hierarchy disentangle? NVAEs of 1, 2 and 3 scales against flat beta-VAEs, on dSprites and on CelebA's attributes.

Trains, scores and stores the runs that are not stored yet, and writes the report from the stored scores. Repeat the
command to continue a stopped study, or with more --seeds to extend it.

Examples:
  python launch/studies/hierarchy.py --celeba-root FOLDER
  python launch/studies/hierarchy.py --datasets dsprites --seeds 5 --minutes 60
  python launch/studies/hierarchy.py --report-only
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import numpy as np

from launch.console import errors, flags
from launch.console.figures import Picture, render, save, subplots
from launch.report import comparison, words
from launch.report.runs import ScoredRun, read_runs
from launch.report.statistics import Comparable, Configuration, Float64, comparable_sets, spread, why_apart
from launch.report.tables import Table, write_paragraphs
from launch.studies import family
from launch.studies.family import DataName, FamilyConfig, Length, Member
from launch.studies.scaling_figures import COLOURS
from launch.training import records

SCALES = {1: (4,), 2: (2, 2), 3: (2, 1, 1)}  # groups on each scale, the finest first
RECIPES = {
    "dsprites": ("--preset", "dsprites"),
    # the finest scale is 16x16, because four groups on one scale of 32x32 take twice as long
    "celeba": ("--preset", "celeba64-cpu", "--preprocess-blocks", "2", "--postprocess-blocks", "2"),
}
COMMON = ("--compile", "--log-every", "100")
# Of the NVAE of one scale and the flat VAE, compiled, on one core of an AMD EPYC 7003. Those of CelebA were measured on a newer
# core and divided by 4.3, by which that core is faster on dSprites. Whether models train for equal times depends on the ratios
# alone; the report states the CPU time of each.
STEPS_PER_MINUTE = {"dsprites": (375, 440), "celeba": (100, 60)}
# number of scales -> steps in the time of a one-scale step
PACES = {"dsprites": {1: 1.0, 2: 0.8, 3: 0.65}, "celeba": {1: 1.0, 2: 0.92, 3: 0.7}}
EVAL_IMAGES = {"dsprites": 1024, "celeba": 256}  # an image of CelebA costs more, and its subset has 566


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig(FamilyConfig):
    """Runs of the study and the folder of its report."""

    minutes: float = 30.0
    """Training time of each run, in minutes of a CPU core of 2021. It sets the number of steps, on a GPU too."""
    out: Path = Path("studies/hierarchy")
    """Folder of the runs."""
    store: Path = Path("docs/studies/hierarchy/runs")
    """Folder of their scores, from which the report is made."""
    report: Path = Path("docs/studies/hierarchy")
    """Folder of the report."""
    one_length: ClassVar[tuple[str, ...]] = ("minutes",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.minutes < math.inf:
            raise ValueError(f"--minutes {self.minutes:g}; give a number above 0")

    def length(self, data: DataName) -> Length:
        """The number of steps that take the given minutes on a CPU, with ten evaluations."""
        nvae, flat = (max(1, round(self.minutes * rate)) for rate in STEPS_PER_MINUTE[data])
        return Length(nvae, flat, schedule="cosine", points=10, eval_images=EVAL_IMAGES[data])

    def members(self, data: DataName) -> list[Member]:
        """The models of the study; the first, the plain flat VAE, is the reference."""
        hierarchies = [_nvae(data, num_scales) for num_scales in SCALES]
        return [_flat(data, "vae"), *hierarchies, _flat(data, "beta", 4.0), _flat(data, "tc", 4.0)]


def _nvae(data: DataName, num_scales: int) -> Member:
    """The recipe of a data set (docs/studies/recipes.md) with four groups on 1, 2 or 3 scales; the finest is the same."""
    groups = SCALES[num_scales]
    typed = ("--num-scales", str(num_scales), "--groups-per-scale", *map(str, groups))
    return Member(f"nvae-scales{num_scales}", "train_nvae", (*RECIPES[data], *typed, *COMMON), PACES[data][num_scales])


def _flat(data: DataName, objective: Literal["vae", "beta", "tc"], beta: float | None = None) -> Member:
    """The recipe of the zoo's flat VAE with another objective."""
    member = family.flat(data, objective, beta)
    recipe = ("--lr", "1e-3", "--lr-min", "1e-4", "--lr-warmup", "0.02", "--ema-decay", "0.999")
    return replace(member, flags=(*member.flags, *recipe, *COMMON))


# --- The report, made only from stored scores ---------------------------------------------------------------------------

ORDER = ("flat-vae", "nvae-", "flat-")  # the first is the reference
TITLES = {"dsprites": "Rendered dSprites", "celeba": "CelebA at 64x64, its 40 attributes as factors"}

FLOOR = {"dsprites": math.log(737_280)}  # nats: its images are equally likely, so no model has a smaller -ELBO
OPENING = (
    "NVAEs with four latent groups on one, two or three scales against flat VAEs: plain, beta 4, and beta-TCVAE with beta 4. "
    "All follow the [recipes](../recipes.md), with a cosine schedule and averaged weights, and were trained for about the same CPU "
    "time, in which a flat VAE sees more images. A shorter run would lower its learning rate sooner, so intermediate points of a "
    "curve understate what shorter training reaches. Codes of every model are reduced to equal dimension in the same way, without "
    "labels ([how](../../metrics/hierarchy.md)).\n\n"
    "`python launch/studies/hierarchy.py` (`make study`) trains, scores and reports; with `--report-only` it writes this page "
    "and its figures again from the stored scores in [runs](runs)."
)


def write(folder: Path, stored: Mapping[DataName, Sequence[Path]]) -> Path:
    """Write ``index.md`` and a comparison with its figures for each data set; return the path of ``index.md``."""
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
    if len(sets) != 1:
        cause = f"they differ in {why_apart(sets[0].terms, sets[1].terms)}" if sets else skipped[0]
        raise ValueError(f"the stored runs of {name} cannot be compared: {cause}; delete those that should not count")
    comparison.prepare(folder / name)
    blocks = comparison.build(sets, skipped, most_pictures=0, draw=_no_pictures)
    comparison.write_markdown(folder / name, blocks, sets, skipped)
    (compared,) = sets
    title = f"{TITLES[name]}: negative ELBO while hierarchies and flat VAEs train, every line a run"
    save(_draw(compared, title, FLOOR.get(name)), folder / name / "curves.png")
    return [
        f"## {TITLES[name]}",
        _cost(compared),
        f"![learning curves]({name}/curves.png)",
        leaders(compared),
        "\n".join(f"* {item}" for item in words.summary(compared)),
        _table(compared, FLOOR.get(name)),
        *_where(compared),
        f"All tables and figures: [{name}/report.md]({name}/report.md).",
    ]


def _no_pictures(run: ScoredRun) -> Mapping[str, Picture]:
    raise ValueError("stored runs have no weights")


def _cost(compared: Comparable) -> str:
    minutes = [found for run in compared.runs if (found := compared.minutes(run)) is not None]
    clock = "one CPU core" if compared.has_cpu_times else "one device"
    return (
        f"{len(compared.runs)} run{'s' * (len(compared.runs) > 1)}, {sum(minutes) / 60:.1f} hours of {clock} in total."
    )


def _table(compared: Comparable, floor: float | None) -> str:
    """The numbers on which the sentences and the README are based."""
    dim = compared.headline_dim
    columns: dict[str, Callable[[Configuration], str]] = {
        "model": lambda c: c.label,
        "seeds": lambda c: str(len(c.runs)),
        "parameters": lambda c: f"{c.first.record['num_parameters'] / 1e6:.2f} M",
        "images seen": lambda c: spread(c.values(lambda run: run.summary.get("images_seen")), 0),
        compared.clock: lambda c: spread(c.values(compared.minutes), 1),
        "ELBO, nats": lambda c: spread(c.held_out("elbo"), 1),
        "rate": lambda c: spread(c.held_out("rate"), 1),
        "distortion": lambda c: spread(c.held_out("distortion"), 1),
        "bits/dim": lambda c: spread(c.held_out("bits_per_dim"), 4),
        f"MIG, d = {dim}": lambda c: spread(c.reduced("moments", dim)),
        "untrained MIG": lambda c: spread(c.reduced("moments", dim, untrained=True)),
        "group-MIG": lambda c: spread(c.score("groups")),
        "untrained group-MIG": lambda c: spread(c.score("groups", untrained=True)),
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


# --- Learning curves against CPU time -----------------------------------------------------------------------------------


def curve(folder: Path) -> Float64:
    """Read a stored run's evaluations: CPU minutes and held-out negative ELBO in nats, [2, n]."""
    evaluations = records.with_number(folder, "val/elbo").values()
    points = [
        (r["cpu_seconds"] / 60, -r["val/elbo"]) for r in evaluations if records.number(r, "cpu_seconds") is not None
    ]
    return np.array(points, dtype=np.float64).reshape(-1, 2).T


def _curves(configuration: Configuration) -> list[Float64]:
    return [found for run in configuration.runs if (found := curve(run.path)).size]


def _draw(compared: Comparable, title: str, floor: float | None) -> Picture:
    """Draw every run's held-out negative ELBO against its CPU time; no model can be below ``floor`` nats, if it is known."""
    figure, axes = subplots(size=(7.0, 4.2), layout="constrained")
    for configuration, colour in zip(compared.configurations, itertools.cycle(COLOURS), strict=False):
        for i, (minutes, loss) in enumerate(_curves(configuration)):
            label = configuration.label if i == 0 else None
            axes.plot(minutes, loss, "o-", color=colour, markersize=3, linewidth=0.9, alpha=0.8, label=label)
    if floor is not None:
        axes.axhline(floor, color="black", linewidth=0.8, linestyle=":", label=f"no model can be below {floor:.1f}")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_minor_formatter("{x:,.0f}")
    axes.set_xlabel("CPU minutes, compilation and evaluations included")
    axes.set_ylabel("held-out negative ELBO, nats")
    axes.legend(fontsize=8)
    return render(figure, title)


def _at(configuration: Configuration, minutes: float) -> Float64:
    """Interpolate the negative ELBO of each run that was evaluated before and after ``minutes``, [n]."""
    values = [np.interp(minutes, x, y) for x, y in _curves(configuration) if x[0] <= minutes <= x[-1]]
    return np.array(values, dtype=np.float64)


def leaders(compared: Comparable) -> str:
    """Say which configurations have the smallest mean loss after fractions of the time that all runs reached."""
    every = [_curves(configuration) for configuration in compared.configurations]
    if not all(every):
        return "The stored runs have no CPU times."
    last = min(found[0, -1] for runs in every for found in runs)
    said = []
    for portion in (0.25, 0.5, 1.0):
        means = {c.label: values.mean() for c in compared.configurations if len(values := _at(c, portion * last))}
        if means:
            order = sorted(means, key=lambda label: float(means[label]))
            rest = f", followed by {order[1]} ({means[order[1]]:,.1f} nats)" if len(order) > 1 else ""
            said.append(f"after {portion * last:.1f} CPU minutes {order[0]} ({means[order[0]]:,.1f} nats){rest}")
    return f"Smallest negative ELBO at equal CPU time, mean over seeds: {'; '.join(said)}."


def main(arguments: list[str]) -> None:
    """Train and score the missing runs, then report."""
    chosen = flags.parse(
        HierarchyConfig, HierarchyConfig(), arguments, prog="studies/hierarchy.py", description=__doc__ or ""
    )
    chosen.carry_out(lambda stored: write(chosen.report, stored))


if __name__ == "__main__":
    errors.main(main)
