"""Configuration of an objective: its name and the weights of its terms, by default those of the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from flat_vae.base import FlatObjective
from flat_vae.model import FlatVAE
from flat_vae.objectives import OBJECTIVES, Row, Training
from metrics.likelihoods import ImageSpec

if TYPE_CHECKING:
    ObjectiveName: TypeAlias = str
else:  # the command line offers the rows of the table
    ObjectiveName = Literal[tuple(OBJECTIVES)]
BETA_FORMS = ("beta", "beta_norm", "beta_pixel_mean")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss of a flat VAE, in nats per image: pixels and latents summed, batch mean."""

    objective: ObjectiveName = "vae"
    """ae, denoising (autoencoders), vae, beta, capacity (Burgess), tc (Chen), factor (Kim), dip (Kumar), grouped."""
    beta: float | None = None
    """Weight of the rate (beta, grouped) or total correlation (tc). Default 4 (beta), 6.4 (tc), 1 (grouped)."""
    beta_norm: float | None = None
    """Instead of beta: beta * latents / pixels (Higgins et al. 2017)."""
    beta_pixel_mean: float | None = None
    """Instead of beta: beta / pixels, the weight if the distortion is averaged over pixels."""
    beta_warmup: float | None = None
    """Fraction of the run over which beta rises linearly from 0 (vae, beta, tc, grouped). Default 0."""
    capacity: float | None = None
    """Target of the rate at the end, in nats (capacity). Default 25."""
    capacity_warmup: float | None = None
    """Fraction of the run over which the capacity rises linearly from 0 (capacity). Default .3."""
    gamma: float | None = None
    """Weight of |rate - capacity| (capacity: 100), of TC (factor: 6.4), or of the dimension-wise KL (tc: 1)."""
    alpha: float | None = None
    """Weight of the mutual information (tc). Default 1."""
    dip: Literal["i", "ii"] | None = None
    """Covariance of the posterior means (i), or of the aggregate posterior (ii) (dip). Default i."""
    lambda_od: float | None = None
    """Weight of the squared off-diagonal covariances (dip). Default 10."""
    lambda_d: float | None = None
    """Weight of the variances' squared distances from 1 (dip). Default 10 lambda_od (i), lambda_od (ii)."""
    corruption: Literal["zero", "gaussian"] | None = None
    """Corruption of the input: pixels set to zero, or noise added (denoising). Default zero."""
    corruption_amount: float | None = None
    """Fraction of zeroed pixels, or std of the noise in pixels of [0, 1] (denoising). Default .3."""
    latent_groups: tuple[int, ...] | None = None
    """Latents of each group (grouped). Default two halves."""

    def __post_init__(self) -> None:
        """Refuse two forms of beta, weights that the objective does not have, and values out of range."""
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; choose one of {', '.join(OBJECTIVES)}")
        betas = [name for name in BETA_FORMS if getattr(self, name) is not None]
        if len(betas) > 1:
            raise ValueError(f"{' and '.join(map(_flag, betas))} are forms of one weight; give one of them")
        for name in self.typed():
            users = [objective for objective, row in OBJECTIVES.items() if _key(name) in row.defaults]
            if self.objective not in users:
                raise ValueError(
                    f"{_flag(name)} does nothing for objective {self.objective}; leave it out or choose --objective "
                    + " or ".join(users)
                )
        for name, value in self.typed().items():
            _check(name, value)

    def typed(self) -> dict[str, Any]:
        """The weights that were given."""
        return {name: value for name, value in vars(self).items() if name != "objective" and value is not None}

    @property
    def row(self) -> Row:
        """Row of the table that belongs to the objective."""
        return OBJECTIVES[self.objective]

    @property
    def has_beta(self) -> bool:
        """True if the objective weights its rate or its total correlation by beta."""
        return "beta" in self.row.defaults

    def resolved(self) -> ObjectiveConfig:
        """The configuration with a value for every weight that the objective uses; beta stays in the form given."""
        has_form = any(getattr(self, name) is not None for name in BETA_FORMS)
        filled = {name: getattr(self, name) for name in self.row.defaults}
        for name, value in self.row.defaults.items():
            if filled[name] is None and not (name == "beta" and has_form):
                filled[name] = value(filled) if callable(value) else value
        return replace(self, **filled)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _key(name: str) -> str:
    return "beta" if name in BETA_FORMS else name


def _check(name: str, value: Any) -> None:
    """Refuse a weight that is out of range."""
    if isinstance(value, str):
        choices = {"dip": ("i", "ii"), "corruption": ("zero", "gaussian")}[name]
        if value not in choices:
            raise ValueError(f"{_flag(name)} is {value!r}; choose one of {', '.join(choices)}")
    elif name == "latent_groups":
        if len(value) < 1 or min(value) < 1:
            raise ValueError(f"{_flag(name)} is {value}; give the latents of each group, 1 or more")
    elif not (math.isfinite(value) and value >= 0.0):
        raise ValueError(f"{_flag(name)} is {value}; give 0 or a positive number")
    elif name.endswith("_warmup") and value > 1.0:
        raise ValueError(f"{_flag(name)} is {value}; give a fraction of the run, from 0 to 1")


@dataclass(frozen=True)
class Betas:
    """The weight of the rate in three equivalent forms.

    Args:
        beta: weight in nats per image, distortion + beta * rate.
        beta_norm: beta * M / N with M latents and N pixels (times channels), as Higgins et al. 2017 normalise it.
        beta_pixel_mean: beta / N, the weight if the distortion is averaged over pixels and the rate is summed.
    """

    beta: float
    beta_norm: float
    beta_pixel_mean: float


def betas(config: ObjectiveConfig, spec: ImageSpec, num_latents: int) -> Betas:
    """The weight of a configuration in all three forms; beta is 1 for an objective without this weight."""
    num_dims = spec.channels * spec.height * spec.width
    config = config.resolved()
    beta = 1.0 if config.beta is None else config.beta
    if config.beta_norm is not None:
        beta = config.beta_norm * num_dims / num_latents
    elif config.beta_pixel_mean is not None:
        beta = config.beta_pixel_mean * num_dims
    return Betas(beta, beta * num_latents / num_dims, beta / num_dims)


def describe(config: ObjectiveConfig, spec: ImageSpec, num_latents: int) -> str:
    """Formula of the loss in a line, with its weights and the three forms of beta."""
    forms = betas(config, spec, num_latents)
    formula = config.row.formula.format_map(vars(config.resolved()) | {"beta": forms.beta})
    if not config.has_beta:
        return f"{config.objective}: {formula}"
    warmup = config.resolved().beta_warmup
    rises = f", rising over {warmup:g} of the run" if warmup else ""
    return (
        f"{config.objective}: {formula}; beta {forms.beta:.4g} = beta-norm {forms.beta_norm:.4g} = "
        f"beta-pixel-mean {forms.beta_pixel_mean:.4g}{rises}"
    )


def build_objective(config: ObjectiveConfig, model: FlatVAE, total_steps: int, num_images: int) -> FlatObjective:
    """The objective of a configuration.

    Args:
        config: name and weights of the objective.
        model: the bare model.
        total_steps: optimiser steps of the whole run, which set the length of its schedules.
        num_images: images in the training data, for the estimator of tc.
    """
    resolved = config.resolved()
    weights = {name: getattr(resolved, name) for name in config.row.defaults}
    if config.has_beta:
        weights["beta"] = betas(config, model.spec, model.config.latent_dim).beta
    return config.row.build(model, Training(total_steps, num_images), **weights)
