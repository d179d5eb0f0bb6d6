"""Plots of the Frey study; none shows a face."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from launch.console.figures import Picture, render, subplots
from launch.families.flat_figures import Codes
from launch.machine import files, noise
from launch.report.statistics import Float64
from launch.studies.frey_runs import CPU, Job, Results, value_of
from launch.studies.frey_theory import predicted_rate

NUM_PIXELS = 560
ELBO_BETA = 1.0 / NUM_PIXELS  # the pixel-mean beta at which the loss is the negative ELBO
SCATTERED = 10_000
COLOURS = {2: "#4472a8", 3: "#c0504d", 5: "#5f9e5f"}
FRAMES = {"all": "trained on all frames", "train": "trained without the held-out frames"}
MARKED = 5  # critical betas drawn as lines

Draw = Callable[[Any, int], None]
Value = Callable[[dict[str, Any]], float]


def _colour(latent_dim: int) -> str:
    return COLOURS.get(latent_dim, "#555555")


def _line(
    axes: Any, results: Results, split: str, latent_dim: int, value: Value, label: str, style: str = "-", size: int = 3
) -> None:
    """Plot a number against beta: a point for each seed, and a line through the means."""
    betas, colour = results.betas(split, latent_dim), _colour(latent_dim)
    values = [[value(record) for record in results.cell(split, latent_dim, beta)] for beta in betas]
    axes.plot(betas, [np.mean(v) for v in values], style, color=colour, label=label)
    for beta, seeds in zip(betas, values, strict=True):
        axes.plot([beta] * len(seeds), seeds, "o", color=colour, markersize=size)


def _axes(critical: Float64, label: str) -> tuple[Any, Any]:
    """A plot against beta with the critical betas and the beta of the ELBO as vertical lines."""
    figure, axes = subplots(size=(7.0, 4.0))
    for i, beta in enumerate(critical[:MARKED]):
        axes.axvline(beta, color="#999999", linewidth=0.8, label="critical betas" if i == 0 else None)
    axes.axvline(ELBO_BETA, color="#333333", linewidth=0.8, linestyle=":", label="beta = 1/560 (ELBO)")
    axes.set_xscale("log")
    axes.set_xlabel("beta (pixel-mean)")
    axes.set_ylabel(label)
    return figure, axes


def rate(results: Results, split: str, critical: Float64) -> Picture:
    """KL against beta, with the prediction of linear theory."""
    figure, axes = _axes(critical, "KL, nats per image")
    for latent_dim in results.latent_dims(split):
        _line(axes, results, split, latent_dim, lambda record: float(record["final"]["rate"]), f"z = {latent_dim}")
    for latent_dim in results.latent_dims(split):
        betas = np.geomspace(1e-6, 2e-2, 200)
        foreseen = predicted_rate(betas, critical, latent_dim)
        axes.plot(betas, foreseen, "--", color=_colour(latent_dim), linewidth=0.9)
    axes.plot([], [], "--", color="#555555", linewidth=0.9, label="linear theory")
    axes.legend(fontsize=8)
    return render(figure, f"Frey Faces, {FRAMES[split]}: KL of flat VAEs with z latents")


def covariance_distance(results: Results, split: str, critical: Float64) -> Picture:
    """Covariance distance against beta; level lines at sqrt(z), the value of a collapsed posterior."""
    figure, axes = _axes(critical, "covariance distance")
    for latent_dim in results.latent_dims(split):
        _line(axes, results, split, latent_dim, lambda r: float(r["covariance_distance"]["score"]), f"z = {latent_dim}")
    for latent_dim in results.latent_dims(split):
        axes.axhline(math.sqrt(latent_dim), color=_colour(latent_dim), linewidth=0.6, linestyle=":")
    axes.set_yscale("log")
    axes.legend(fontsize=8)
    return render(figure, f"Frey Faces, {FRAMES[split]}: covariance distance of flat VAEs with z latents")


def held_out(results: Results, critical: Float64) -> Picture:
    """Final negative ELBO of held-out and of training frames against beta."""
    figure, axes = _axes(critical, "negative ELBO, nats per image")
    styles = {"final": ("trained on", "--"), "final_held_out": ("held out", "-")}
    for latent_dim in results.latent_dims("train"):
        for part, (said, style) in styles.items():

            def value(record: dict[str, Any], part: str = part) -> float:
                return value_of(record[part], "negative_elbo")

            _line(axes, results, "train", latent_dim, value, f"z = {latent_dim}, {said}", style, size=2)
    axes.legend(fontsize=8)
    return render(figure, "Frey Faces: negative ELBO of flat VAEs with z latents on frames trained on and held out")


def _panels(count: int, draw: Draw, title: str, *, columns: int = 4, size: float = 2.4) -> Picture:
    rows = math.ceil(count / columns)
    figure, grid = subplots(rows, columns, size=(size * columns, size * rows), squeeze=False)
    for i, axes in enumerate(grid.flat):
        if i < count:
            draw(axes, i)
        else:
            axes.axis("off")
    figure.tight_layout()
    return render(figure, title)


def loss_curves(results: Results, split: str, latent_dim: int) -> Picture:
    """The thesis' loss, a mean over pixels, after each epoch; a panel for each beta, a line for each seed.

    Training frames: mean over the epoch's steps. Held-out frames (split "train"): after the epoch, dashed. The scale is that
    of the epochs after the first, whose losses can be many times larger.
    """
    betas = results.betas(split, latent_dim)

    def draw(axes: Any, i: int) -> None:
        for record in results.cell(split, latent_dim, betas[i]):
            curve = record["curve"]
            trained = [_loss(point, betas[i]) for point in curve]
            axes.plot(range(1, len(curve) + 1), trained, color=_colour(latent_dim), linewidth=0.9)
            if "held_out" in curve[0]:
                seen = [_loss(point["held_out"], betas[i]) for point in curve]
                axes.plot(range(1, len(curve) + 1), seen, "--", color="#333333", linewidth=0.9)
        lines = [np.asarray(line.get_ydata())[1:] for line in axes.get_lines()]
        if all(len(line) for line in lines):
            low, high = min(line.min() for line in lines), max(line.max() for line in lines)
            margin = 0.1 * (high - low) + 1e-6
            axes.set_ylim(low - margin, high + margin)
        axes.set_title(f"beta {betas[i]:g}", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(labelsize=7)

    return _panels(
        len(betas),
        draw,
        f"Frey Faces, {FRAMES[split]}, {latent_dim} latents: loss per pixel after each epoch; dashed: held out",
    )


def _loss(point: dict[str, Any], beta: float) -> float:
    return float(point["distortion"]) / NUM_PIXELS + beta * float(point["rate"])


def _codes(job: Job) -> Codes:
    arrays = files.read_npz(job.posteriors, remedy="delete it and run the same command again")
    return Codes(torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["std"]))


def scatter(chosen: Sequence[Job]) -> Picture:
    """10,000 samples of the prior, and as many of the aggregate posterior of each run.

    Axes: the two latents with the highest KL, each panel with its own scale; circles: 1, 2 and 3 prior standard deviations.
    """
    source = noise.generator(CPU.device, noise.FIGURES, 0)

    def draw(axes: Any, i: int) -> None:
        if i == 0:
            points, title = torch.randn(SCATTERED, 2, generator=source), "prior"
        else:
            codes, title = _codes(chosen[i - 1]), f"beta {chosen[i - 1].beta:g}"
            points = codes.draw(SCATTERED, source)[:, codes.order[:2]]
        axes.plot(points[:, 0].numpy(), points[:, 1].numpy(), ",", color="#c0504d" if i else "#4472a8", alpha=0.5)
        for radius in (1.0, 2.0, 3.0):
            axes.add_patch(Circle((0.0, 0.0), radius, fill=False, color="#333333", linewidth=0.6))
        limit = max(3.5, float(points.abs().quantile(0.999)))
        axes.set_xlim(-limit, limit)
        axes.set_ylim(-limit, limit)
        axes.set_aspect("equal")
        axes.tick_params(labelsize=6)
        axes.set_title(title, fontsize=8)

    count = chosen[0].latent_dim if chosen else 0
    return _panels(
        len(chosen) + 1,
        draw,
        f"Frey Faces, {count} latents: samples of the two latents with the highest KL; circles: 1, 2, 3 sd",
    )
