"""A hundred deterministic steps of each family in double precision, and the losses that they had at commit 32c0d67.

In double precision another processor, with other kernels, gives the same curve to about ten digits; in single
precision only three would agree after a hundred steps. ``python -m tests.curve.recipes`` rewrites the curves. Do this
only after a change that is meant to move them, and say so in its commit.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import flat_vae
import nvae
from datasets import ImageSpec
from flat_vae import adversary
from tests.launch import toy

STEPS, BATCH = 100, 8
STORED = Path(__file__).with_name("curves.json")
BINARY = ImageSpec(channels=1, height=16, width=16, num_bits=1)
SMALL_BINARY = ImageSpec(channels=1, height=8, width=8, num_bits=1)
COLOUR = ImageSpec(channels=3, height=11, width=14, num_bits=5)


class Recipe(NamedTuple):
    """Images, a function that builds a model and its objective for them, and the length of training."""

    spec: ImageSpec
    model: Callable[[ImageSpec], Any]
    objective: Callable[[Any], Any]
    optimizer: Callable[..., torch.optim.Optimizer]
    steps: int = STEPS


def hierarchy(spec: ImageSpec, *, steps: int = STEPS, spectral_weight: float = 0.1, **changes: Any) -> Recipe:
    """An NVAE of two scales, a group each; the KL's warm-up, with its balancing, ends after two fifths of the run."""
    small: dict[str, Any] = {
        "num_scales": 2,
        "groups_per_scale": (1, 1),
        "latent_channels": 2,
        "channels_enc": 4,
        "channels_dec": 4,
        "preprocess_cells": 1,
        "postprocess_cells": 1,
        "cells_per_group_enc": 1,
        "cells_per_group_dec": 1,
        "num_mixtures": 2,
        "cell_arch": "res_bnswish",
    }
    config = nvae.NVAEConfig(**(small | changes))
    weights = nvae.ObjectiveConfig(kl_anneal_portion=0.4, spectral_weight=spectral_weight)
    return Recipe(
        spec,
        lambda spec: nvae.NVAE(config, spec),
        lambda model: nvae.NVAEObjective(weights, model, steps),
        lambda parameters: torch.optim.Adamax(parameters, lr=3e-3, eps=1e-3, foreach=True),
        steps,
    )


def flat(spec: ImageSpec, objective: str, *, model: dict[str, Any] | None = None, **weights: Any) -> Recipe:
    """A flat VAE of four latents under one of the objectives."""
    config = flat_vae.FlatVAEConfig(**{"network": "conv", "conv_channels": 4, "latent_dim": 4} | (model or {}))
    chosen = flat_vae.ObjectiveConfig(objective=objective, **weights)  # type: ignore[arg-type]
    return Recipe(
        spec,
        lambda spec: flat_vae.FlatVAE(config, spec),
        lambda model: flat_vae.build_objective(chosen, model, STEPS, toy.TOTAL),
        lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )


RECIPES: dict[str, Recipe] = {
    "nvae": hierarchy(COLOUR),
    # Depthwise convolutions take half a second a step in double precision.
    "nvae-flows-separable": hierarchy(SMALL_BINARY, steps=12, num_flows=1, cell_arch="res_mbconv"),
    "nvae-plain-normal": hierarchy(
        COLOUR,
        steps=30,
        spectral_weight=0.0,
        cell_arch="res_elu",
        squeeze_excite=False,
        residual_posterior=False,
        likelihood="normal",
    ),
    "ae": flat(BINARY, "ae"),
    "denoising": flat(BINARY, "denoising"),
    "vae": flat(BINARY, "vae", beta_warmup=0.5),
    "vae-mixture": flat(COLOUR, "vae", model={"num_mixtures": 2}),
    "vae-normal": flat(COLOUR, "vae", model={"likelihood": "normal", "init": "glorot"}),
    "beta": flat(BINARY, "beta", beta_norm=0.1),
    "capacity": flat(BINARY, "capacity", capacity=5.0, gamma=10.0),
    "tc": flat(BINARY, "tc"),
    "factor": flat(BINARY, "factor"),
    "dip-i": flat(BINARY, "dip"),
    "dip-ii": flat(BINARY, "dip", dip="ii"),
    "grouped": flat(BINARY, "grouped", latent_groups=(1, 3)),
}


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Weights are drawn, and everything is computed, in float64; the discriminator of FactorVAE is made small."""
    units, adversary.HIDDEN_UNITS = adversary.HIDDEN_UNITS, 16
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        adversary.HIDDEN_UNITS = units


def images(spec: ImageSpec) -> Tensor:
    """The toy data's squares and bars, cut to ``spec`` and tinted, [N, C, H, W] on the grid of its bits."""
    top = 2**spec.num_bits - 1
    shapes = torch.from_numpy(toy.draw())[:, :, : spec.height, : spec.width] > 0
    tint = torch.tensor([3, 2, 1])[: spec.channels].reshape(1, -1, 1, 1)
    return shapes * (top * tint // 3) / top


def curve(recipe: Recipe) -> list[float]:
    """The loss of each of the steps, nats per image."""
    with double_precision():
        torch.manual_seed(0)
        model = recipe.model(recipe.spec).train()
        objective = recipe.objective(model)
        optimizer = recipe.optimizer(model.parameters())
        source = torch.Generator().manual_seed(1)
        data, losses = images(recipe.spec), []
        for step in range(recipe.steps):
            x = data[torch.arange(BATCH * step, BATCH * (step + 1)) * 5 % len(data)]
            noise = [torch.randn(BATCH, *shape, generator=source) for shape in objective.noise_shapes]
            loss = objective(model, x, step, noise)
            optimizer.zero_grad()
            loss.total.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e4)
            optimizer.step()
            objective.after_step(False)
            losses.append(float(loss.total.detach()))
        return losses


def stored() -> dict[str, list[float]]:
    """The curves by recipe."""
    return dict(json.loads(STORED.read_text()))


def write(curves: dict[str, list[float]]) -> None:
    """Store the curves, ten digits each."""
    lines = [f' "{name}": [{", ".join(f"{loss:.10g}" for loss in losses)}]' for name, losses in curves.items()]
    STORED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    write({name: curve(recipe) for name, recipe in RECIPES.items()})
