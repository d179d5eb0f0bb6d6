"""The Frey study's report: text, tables and plots from the records of its runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from datasets import Dataset
from launch.console import figures
from launch.report.statistics import Spread
from launch.report.tables import Table, write_paragraphs
from launch.studies import frey_figures
from launch.studies.frey_results import COLLAPSED, Results, write_csv
from launch.studies.frey_runs import Job
from launch.studies.frey_theory import critical_betas, mean_image_nats, predicted_rate

Float64 = npt.NDArray[np.float64]
EXPECTED_RATE = (2.0, 3.0)  # nats, mean over seeds at beta 1e-3 and two latents
EXPECTED_COLLAPSE = (5e-3, 2e-2)  # betas between which the KL drops to 0


@dataclass(frozen=True)
class Stop:
    """Point at which learning stops: the largest beta that still learns and the next one, which does not; None if there is none."""

    learns: float | None
    collapsed: float | None

    @property
    def words(self) -> str:
        """Predicate of a sentence in the report."""
        if self.learns is None:
            return "learns at no beta"
        if self.collapsed is None:
            return f"learns up to beta {self.learns:g}, the largest that was run"
        return f"learns at beta {self.learns:g} but not at {self.collapsed:g}"


def where_learning_stops(betas: Sequence[float], rates: Sequence[float]) -> Stop:
    """From the mean KL at ascending betas, the last beta with at least .05 nats and the next beta."""
    learning = [i for i, rate in enumerate(rates) if rate >= COLLAPSED]
    if not learning:
        return Stop(None, betas[0] if betas else None)
    last = learning[-1]
    return Stop(betas[last], betas[last + 1] if last + 1 < len(betas) else None)


def foreseen_stop(critical: Float64, latent_dim: int) -> float:
    """The beta at which the KL predicted by linear theory falls to .05 nats."""
    betas = np.geomspace(critical[0] * math.exp(-2.0), critical[0], 4001)
    rates = predicted_rate(betas, critical, latent_dim)
    return float(betas[np.flatnonzero(rates >= COLLAPSED)[-1]])


def theory_agrees(stop: Stop, foreseen: float) -> bool:
    """True if the predicted beta lies between the last that learns and the first that does not."""
    return stop.learns is not None and stop.learns <= foreseen <= (stop.collapsed or math.inf)


def write(folder: Path, wanted: Sequence[Job], frames: Dataset) -> Path:
    """Write ``index.md``, ``runs.csv`` and the plots; return the path of ``index.md``.

    Args:
        folder: folder of the report.
        wanted: all runs of the study, done or not.
        frames: all frames, for the prediction of linear theory.

    Raises:
        ValueError: no run is done.
    """
    results = Results.read(wanted)
    if not results.records:
        raise ValueError("no run of the study is done; start it without --report-only")
    pixels = frames.images(range(len(frames))).numpy().reshape(len(frames), -1) / float(frames.spec.max_value)
    critical = critical_betas(pixels)
    write_csv(results, folder / "runs.csv")
    pictures = dict(_pictures(results, critical))
    for name, picture in pictures.items():
        figures.save(picture, folder / f"{name}.png")
    parts = [
        *_opening(results, wanted, mean_image_nats(pixels)),
        *_stopping(results, critical),
        *_numbers(results),
        *_held_out(results),
        *_plots(pictures),
    ]
    return write_paragraphs(folder / "index.md", parts)


def _opening(results: Results, wanted: Sequence[Job], mean_face: float) -> Iterator[str]:
    done, job = len(results.records), wanted[0]
    seconds = sum(record["seconds"] for record in results.records.values())
    yield "# Frey Faces: what a beta-VAE learns as beta grows"
    yield "Written by `python launch/studies/frey.py` from the records of its runs; every number is in [runs.csv](runs.csv)."
    yield (
        f"Protocol: the preset `frey` (the thesis' network, Bernoulli cross entropy of grey pixels, batch 16, RMSprop 1e-3 "
        f"with decay .9 and epsilon 560 x 1e-7, weights {job.init}), {job.epochs} epochs. beta is the pixel-mean beta: the loss is "
        f"distortion / 560 + beta KL, and beta = 1/560 gives the ELBO. Split all: the thesis' 1,965 frames; train: 1,415 frames, "
        f"with 200 held out (valid, blocks of the video). torch {torch.__version__.partition('+')[0]}, one CPU thread per run. "
        f"Decoding every frame to the mean face costs {mean_face:.2f} nats."
    )
    yield (
        f"**{done} of {len(wanted)} runs are done** ({seconds / 60:.0f} minutes of one thread, on a shared machine)."
        + (
            ""
            if done == len(wanted)
            else " The same command trains the rest; until then the report covers the finished runs:"
        )
    )
    if done < len(wanted):
        yield _coverage(results, wanted)


def _coverage(results: Results, wanted: Sequence[Job]) -> str:
    """Seeds done of each split, number of latents and beta."""
    betas = sorted({job.beta for job in wanted})
    keys = sorted({(job.split, job.latent_dim) for job in wanted})
    rows = [[f"{s}, z = {z}", *(str(len(results.cell(s, z, b))) for b in betas)] for s, z in keys]
    return Table(["seeds done", *(f"{beta:g}" for beta in betas)], rows).markdown()


def _mean_rates(results: Results, split: str, latent_dim: int) -> tuple[list[float], list[float]]:
    betas = results.betas(split, latent_dim)
    spreads = [results.spread(split, latent_dim, beta, "final", "rate") for beta in betas]
    return betas, [spread.mean for spread in spreads if spread is not None]


def _stopping(results: Results, critical: Float64) -> Iterator[str]:
    yield "## Where learning stops, and what theory says"
    first = ", ".join(f"{beta:.4f}" for beta in critical[: frey_figures.MARKED])
    yield (
        f"In linear theory (the likelihood expanded to second order around the mean face), a latent direction is used if its "
        f"eigenvalue of the whitened covariance exceeds beta, and then costs log(critical beta / beta) / 2 nats. The first "
        f"critical betas are {first}."
    )
    verdicts = []
    for split in ("all", "train"):
        for latent_dim in results.latent_dims(split):
            stop = where_learning_stops(*_mean_rates(results, split, latent_dim))
            foreseen = foreseen_stop(critical, latent_dim)
            agrees = theory_agrees(stop, foreseen)
            verdicts.append(agrees)
            yield (
                f"* {split}, z = {latent_dim}: {stop.words} (mean KL over seeds of at least {COLLAPSED} nats). The predicted KL "
                f"falls to {COLLAPSED} nats at beta {foreseen:.4f}: **{'agrees' if agrees else 'does not agree'}**."
            )
    yield (
        f"Theory predicts where learning stops in {sum(verdicts)} of {len(verdicts)} settings. Both splits use the critical betas "
        "of all 1,965 frames."
    )
    yield from _rates_beside_theory(results, critical)
    yield from _expectations(results)
    yield _stuck(results)


def _stuck(results: Results) -> str:
    limit = EXPECTED_COLLAPSE[0]
    stuck, count = results.stuck(below=limit), sum(job.beta < limit for job in results.records)
    names = f": {', '.join(sorted(map(str, stuck)))}" if stuck else ""
    return f"Stuck at the mean face (KL below {COLLAPSED} nats at a beta below {limit:g}): {len(stuck)} of {count} runs{names}."


def _rates_beside_theory(results: Results, critical: Float64) -> Iterator[str]:
    rows = []
    for latent_dim in results.latent_dims("all"):
        for beta in results.betas("all", latent_dim):
            measured = results.spread("all", latent_dim, beta, "final", "rate")
            if measured is not None and 1e-4 <= beta <= 1e-1:
                foreseen = float(predicted_rate(beta, critical, latent_dim))
                rows.append([str(latent_dim), f"{beta:g}", measured.text(3), str(measured.num), f"{foreseen:.3f}"])
    if rows:
        yield Table(["z", "beta", "KL, nats (all frames)", "seeds", "linear theory"], rows).markdown()


def _expectations(results: Results) -> Iterator[str]:
    """The two numbers that the study was built to reproduce: reproduced, not reproduced, or not yet run."""
    low, high = EXPECTED_RATE
    found = results.spread("all", 2, 1e-3, "final", "rate")
    if found is not None:
        verdict = "inside" if low <= found.mean <= high else "**outside**"
        yield (
            f"KL at beta 1e-3 and z = 2, all frames: {found.text()} nats over {found.num} seed(s), {verdict} the range of "
            f"{low:g} to {high:g} nats expected for the mean of three seeds."
        )
    before, after = EXPECTED_COLLAPSE
    for latent_dim in results.latent_dims("all"):
        ends = [results.spread("all", latent_dim, beta, "final", "rate") for beta in (before, after)]
        left, right = ends
        if left is None or right is None:
            continue
        collapses = left.mean >= COLLAPSED > right.mean
        yield (
            f"* z = {latent_dim}: KL {left.text(3)} nats at beta {before:g} and {right.text(4)} at {after:g} "
            f"({left.num} and {right.num} seeds): {'collapses' if collapses else '**does not collapse**'} between the two."
        )


def _numbers(results: Results) -> Iterator[str]:
    yield "## All frames"
    yield (
        "Mean ± standard deviation over seeds, nats per image. Covariance distance: mean Frobenius distance of each posterior's "
        "covariance from that of the means (ddof 0). It is the square root of z for a collapsed posterior, and for an ideal one."
    )
    yield _table(
        results, "all", [("final", "distortion", 1), ("final", "rate", 2), ("covariance_distance", "score", 3)]
    )


def _held_out(results: Results) -> Iterator[str]:
    if not results.latent_dims("train"):
        yield "## Held-out frames"
        yield "Not run yet."
        return
    yield "## Held-out frames"
    yield "Trained on 1,415 frames, 200 held out; negative ELBO (distortion + KL, whatever the loss weights), nats per image."
    columns = [("final", "negative_elbo", 1), ("final_held_out", "negative_elbo", 1), ("final_held_out", "rate", 2)]
    yield _table(results, "train", columns)
    for latent_dim in results.latent_dims("train"):
        spreads = {b: _negative_elbo(results, latent_dim, b) for b in results.betas("train", latent_dim)}
        best = min(spreads, key=lambda beta: spreads[beta].mean)
        yield (
            f"* z = {latent_dim}: the held-out negative ELBO is lowest at beta {best:g} ({spreads[best].text(1)} nats, "
            f"{spreads[best].num} seed(s)); the ELBO's own beta is 1/560 = {1 / 560:.2g}."
        )


def _negative_elbo(results: Results, latent_dim: int, beta: float) -> Spread:
    spread = results.spread("train", latent_dim, beta, "final_held_out", "negative_elbo")
    assert spread is not None
    return spread


def _table(results: Results, split: str, columns: Sequence[tuple[str, str, int]]) -> str:
    names = {"distortion": "distortion", "rate": "KL", "negative_elbo": "-ELBO", "score": "covariance distance"}
    rows = []
    for latent_dim in results.latent_dims(split):
        for beta in results.betas(split, latent_dim):
            cells: list[Any] = [results.spread(split, latent_dim, beta, part, name) for part, name, _ in columns]
            texts = [cell.text(digits) for cell, (_, _, digits) in zip(cells, columns, strict=True)]
            rows.append([str(latent_dim), f"{beta:g}", str(cells[0].num), *texts])
    headings = [names[name] + (", held out" if part == "final_held_out" else "") for part, name, _ in columns]
    return Table(["z", "beta", "seeds", *headings], rows).markdown()


def _pictures(results: Results, critical: Float64) -> Iterator[tuple[str, figures.Picture]]:
    for split in ("all", "train"):
        dims = results.latent_dims(split)
        if dims:
            yield f"kl_{split}", frey_figures.rate(results, split, critical)
        for latent_dim in dims:
            yield f"loss_{split}_z{latent_dim}", frey_figures.loss_curves(results, split, latent_dim)
    for latent_dim in results.latent_dims("all"):
        jobs = [j for j in results.records if (j.split, j.latent_dim) == ("all", latent_dim)]
        first = {
            job.beta: job for job in sorted(jobs, key=lambda job: -job.seed)
        }  # the lowest seed comes last and stays
        yield f"posterior_z{latent_dim}", frey_figures.scatter([first[beta] for beta in sorted(first)])
    if results.latent_dims("all"):
        yield "covariance_distance", frey_figures.covariance_distance(results, "all", critical)
    if results.latent_dims("train"):
        yield "held_out", frey_figures.held_out(results, critical)


_CAPTIONS = {
    "kl": "KL against beta, points are seeds; dashed: linear theory; grey: critical betas.",
    "loss": "Loss of each epoch, mean over pixels; a line for each seed; black, dashed: held-out frames. The first epoch may lie "
    "above the panel.",
    "posterior": "10,000 samples of the prior, and of the aggregate posterior at each beta (first seed), each panel with its own "
    "scale; circles: 1, 2 and 3 standard deviations of the prior.",
    "covariance": "Covariance distance against beta; dotted: square root of z.",
    "held": "Negative ELBO of training frames and of held-out frames against beta.",
}


def _plots(pictures: dict[str, figures.Picture]) -> Iterator[str]:
    yield "## Plots"
    yield "Samples over the latent plane show faces and stay in the study's own folder (`samples/`)."
    for name in pictures:
        yield f"{_CAPTIONS[name.partition('_')[0]]} ({name})\n\n![{name}]({name}.png)"
