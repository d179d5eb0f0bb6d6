"""The scaling study's report: the effect of each axis, tables, plots, and an extrapolation, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from launch.console import figures
from launch.families.nvae import NVAE_PRESETS
from launch.report.statistics import Estimate, mean_of, over_seeds, spread, why_apart
from launch.report.tables import Table, write_paragraphs
from launch.studies import scaling_figures, scaling_fit
from launch.studies.family import DataName
from launch.studies.scaling_fit import Measured, PowerLaw, measured
from launch.training import memory

TITLES = {"dsprites": "Rendered dSprites", "celeba": "CelebA at 64x64"}
PUBLISHED = "celeba64"  # the recipe
NUM_GROUPS = 4  # of the NVAEs that both studies train
PUBLISHED_BITS = 2.03  # Vahdat & Kautz 2020, table 1, CelebA 64
OPENING = (
    "Written by `python launch/studies/scaling.py` (`make scaling-study`) from the scores stored in `docs/studies/family`; "
    "`--report-only` rewrites the report and its figures. **The defaults are a small family for two CPU cores**: NVAEs with less "
    "than a three-hundredth of the parameters of the published CelebA 64 recipe, trained for minutes. With larger `--widths` and "
    "more steps, the same command trains larger families on GPUs."
)
PROTOCOL = (
    "NVAEs of one scale (16x16 latents) share 8 encoder cells, 7 decoder cells (6 with four groups) and 16 latent channels "
    "among their groups. Depth therefore changes neither work nor the number of latents, and parameters by at most a tenth (see "
    "the table). The learning rate is constant after its warm-up; the held-out ELBO uses one posterior sample. Intervals are "
    "Student's 95 % intervals over seeds, each of which is fitted separately. Differences are paired by seed; the study of "
    "hierarchies does not pair them, so its intervals of the same pairs differ. The power laws in GFLOP and parameters pool all "
    "NVAEs, with one scale or several, and several evaluations of each run, so the law in GFLOP mostly shows the effect of longer "
    "training."
)


def write(folder: Path, stored: Mapping[DataName, Sequence[Path]], longer: Path) -> Path:
    """Write ``index.md`` and its plots from the stored runs and the ``longer`` ones of the hierarchy study; return its path."""
    parts = ["# What depth, width, scales and data buy", OPENING, PROTOCOL]
    for name, paths in stored.items():
        runs = [measured(path) for path in paths]
        for run in runs:
            if run.terms != runs[0].terms:
                apart = why_apart(dict(runs[0].terms), dict(run.terms))
                raise ValueError(
                    f"{runs[0].name}-seed{runs[0].seed} and {run.name}-seed{run.seed} of {name} cannot be compared: they differ "
                    f"in {apart}; delete those that should not count"
                )
        parts += [f"## {TITLES[name]}", *_axes(runs), _table(runs), *_laws(runs, folder, name)]
        parts += _longer(runs, [measured(path) for path in sorted((longer / name).glob("*-seed*"))])
        if name == "celeba":
            parts += _extrapolation(runs)
    return write_paragraphs(folder / "index.md", parts)


# --- What longer training changes -----------------------------------------------------------------------------------


def _longer(short: Sequence[Measured], long: Sequence[Measured]) -> Iterator[str]:
    """Compare how far NVAEs of 1, 2 and 3 scales are from the flat VAE here and in the longer hierarchy study."""
    rows = []
    for num_scales in sorted({run.num_scales for run in long if not run.is_flat}):
        cells = []
        for runs in (short, long):
            flat = [run for run in runs if run.is_flat and run.name == "flat-vae"]
            deep = [run for run in runs if not run.is_flat and run.num_scales == num_scales and run.depth == NUM_GROUPS]
            narrow = [run for run in deep if run.width == min(other.width or 0 for other in deep)]
            found = over_seeds([run.elbo for run in narrow], [run.elbo for run in flat])
            seen = spread([run.points[-1].images for run in narrow], 0) if narrow else "-"
            cells += ["-" if found is None else found.text(1), verdict(found) if found else "-", seen]
        rows.append([f"{num_scales} scale" + "s" * (num_scales > 1), *cells])
    if rows:
        head = ["NVAE minus flat VAE, nats", "here", "", "images", "in the hierarchy study", "", "images"]
        yield "**Longer runs** of the [hierarchy study](../hierarchy/index.md), which follow the recipes, against the runs here:"
        yield Table(head, rows, wordy=frozenset((2, 5))).markdown()


# --- What an axis buys ----------------------------------------------------------------------------------------------


def verdict(found: Estimate) -> str:
    """Conclusion that an interval supports."""
    if found.half_width is None:
        return "one seed: no interval, so nothing is claimed"
    if not found.excludes_zero:
        return f"the interval over {found.counts[0]} seeds contains 0: no effect is shown"
    return f"the interval over {found.counts[0]} seeds excludes 0"


def _axes(runs: Sequence[Measured]) -> Iterator[str]:
    one_scale = [run for run in runs if not run.is_flat and run.num_scales == 1]
    items = []
    depth = scaling_fit.slope_per_doubling(one_scale, lambda run: run.depth)
    if depth is not None:
        depths = sorted({run.depth for run in one_scale})
        items.append(
            f"**Depth** ({' to '.join(map(str, (depths[0], depths[-1])))} groups at equal parameters): doubling the groups "
            f"changes the ELBO by {depth.text(2)} nats; {verdict(depth)}."
        )
    items += [f"**Width**: {line}" for line in _width(one_scale)]
    scaled = [run for run in runs if run.num_scales > 1]
    if scaled:
        base = next((run.name for run in one_scale if run.depth == 4 and run.width == scaled[0].width), None)
        for name in dict.fromkeys(run.name for run in scaled):
            found = scaling_fit.difference(runs, name, base) if base else None
            if found is not None:
                count = next(run.num_scales for run in scaled if run.name == name)
                items.append(
                    f"**Scales** ({count} instead of 1, four groups; more parameters, see the table): "
                    f"{found.text(2)} nats; {verdict(found)}."
                )
    images = scaling_fit.power_law([run for run in runs if not run.is_flat], scaling_fit.by_images)
    if images is not None:
        items.append(
            f"**Images seen**: bits/dim falls as images^-{images.exponent.text(3, sign=False)} over the last part of "
            f"training; {verdict(images.exponent)}."
        )
    yield "\n".join(f"* {item}" for item in items)


def _width(one_scale: Sequence[Measured]) -> Iterator[str]:
    widths = sorted({run.width for run in one_scale if run.width is not None})
    for narrow, wide in pairwise(widths):
        elbo = {(run.depth, run.width, run.seed): run.elbo for run in one_scale}
        seeds = sorted({run.seed for run in one_scale})
        depths = sorted({run.depth for run in one_scale})
        gains = [
            float(np.mean([elbo[d, wide, s] - elbo[d, narrow, s] for d in depths]))
            for s in seeds
            if all((d, w, s) in elbo for d in depths for w in (narrow, wide))
        ]
        if gains:
            found = mean_of(gains)
            yield f"{wide} instead of {narrow} channels, mean over depths: {found.text(2)} nats; {verdict(found)}."


# --- Tables and laws ------------------------------------------------------------------------------------------------


def _table(runs: Sequence[Measured]) -> str:
    columns: dict[str, Callable[[list[Measured]], str]] = {
        "model": lambda of: of[0].name,
        "seeds": lambda of: str(len(of)),
        "parameters": lambda of: f"{of[0].num_parameters:,}",
        "GFLOP per image": lambda of: f"{of[0].gflop_per_image:.3f}",
        "MiB per image": lambda of: f"{of[0].memory_mib:.1f}",
        "images seen": lambda of: f"{of[0].points[-1].images:,}",
        "ms per image": lambda of: _spread(of, lambda run: 1e3 / run.images_per_s, 1),
        "ELBO, nats": lambda of: _spread(of, lambda run: run.elbo, 1),
        "bits/dim": lambda of: _spread(of, lambda run: run.bits_per_dim, 4),
        "MIG, d = 10": lambda of: _spread(of, lambda run: run.mig, 3),
        "group-MIG": lambda of: _spread(of, lambda run: run.group_mig, 3),
    }
    members = [[run for run in runs if run.name == name] for name in dict.fromkeys(run.name for run in runs)]
    return Table(list(columns), [[cell(of) for cell in columns.values()] for of in members]).markdown()


def _spread(runs: Sequence[Measured], value: Callable[[Measured], float | None], digits: int) -> str:
    return spread([found for found in map(value, runs) if found is not None], digits)


def _laws(runs: Sequence[Measured], folder: Path, name: str) -> Iterator[str]:
    nvaes = [run for run in runs if not run.is_flat]
    for key, coordinates, label in (
        ("compute", scaling_fit.by_compute, "GFLOP of training"),
        ("parameters", scaling_fit.by_parameters, "parameters"),
        ("images", scaling_fit.by_images, "images seen"),
    ):
        law = scaling_fit.power_law(nvaes, coordinates)
        picture = scaling_figures.against(runs, coordinates, label, law, name)
        figures.save(picture, folder / f"{name}-{key}.png")
        yield f"![bits/dim against {label}]({name}-{key}.png)"
        if law is not None:
            exponent = law.exponent
            yield f"bits/dim of the NVAEs falls as {label}^-{exponent.text(3, sign=False)}; {verdict(exponent)}."
    for key, draw, said in (
        (
            "depth",
            scaling_figures.depth,
            "ELBO against depth at equal parameters; every point is a run, lines join means.",
        ),
        ("scores", scaling_figures.scores, "Does depth disentangle? Scores of the same runs; every point is a run."),
        (
            "cost",
            scaling_figures.cost,
            "Cost. Times include start-up and evaluations and were measured on a shared machine, so they only show the order of "
            "magnitude. Work and memory are counted.",
        ),
    ):
        figures.save(draw(runs, name), folder / f"{name}-{key}.png")
        yield f"![{key}]({name}-{key}.png)"
        yield said


# --- The published recipe -------------------------------------------------------------------------------------------


def _extrapolation(runs: Sequence[Measured]) -> Iterator[str]:
    """Prediction of the laws for the published CelebA 64 recipe, beside its published value."""
    recipe = NVAE_PRESETS[PUBLISHED].build()
    spec = memory.image_spec(recipe)
    images = recipe.run.epochs * memory.num_training_images(recipe)
    size = {
        "compute": memory.gflop_per_image(recipe, spec) * images,
        "parameters": float(memory.count(recipe, spec).num_parameters),
    }
    nvaes = [run for run in runs if not run.is_flat]
    rows = []
    for name, coordinates in (("compute", scaling_fit.by_compute), ("parameters", scaling_fit.by_parameters)):
        law = scaling_fit.power_law(nvaes, coordinates)
        if law is not None:
            rows.append(_predicted(name, law, size[name]))
    if not rows:
        return
    yield f"### Extrapolated to the published recipe `{PUBLISHED}`"
    yield Table(
        ["law", "at", "orders of magnitude beyond our runs", "predicted bits/dim", "95 % over seeds"], rows
    ).markdown()
    yield (
        f"Published: {PUBLISHED_BITS} bits/dim (Vahdat & Kautz 2020). Besides the distance, there are three reasons "
        "not to compare the two closely. Our images are a half-size subset enlarged to 64x64, and smoother than the official "
        "ones. A power law without a floor eventually falls below any entropy. The interval covers the fitted lines over seeds, "
        "not whether the law holds over that many orders of magnitude. The prediction describes this fit; it is not a forecast."
    )


def _predicted(name: str, law: PowerLaw, x: float) -> list[str]:
    median, interval = law.at(x)
    ends = "-" if interval is None else "{:.2f} to {:.2f}".format(*interval)
    unit = "GFLOP" if name == "compute" else "parameters"
    return [name, f"{x:.2g} {unit}", f"{law.decades_beyond(x):.1f}", f"{median:.2f}", ends]
