"""The Grouped-VAE study's report: table, paired test and plots from the records of its runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from launch.console import figures
from launch.machine import files
from launch.report.statistics import Estimate, Spread, holm, mean_of, sign_flip_test
from launch.report.tables import Table, write_paragraphs
from launch.studies.grouped_runs import FIRST_GROUP, VARIANTS, Job

PUBLISHED = {  # MIG and reconstruction in nats, means of 10 seeds (the Grouped-VAE report)
    "grouped": (0.023, 49.1),
    "mlp-beta1": (0.014, 34.8),
    "mlp-beta5": (0.027, 41.3),
    "mlp-beta10": (0.025, 50.9),
}
ANCHOR, ANCHOR_NATS = "mlp-beta1", 34.8
MIC_FACTORS = ("posX", "posY", "shape")
MOST_EXACT = 16  # most seeds for which all sign flips are counted
Records = Mapping[str, Mapping[int, dict[str, Any]]]  # variant -> seed -> record


def paired_test(first: Sequence[float], second: Sequence[float]) -> tuple[Estimate, float]:
    """Test whether ``first - second`` over the same seeds is 0 on average.

    Returns:
        The mean difference with Student's 95 % interval, and the two-sided p-value of the exact sign-flip test.

    Raises:
        ValueError: fewer than two pairs, unequal lengths, or more pairs than can be counted exactly.
    """
    if len(first) != len(second) or not 2 <= len(first) <= MOST_EXACT:
        raise ValueError(f"{len(first)} and {len(second)} values; give 2 to {MOST_EXACT} pairs")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    return mean_of(differences), sign_flip_test(differences)


def read(wanted: Sequence[Job]) -> Records:
    """Read the records of those ``wanted`` runs that are done."""
    return {v: {j.seed: files.read_json(j.record) for j in wanted if j.variant == v and j.is_done()} for v in VARIANTS}


def chosen_point(records: Records) -> tuple[int, bool]:
    """Index of the first point where the anchor's mean test reconstruction reaches 34.8 nats; else the last, and False."""
    curves = np.array([[p["distortion"] for p in record["points"]] for record in records[ANCHOR].values()])
    reached = np.flatnonzero(curves.mean(0) <= ANCHOR_NATS)
    return (int(reached[0]), True) if len(reached) else (curves.shape[1] - 1, False)


def values(records: Records, variant: str, point: int, name: str, factor: str | None = None) -> dict[int, float]:
    """One number of each seed at a point."""
    found = {seed: record["points"][point][name] for seed, record in records[variant].items()}
    return {seed: float(value if factor is None else value[factor]) for seed, value in found.items()}


def write(folder: Path, wanted: Sequence[Job], *, reduced: bool) -> Path:
    """Write ``index.md``, ``results.json`` and plots from those ``wanted`` runs that are done; return its path.

    Raises:
        ValueError: no run of the anchor (beta 1) is done.
    """
    records = read(wanted)
    if not records[ANCHOR]:
        raise ValueError("no run with beta 1 is done; start the study without --report-only")
    point, reached = chosen_point(records)
    figures.save(_bars(records, point), folder / "mig_mic.png")
    figures.save(_curves(records), folder / "curves.png")
    files.write_json(folder / "results.json", {"point": point, "reached": reached, "records": records})
    parts = [*_opening(records, wanted, point, reached, reduced), *_results(records, point), *_tests(records, point)]
    parts += [
        "## Plots",
        "MIG, and MIC of the first three latents about x, y and shape (raw, and minus its permutation baseline); points are "
        "seeds.\n\n![mig and mic](mig_mic.png)",
        "Test reconstruction, KL and MIG over training; a line for each seed.\n\n![curves](curves.png)",
    ]
    return write_paragraphs(folder / "index.md", parts)


def _opening(records: Records, wanted: Sequence[Job], point: int, reached: bool, reduced: bool) -> Iterator[str]:
    job, any_record = wanted[0], next(iter(records[ANCHOR].values()))
    step, epoch = any_record["points"][point]["step"], any_record["steps_per_epoch"]
    done = sum(len(seeds) for seeds in records.values())
    yield "# The Grouped-VAE on dSprites: does decoding latents in groups disentangle?"
    yield "Written by `python launch/studies/grouped.py` from the records of its runs."
    if reduced:
        yield (
            f"**This is the reduced protocol for two CPU cores**: {step:,} steps are {step / epoch:.2f} of an epoch, with fewer "
            "seeds than the report's ten. Its numbers are comparable with one another, not with the published ones."
        )
    yield (
        f"Protocol: MLP encoder 2 x 1200 ReLU, decoder 3 x 1200 tanh, six latents, Adam 1e-4, batch 64, Bernoulli, "
        f"{any_record['train_images']:,} training images ({job.data.dsprites_source or 'auto'} source), measured on "
        f"{job.test_images:,} test images; grouped: two groups of three latents at beta 1. torch "
        f"{torch.__version__.partition('+')[0]}. {done} of {len(wanted)} runs are done."
    )
    rule = (
        f"The report does not state its number of epochs. The study takes the first point where the mean test reconstruction "
        f"of beta 1 reaches {ANCHOR_NATS} nats; the other models' numbers there are predictions. "
    )
    found = (
        f"That is step {step:,} ({step / epoch:.2f} epochs)."
        if reached
        else (
            f"**It was not reached** by step {step:,} ({step / epoch:.2f} epochs), so the numbers are those of the last point."
        )
    )
    yield rule + found


def _results(records: Records, point: int) -> Iterator[str]:
    yield "## Numbers"
    rows = []
    for variant in VARIANTS:
        if not records[variant]:
            continue
        cells = [Spread.of(list(values(records, variant, point, n).values())) for n in ("mig", "distortion", "rate")]
        corrected = [
            Spread.of(list(values(records, variant, point, "mic_corrected", f).values())).text(3) for f in MIC_FACTORS
        ]
        own = [cells[0].text(4), cells[1].text(1), cells[2].text(1), *corrected]
        rows.append([variant, str(cells[0].num), *own, f"{PUBLISHED[variant][0]} / {PUBLISHED[variant][1]}"])
    mic_names = [f"MIC {factor}" for factor in MIC_FACTORS]
    head = ["model", "seeds", "MIG", "reconstruction", "KL", *mic_names, "published MIG / reconstruction"]
    yield Table(head, rows).markdown()
    yield (
        f"Mean ± standard deviation over seeds; nats per image. MIC: latents {FIRST_GROUP} against the rest, minus its "
        "permutation baseline; for models without groups the same three latents are a control. MIG of .01 to .03 is near the "
        "metric's noise, so rely on the paired test, not on the order."
    )


def _tests(records: Records, point: int) -> Iterator[str]:
    yield "## Paired test"
    mine = values(records, "grouped", point, "mig")
    results: dict[str, tuple[Estimate, float]] = {}
    for variant in VARIANTS[1:]:
        theirs = values(records, variant, point, "mig")
        seeds = sorted(mine.keys() & theirs.keys())
        if 2 <= len(seeds) <= MOST_EXACT:
            results[variant] = paired_test([mine[s] for s in seeds], [theirs[s] for s in seeds])
    if not results:
        yield "Fewer than two seeds are common to two models: there is nothing to test yet."
        return
    adjusted = holm([p for _, p in results.values()])
    rows = [
        [
            f"grouped - {name}",
            str(found.counts[0]),
            f"{found.mean:+.4f}",
            f"± {found.half_width or 0.0:.4f}",
            f"{p:.3f}",
            f"{p_holm:.3f}",
        ]
        for (name, (found, p)), p_holm in zip(results.items(), adjusted, strict=True)
    ]
    yield Table(
        ["difference of MIG", "seeds", "mean", "95 % interval (t)", "p (sign flips)", "p (Holm)"], rows
    ).markdown()
    clear = [name for name, p in zip(results, adjusted, strict=True) if p < 0.05]
    least = min(2.0 ** (1 - found.counts[0]) for found, _ in results.values())
    yield (
        f"Models that differ from grouped at the 5 % level after Holm: {', '.join(clear) or 'none'}."
        + (
            f" With so few seeds, no difference can be significant: the smallest possible p is {least:g}."
            if least > 0.05 / len(results)
            else ""
        )
    )


def _bars(records: Records, point: int) -> figures.Picture:
    shown = [variant for variant in VARIANTS if records[variant]]
    figure, panels = figures.subplots(1, 1 + len(MIC_FACTORS), size=(3.2 * (1 + len(MIC_FACTORS)), 3.2))
    specs: list[tuple[str, str | None]] = [("mig", None), *(("mic", factor) for factor in MIC_FACTORS)]
    for axes, (name, factor) in zip(panels, specs, strict=True):
        for i, variant in enumerate(shown):
            _seeds(axes, i, list(values(records, variant, point, name, factor).values()), "#4472a8")
            if factor is not None:
                corrected = list(values(records, variant, point, "mic_corrected", factor).values())
                _seeds(axes, i + 0.25, corrected, "#c0504d")
        axes.axhline(0.0, color="#999999", linewidth=0.8)
        axes.set_xticks(range(len(shown)), [v.replace("mlp-", "") for v in shown], fontsize=8)
        axes.set_title("MIG" if factor is None else f"MIC {factor} (red: corrected)", fontsize=9)
    figure.tight_layout()
    return figures.render(
        figure,
        "Grouped VAE and VAEs without groups on dSprites: MIG, and MIC of the first three latents; points are seeds",
    )


def _seeds(axes: Any, x: float, numbers: Sequence[float], colour: str) -> None:
    axes.plot([x] * len(numbers), numbers, "o", markersize=3, color=colour, alpha=0.7)
    axes.plot([x - 0.1, x + 0.1], [np.mean(numbers)] * 2, color=colour)


def _curves(records: Records) -> figures.Picture:
    names = {"distortion": "test reconstruction, nats", "rate": "KL, nats", "mig": "MIG"}
    figure, panels = figures.subplots(1, len(names), size=(4.0 * len(names), 3.2))
    colours = dict(zip(VARIANTS, ("#c0504d", "#4472a8", "#5f9e5f", "#8064a2"), strict=True))
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for variant in VARIANTS:
            for i, record in enumerate(records[variant].values()):
                steps: npt.NDArray[Any] = np.array([p["step"] for p in record["points"]])
                curve = [p[name] for p in record["points"]]
                axes.plot(
                    steps, curve, "o-", markersize=2, color=colours[variant], label=None if i else variant, alpha=0.7
                )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
    panels[0].axhline(ANCHOR_NATS, color="#999999", linewidth=0.8, linestyle=":")
    panels[0].legend(fontsize=7)
    figure.tight_layout()
    return figures.render(
        figure, "Grouped VAE and VAEs without groups on dSprites during training; a line for each seed"
    )
