"""Evaluation on held-out images: each image once on any number of ranks, in float32, with fixed noise."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
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
class OtherEdges:
    """Log-likelihoods of the same draws under the other rule for a mixture's edge bins, in nats."""

    edges: Edges
    log_likelihood: Tensor  # [N]
    bound: Tensor | None  # [N]


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
    other: OtherEdges | None = None

    @property
    def elbo(self) -> Tensor:
        """[N]."""
        return self.log_likelihood - self.kl.sum(1)

    def summary(self) -> dict[str, Any]:
        """Means over images, with 95 % intervals over images (not over seeds)."""
        count = len(self.elbo)
        negative = -self.elbo.double()
        half_width = 1.96 * float(negative.std()) / math.sqrt(count) if count > 1 else float("nan")
        values: dict[str, Any] = {
            "num_images": count,
            "elbo": -float(negative.mean()),
            "elbo_95": half_width,
            "rate": float(self.kl.sum(1).double().mean()),
            "distortion": -float(self.log_likelihood.double().mean()),
            "bits_per_dim": float(elbo.bits_per_dim(float(negative.mean()), self.num_dims)),
            "bits_per_dim_95": float(elbo.bits_per_dim(half_width, self.num_dims)),
            "psnr": float(self.psnr.double().mean()),
            "active_units": self.active_units,
            "num_units": self.num_units,
            "kl_group": [float(v) for v in self.kl.double().mean(0)],
        }
        if self.bound is not None:
            nats = -float(self.bound.double().mean())
            values |= {
                "importance_bound": -nats,
                "importance_draws": self.bound_draws,
                "importance_bits_per_dim": float(elbo.bits_per_dim(nats, self.num_dims)),
            }
        return values | self._other_summary()

    def _other_summary(self) -> dict[str, Any]:
        """Results under the other edge rule, as ``<edges>_elbo`` etc.; legacy edges are those of the published NVAE."""
        if self.other is None:
            return {}
        edges, bound = self.other.edges, self.other.bound
        nats = float((self.other.log_likelihood - self.kl.sum(1)).double().mean())
        values = {
            f"{edges}_elbo": nats,
            f"{edges}_bits_per_dim": float(elbo.bits_per_dim(-nats, self.num_dims)),
        }
        if bound is not None:
            nats = float(bound.double().mean())
            values |= {
                f"{edges}_importance_bound": nats,
                f"{edges}_importance_bits_per_dim": float(elbo.bits_per_dim(-nats, self.num_dims)),
            }
        return values


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


@dataclass(frozen=True)
class _Measurement:
    """Measurements to take on every block of images."""

    model: VAE
    seed: int
    importance_draws: int
    both_edges: bool
    at_means: bool

    def block(self, x: Tensor, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """Per-image results by name, [B] or [B, L], and the summed KL of each latent channel; on the CPU."""
        source = noise.generator(x.device, noise.EVALUATE, self.seed, number)
        drawn = noise.standard_normal(self.model.group_shapes, source, local=len(x))
        output = self.model(x, [torch.zeros_like(one) for one in drawn] if self.at_means else drawn)
        terms = elbo.terms(output, x)
        error = (self.model.reconstruct(x) - x).square().flatten(1).mean(1)
        part = {
            "log_likelihood": terms.log_likelihood,
            "kl": terms.kl,
            "psnr": -10.0 * torch.log10(error.clamp_min(1e-10)),
        }
        other = _with_other_edges(output.likelihood) if self.both_edges else None
        if other is not None:
            part[f"{other.edges}_log_likelihood"] = other.log_prob(x)
        if self.importance_draws:
            source = noise.generator(x.device, noise.IMPORTANCE, self.seed, number)
            draws, both = self.importance_draws, self.both_edges
            weights, others = _log_weights(self.model, x, draws, source, both_edges=both)
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
    measured = _Measurement(model, seed, importance_draws, both_edges, at_means)
    parts: list[Part] = []
    channels: list[Tensor] = []
    shown = ranks.rank == 0 and sys.stderr.isatty()
    with tqdm(total=len(chosen), unit="img", desc="evaluating", disable=not shown, leave=False) as bar:
        for number, positions in blocks(len(chosen), ranks, batch_size):
            if should_stop():
                break
            x = datasets.to_float(dataset.images(chosen[positions]), dataset.spec, ranks.device)
            part, kl_sums = measured.block(x, number)
            parts.append((number, part))
            channels.append(kl_sums)
            bar.update(min(len(positions) * ranks.world_size, len(chosen) - bar.n))
    if any(ranks.maximum(should_stop())):
        raise Stopped
    gathered = ranks.gather((parts, torch.stack(channels).sum(0) if channels else None))
    kl_per_channel = torch.stack([c for _, c in gathered if c is not None]).sum(0) / len(chosen)
    whole = _in_order([part for parts, _ in gathered for part in parts])
    others = [
        OtherEdges(edges, whole[f"{edges}_log_likelihood"], whole.get(f"{edges}_bound"))
        for edges in get_args(Edges)
        if f"{edges}_log_likelihood" in whole
    ]
    return Evaluation(
        log_likelihood=whole["log_likelihood"],
        kl=whole["kl"],
        psnr=whole["psnr"],
        bound=whole.get("bound"),
        bound_draws=importance_draws,
        active_units=elbo.active_units(kl_per_channel),
        num_units=len(kl_per_channel),
        num_dims=dataset.spec.num_dims,
        other=others[0] if others else None,
    )


def _in_order(parts: list[Part]) -> dict[str, Tensor]:
    """Join the results of all blocks in the order of the data set."""
    blocks_in_order = [part for _, part in sorted(parts, key=lambda p: p[0])]
    return {name: torch.cat([part[name] for part in blocks_in_order]) for name in blocks_in_order[0]}


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
