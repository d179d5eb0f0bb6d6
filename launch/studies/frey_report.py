"""The Frey study's report: text, tables and plots from the records of its runs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from datasets import Dataset
from launch.console import figures
from launch.machine import files
from launch.report.statistics import Float64
from launch.report.tables import Table, write_paragraphs
from launch.studies import frey_figures
from launch.studies.frey_runs import Job, Results
from launch.studies.frey_theory import (
    COLLAPSED,
    critical_betas,
    foreseen_stop,
    mean_image_nats,
    predicted_rate,
    theory_agrees,
    where_learning_stops,
)

EXPECTED_RATE = (2.0, 3.0)  # nats, mean over seeds at beta 1e-3 and two latents
EXPECTED_COLLAPSE = (5e-3, 2e-2)  # betas between which the KL drops to 0


def write(folder: Path, wanted: Sequence[Job], frames: Dataset) -> Path:
    """Write ``index.md``, ``runs.csv`` and the plots from those ``wanted`` runs that are done; return its path.

    Raises:
        ValueError: no run is done.
    """
    results = Results.read(wanted)
    if not results.records:
        raise ValueError("no run of the study is done; start it without --report-only")
    pixels = frames.images(range(len(frames))).numpy().reshape(len(frames), -1) / float(frames.spec.max_value)
    critical = critical_betas(pixels)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "runs.csv", _csv(results))
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


def _csv(results: Results) -> str:
    """Every run's final numbers, a line each."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    measured = ("distortion", "rate", "psnr")
    header = ["split", "latent_dim", "beta_pixel_mean", "seed", "init", *measured]
    rows.writerow([*header, *(f"held_out_{name}" for name in measured), "covariance_distance", "steps"])
    for job, record in sorted(results.records.items(), key=lambda item: str(item[0])):
        held_out = record["final_held_out"] or {}
        rows.writerow(
            [job.split, job.latent_dim, f"{job.beta:g}", job.seed, job.init]
            + [f"{record['final'][name]:.4f}" for name in measured]
            + [f"{held_out[name]:.4f}" if held_out else "" for name in measured]
            + [f"{record['covariance_distance']['score']:.5f}", record["steps"]]
        )
    return text.getvalue()


def _opening(results: Results, wanted: Sequence[Job], mean_face: float) -> Iterator[str]:
    done, job = len(results.records), wanted[0]
    seconds = sum(record["seconds"] for record in results.records.values())
    yield "# Frey Faces: what a beta-VAE learns as beta grows"
    yield "Written by `python launch/studies/frey.py` from the records of its runs; every number is in [runs.csv](runs.csv)."
    yield (
        f"Protocol: the preset `frey` (the thesis' network, Bernoulli cross entropy of grey pixels, batch 16, RMSprop 1e-3 "
        f"with decay .9 and epsilon 560 x 1e-7, weights {job.init}), {job.epochs} epochs. beta is the pixel-mean beta: the loss is "
        f"distortion / 560 + beta KL, and beta = 1/560 gives the ELBO. Split all: the thesis' 1,965 frames; train: 1,415 frames, "
        f"with 200 held out (valid, blocks of the video). z is the number of latents. "
        f"torch {torch.__version__.partition('+')[0]}, one CPU thread per run. "
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
    return betas, [results.spread(split, latent_dim, beta, "final", "rate").mean for beta in betas]


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
                f"* {split}, z = {latent_dim}: {stop.words} (learning: a mean KL over seeds of at least {COLLAPSED} nats). The "
                f"predicted KL falls to {COLLAPSED} nats at beta {foreseen:.4f}: **{'agrees' if agrees else 'does not agree'}**."
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
    small = {str(job): record["final"]["rate"] for job, record in results.records.items() if job.beta < limit}
    stuck = sorted(name for name, rate in small.items() if rate < COLLAPSED)
    names = f": {', '.join(stuck)}" if stuck else ""
    where = f"KL below {COLLAPSED} nats at a beta below {limit:g}"
    return f"Stuck at the mean face ({where}): {len(stuck)} of {len(small)} runs{names}."


def _rates_beside_theory(results: Results, critical: Float64) -> Iterator[str]:
    rows = []
    for latent_dim in results.latent_dims("all"):
        for beta in results.betas("all", latent_dim):
            measured = results.spread("all", latent_dim, beta, "final", "rate")
            if 1e-4 <= beta <= 1e-1:
                foreseen = float(predicted_rate(beta, critical, latent_dim))
                rows.append([str(latent_dim), f"{beta:g}", measured.text(3), str(measured.num), f"{foreseen:.3f}"])
    if rows:
        yield Table(["z", "beta", "KL, nats (all frames)", "seeds", "linear theory"], rows).markdown()


def _expectations(results: Results) -> Iterator[str]:
    """The two numbers that the study was built to reproduce: reproduced, not reproduced, or not yet run."""
    low, high = EXPECTED_RATE
    if 1e-3 in results.betas("all", 2):
        found = results.spread("all", 2, 1e-3, "final", "rate")
        verdict = "inside" if low <= found.mean <= high else "**outside**"
        yield (
            f"KL at beta 1e-3 and z = 2, all frames: {found.text()} nats over {found.num} seed(s), {verdict} the range of "
            f"{low:g} to {high:g} nats expected for the mean of three seeds."
        )
    before, after = EXPECTED_COLLAPSE
    for latent_dim in results.latent_dims("all"):
        if not {before, after} <= set(results.betas("all", latent_dim)):
            continue
        left, right = (results.spread("all", latent_dim, beta, "final", "rate") for beta in (before, after))
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
        betas = results.betas("train", latent_dim)
        spreads = {b: results.spread("train", latent_dim, b, "final_held_out", "negative_elbo") for b in betas}
        best = min(spreads, key=lambda beta: spreads[beta].mean)
        yield (
            f"* z = {latent_dim}: the held-out negative ELBO is lowest at beta {best:g} ({spreads[best].text(1)} nats, "
            f"{spreads[best].num} seed(s)); the ELBO's own beta is 1/560 = {1 / 560:.2g}."
        )


def _table(results: Results, split: str, columns: Sequence[tuple[str, str, int]]) -> str:
    names = {"distortion": "distortion", "rate": "KL", "negative_elbo": "-ELBO", "score": "covariance distance"}
    rows = []
    for latent_dim in results.latent_dims(split):
        for beta in results.betas(split, latent_dim):
            cells = [results.spread(split, latent_dim, beta, part, name) for part, name, _ in columns]
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
        first = {job.beta: job for job in sorted(jobs, key=lambda job: -job.seed)}  # the lowest seed stays
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
