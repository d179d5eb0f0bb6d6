"""Evaluation on held-out images: each image once on any number of ranks, in float32, with fixed noise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import datasets
from launch.machine import noise
from launch.machine.distributed import Ranks
from metrics import elbo
from metrics.likelihoods import DiscretizedLogisticMixture, Edges, Likelihood
from metrics.measure import Measure
from metrics.model import VAE
from metrics.pixel_baseline import count_levels, fit_pixel_baseline

BASELINE_IMAGES = 50_000  # training images that the no-latents baseline is fitted to, at most
# images; on a CPU larger batches are slower, because allocating memory costs more than they save
DRAWS_PER_PASS = {"cuda": 128, "cpu": 16}


class ImageSet(Protocol):
    """The part of a data set's interface that an evaluation needs."""

    @property
    def spec(self) -> datasets.ImageSpec:
        """Shape and bit depth of its images."""

    def __len__(self) -> int:
        """Number of images."""

    def images(self, indices: Any) -> Tensor:
        """uint8 levels [B, C, H, W]."""


class Stopped(Exception):
    """An evaluation was interrupted by a stop request on some rank."""


@dataclass(frozen=True)
class Evaluation:
    """Per-image results in nats, in the order of the data set."""

    log_likelihood: Tensor  # [N]
    kl: Tensor  # [N, L]
    psnr: Tensor  # [N], of the reconstruction from posterior means, dB
    bound: Tensor | None  # [N], importance-weighted bound, if requested
    bound_draws: int
    active_units: int
    num_units: int
    num_dims: int
    other_edges: Mapping[str, Tensor]
    """``<edges>_log_likelihood`` and ``<edges>_bound`` of the same draws, [N], under the other rule for a mixture's edge bins."""

    @property
    def elbo(self) -> Tensor:
        """[N]."""
        return self.log_likelihood - self.kl.sum(1)

    def summary(self) -> dict[str, Any]:
        """Means over images, with 95 % intervals over images (not over seeds); legacy edges are those of the published NVAE."""
        count = len(self.elbo)
        half_width = 1.96 * float(self.elbo.double().std()) / math.sqrt(count) if count > 1 else float("nan")
        nats, bits = self._mean(self.elbo)
        values: dict[str, Any] = {
            "num_images": count,
            "elbo": nats,
            "elbo_95": half_width,
            "rate": float(self.kl.sum(1).double().mean()),
            "distortion": -float(self.log_likelihood.double().mean()),
            "bits_per_dim": bits,
            "bits_per_dim_95": float(elbo.bits_per_dim(half_width, self.num_dims)),
            "psnr": float(self.psnr.double().mean()),
            "active_units": self.active_units,
            "num_units": self.num_units,
            "kl_group": [float(v) for v in self.kl.double().mean(0)],
        }
        if self.bound is not None:
            values["importance_draws"] = self.bound_draws
            values["importance_bound"], values["importance_bits_per_dim"] = self._mean(self.bound)
        for name, value in self.other_edges.items():
            edges, _, kind = name.partition("_")
            if kind == "bound":
                values[f"{edges}_importance_bound"], values[f"{edges}_importance_bits_per_dim"] = self._mean(value)
            else:
                values[f"{edges}_elbo"], values[f"{edges}_bits_per_dim"] = self._mean(value - self.kl.sum(1))
        return values

    def _mean(self, nats: Tensor) -> tuple[float, float]:
        """Mean over images in nats, and its negative in bits per dimension."""
        mean = float(nats.double().mean())
        return mean, float(elbo.bits_per_dim(-mean, self.num_dims))


def _with_other_edges(likelihood: Likelihood) -> DiscretizedLogisticMixture | None:
    if not isinstance(likelihood, DiscretizedLogisticMixture):
        return None
    return likelihood.with_edges("legacy" if likelihood.edges == "exact" else "exact")


def blocks(num_images: int, ranks: Ranks, batch_size: int) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Deal blocks of images to the ranks in turn; blocks and their noise do not depend on the number of ranks."""
    for block, first in enumerate(range(0, num_images, batch_size)):
        if block % ranks.world_size == ranks.rank:
            yield block, np.arange(first, min(first + batch_size, num_images))


def _log_weights(
    model: VAE, x: Tensor, num_draws: int, source: torch.Generator, *, both_edges: bool
) -> tuple[Tensor, Tensor | None]:
    """Log importance weights [B, K], and those under a mixture's other edge rule if ``both_edges``.

    All draws share one bottom-up pass and are taken in batches of about ``DRAWS_PER_PASS`` images.
    """
    features = model.bottom_up(x)
    at_once = max(1, DRAWS_PER_PASS.get(x.device.type, 128) // len(x))
    weights: list[Tensor] = []
    others: list[Tensor] = []
    for done in range(0, num_draws, at_once):
        count = min(at_once, num_draws - done)
        drawn = noise.standard_normal(model.group_shapes, source, local=len(x) * count)
        output, repeated = model.from_features(features.repeat(count), drawn), x.repeat_interleave(count, 0)
        weight = elbo.log_weight(output, repeated)
        weights.append(weight.unflatten(0, (-1, count)))
        other = _with_other_edges(output.likelihood) if both_edges else None
        if other is not None:
            gain = other.log_prob(repeated) - output.likelihood.log_prob(repeated)
            others.append((weight + gain).unflatten(0, (-1, count)))
    return torch.cat(weights, dim=1), torch.cat(others, dim=1) if others else None


Part = tuple[int, dict[str, Tensor]]  # number of a block, and its per-image results by name


def _measure(
    model: VAE, x: Tensor, key: tuple[int, int], *, importance_draws: int, both_edges: bool, at_means: bool
) -> tuple[dict[str, Tensor], Tensor]:
    """Per-image results of a block by name, [B] or [B, L], and the summed KL of each latent channel; on the CPU.

    The noise is a function of ``key``: the seed and the number of the block.
    """
    source = noise.generator(x.device, noise.EVALUATE, *key)
    drawn = noise.standard_normal(model.group_shapes, source, local=len(x))
    output = model(x, [torch.zeros_like(one) for one in drawn] if at_means else drawn)
    terms = elbo.terms(output, x)
    error = (model.reconstruct(x) - x).square().flatten(1).mean(1)
    part = {
        "log_likelihood": terms.log_likelihood,
        "kl": terms.kl,
        "psnr": -10.0 * torch.log10(error.clamp_min(1e-10)),
    }
    other = _with_other_edges(output.likelihood) if both_edges else None
    if other is not None:
        part[f"{other.edges}_log_likelihood"] = other.log_prob(x)
    if importance_draws:
        source = noise.generator(x.device, noise.IMPORTANCE, *key)
        weights, others = _log_weights(model, x, importance_draws, source, both_edges=both_edges)
        part["bound"] = elbo.importance_bound(weights)
        if other is not None and others is not None:
            part[f"{other.edges}_bound"] = elbo.importance_bound(others)
    channels = torch.cat([g.kl_per_channel() for g in output.groups]).double().cpu() * len(x)
    return {name: value.cpu() for name, value in part.items()}, channels


@torch.no_grad()
def evaluate(
    model: VAE,
    dataset: ImageSet,
    ranks: Ranks,
    *,
    batch_size: int,
    seed: int,
    num_images: int | None = None,
    importance_draws: int = 0,
    both_edges: bool = False,
    at_means: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate a model on a data set; the ranks share the work, and each returns the whole result.

    Args:
        model: model in eval mode.
        dataset: the images.
        ranks: this process among the others; rank 0 shows a progress bar.
        batch_size: images per block. The noise of an image depends on its block, so it is part of the result.
        seed: seed of the noise.
        num_images: number of images, spread evenly over the data set; None takes all.
        importance_draws: posterior draws per image for the importance-weighted bound; 0 leaves the bound out. The ELBO
            takes one draw.
        both_edges: also score the same draws under a discretised mixture's other edge rule.
        at_means: decode posterior means in place of a draw: the distortion of an autoencoder, which has no other number.
        should_stop: called before each block.

    Raises:
        Stopped: ``should_stop`` returned True on some rank; raised on all ranks.
    """
    chosen = datasets.choose_rows(len(dataset), num_images)
    parts: list[Part] = []
    channels: list[Tensor] = []
    how: Any = {"importance_draws": importance_draws, "both_edges": both_edges, "at_means": at_means}
    shown = ranks.rank == 0 and sys.stderr.isatty()
    with tqdm(total=len(chosen), unit="img", desc="evaluating", disable=not shown, leave=False) as bar:
        for number, positions in blocks(len(chosen), ranks, batch_size):
            if should_stop():
                break
            x = datasets.to_float(dataset.images(chosen[positions]), dataset.spec, ranks.device)
            part, kl_sums = _measure(model, x, (seed, number), **how)
            parts.append((number, part))
            channels.append(kl_sums)
            bar.update(min(len(positions) * ranks.world_size, len(chosen) - bar.n))
    if any(ranks.maximum(should_stop())):
        raise Stopped
    kl_per_channel, whole = _gathered(parts, channels, ranks)
    kl_per_channel /= len(chosen)
    return Evaluation(
        log_likelihood=whole["log_likelihood"],
        kl=whole["kl"],
        psnr=whole["psnr"],
        bound=whole.get("bound"),
        bound_draws=importance_draws,
        active_units=elbo.active_units(kl_per_channel),
        num_units=len(kl_per_channel),
        num_dims=dataset.spec.num_dims,
        other_edges={name: value for name, value in whole.items() if name.startswith(get_args(Edges))},
    )


def _gathered(parts: Sequence[Part], channels: Sequence[Tensor], ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum the KL of the latent channels over all ranks, and join the results of all blocks in the order of the data set."""
    gathered = ranks.gather((parts, torch.stack(list(channels)).sum(0) if channels else None))
    in_order = [part for _, part in sorted((part for parts, _ in gathered for part in parts), key=lambda p: p[0])]
    whole = {name: torch.cat([part[name] for part in in_order]) for name in in_order[0]}
    return torch.stack([sums for _, sums in gathered if sums is not None]).sum(0), whole


def require_finite(result: Mapping[str, Any]) -> None:
    """Refuse an evaluation that is not finite.

    Raises:
        FloatingPointError: its ELBO is NaN or infinite.
    """
    if not math.isfinite(result["elbo"]):
        raise FloatingPointError(
            f"the evaluation is not finite (elbo {result['elbo']}), so the weights or the images are broken; "
            "evaluate an earlier checkpoint, or train again with a lower --lr or --precision fp32"
        )


def describe(result: Mapping[str, Any], measure: Measure) -> str:
    """Summarise an evaluation in one line."""
    after = f"reconstruction {result['psnr']:.1f} dB"
    if not measure.has_rate:
        return f"distortion {result['distortion']:.1f} {measure.nats}, {after}, {result['num_images']} images"
    bound = ""
    if "importance_draws" in result:
        per_dim = measure.per_dim(result["importance_bits_per_dim"])
        bound = f" ({per_dim:.3f} with {result['importance_draws']} importance samples)"
    return (
        f"{measure.per_dim(result['bits_per_dim']):.3f} {measure.unit}{bound}, ELBO {result['elbo']:.1f} nats "
        f"(rate {result['rate']:.1f}, distortion {result['distortion']:.1f}), {after}, "
        f"{result['active_units']}/{result['num_units']} units active, {result['num_images']} images"
    )


# --- The no-latents baseline -----------------------------------------------------------------------------------------


def _counts(dataset: datasets.Dataset, limit: int) -> torch.Tensor:
    """Count how often each value takes each level, [P, 2^bits], over at most ``limit`` evenly spread images."""
    spec = dataset.spec
    counts = torch.zeros(spec.num_dims, 2**spec.num_bits, dtype=torch.int64)
    chosen = datasets.choose_rows(len(dataset), limit)
    for block in np.array_split(chosen, -(-len(chosen) // 256)):
        count_levels(counts, dataset.images(block))
    return counts


def no_latents(train: datasets.Dataset, held_out: datasets.Dataset, num_images: int | None = None) -> dict[str, float]:
    """Score held-out images without a model: nats and bits per dimension under a logistic per pixel, fitted to ``train``."""
    spec = held_out.spec
    fitted = fit_pixel_baseline(_counts(train, BASELINE_IMAGES), spec.num_bits)
    nats = fitted.nats(_counts(held_out, num_images or len(held_out)))
    return {"negative_log_likelihood": nats, "bits_per_dim": float(elbo.bits_per_dim(nats, spec.num_dims))}
