"""Which objective, and the weights of its terms: typed, or the paper's where nothing is typed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, get_args

from metrics.likelihoods import ImageSpec

ObjectiveName = Literal["ae", "denoising", "vae", "beta", "capacity", "tc", "factor", "dip", "grouped"]
BETA_FORMS = ("beta", "beta_norm", "beta_pixel_mean")

# Every weight that an objective uses, with the value it has where none is typed.
DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "ae": {},
        "denoising": {"corruption": "zero", "corruption_amount": 0.3},
        "vae": {"beta_warmup": 0.0},
        "beta": {"beta": 4.0, "beta_warmup": 0.0},
        "capacity": {"gamma": 100.0, "capacity": 25.0, "capacity_warmup": 0.3},
        "tc": {"beta": 6.4, "beta_warmup": 0.0, "alpha": 1.0, "gamma": 1.0},
        "factor": {"gamma": 6.4},
        "dip": {"dip": "i", "lambda_od": 10.0, "lambda_d": None},
        "grouped": {"beta": 1.0, "beta_warmup": 0.0, "latent_groups": None},
    }
)


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
    """Instead of beta: beta / pixels, the weight where the distortion is a mean over pixels."""
    beta_warmup: float | None = None
    """Part of the run over which beta rises linearly from 0 (vae, beta, tc, grouped). Default 0."""
    capacity: float | None = None
    """Nats that the rate is held to at the end (capacity). Default 25."""
    capacity_warmup: float | None = None
    """Part of the run over which the capacity rises linearly from 0 (capacity). Default .3."""
    gamma: float | None = None
    """Weight of |rate - capacity| (capacity: 100), of TC (factor: 6.4), or of the dimension-wise KL (tc: 1)."""
    alpha: float | None = None
    """Weight of the mutual information (tc). Default 1."""
    dip: Literal["i", "ii"] | None = None
    """Covariance of the posterior means (i), or of the aggregate posterior (ii) (dip). Default i."""
    lambda_od: float | None = None
    """Weight of its squared off-diagonal (dip). Default 10."""
    lambda_d: float | None = None
    """Weight of its squared diagonal's distance from 1 (dip). Default 10 lambda_od (i), lambda_od (ii)."""
    corruption: Literal["zero", "gaussian"] | None = None
    """What is done to the input: pixels set to zero, or noise added (denoising). Default zero."""
    corruption_amount: float | None = None
    """Rate of zeroed pixels, or std of the noise in pixels of [0, 1] (denoising). Default .3."""
    latent_groups: tuple[int, ...] | None = None
    """Latents of each group (grouped). Default two halves."""

    def __post_init__(self) -> None:
        """Refuse two betas, weights that the objective does not have, and values out of range."""
        if self.objective not in get_args(ObjectiveName):
            raise ValueError(f"objective is {self.objective!r}; choose one of {', '.join(get_args(ObjectiveName))}")
        betas = [name for name in BETA_FORMS if getattr(self, name) is not None]
        if len(betas) > 1:
            raise ValueError(f"{' and '.join(map(_flag, betas))} are forms of one weight; give one of them")
        for name in self.typed():
            users = [objective for objective, used in DEFAULTS.items() if _key(name) in used]
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

    def resolved(self) -> ObjectiveConfig:
        """The same with every weight that this objective uses filled in."""
        missing = {k: v for k, v in DEFAULTS[self.objective].items() if getattr(self, k) is None}
        if any(getattr(self, name) is not None for name in BETA_FORMS):
            missing.pop("beta", None)
        filled = replace(self, **missing)
        if filled.objective == "dip" and filled.lambda_d is None:
            assert filled.lambda_od is not None
            filled = replace(filled, lambda_d=filled.lambda_od * (10.0 if filled.dip == "i" else 1.0))
        return filled


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _key(name: str) -> str:
    return "beta" if name in BETA_FORMS else name


def _check(name: str, value: Any) -> None:
    """One weight's range."""
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
        raise ValueError(f"{_flag(name)} is {value}; it is a part of the run, in [0, 1]")


@dataclass(frozen=True)
class Betas:
    """One weight of the rate in its three forms.

    Args:
        beta: on nats per image: distortion + beta * rate.
        beta_norm: beta * M / N with M latents and N pixels (times channels), as Higgins et al. 2017 normalise it.
        beta_pixel_mean: beta / N: the weight where the distortion is averaged over pixels and the rate summed.
    """

    beta: float
    beta_norm: float
    beta_pixel_mean: float


def betas(config: ObjectiveConfig, spec: ImageSpec, num_latents: int) -> Betas:
    """The weight of ``config`` in all three forms; 1 nat for a nat where the objective has none."""
    num_dims = spec.channels * spec.height * spec.width
    config = config.resolved()
    beta = 1.0 if config.beta is None else config.beta
    if config.beta_norm is not None:
        beta = config.beta_norm * num_dims / num_latents
    elif config.beta_pixel_mean is not None:
        beta = config.beta_pixel_mean * num_dims
    return Betas(beta, beta * num_latents / num_dims, beta / num_dims)


_FORMULAS: Mapping[str, str] = MappingProxyType(
    {
        "ae": "distortion at the posterior's mean",
        "denoising": "distortion at the mean, input corrupted ({corruption}, {corruption_amount:g})",
        "vae": "distortion + rate",
        "beta": "distortion + {beta:g} rate",
        "capacity": "distortion + {gamma:g} |rate - C|, C to {capacity:g} nats in {capacity_warmup:g} of the run",
        "tc": "distortion + {alpha:g} I(x;z) + {beta:g} TC + {gamma:g} dimension-wise KL",
        "factor": "distortion + rate + {gamma:g} TC by a discriminator",
        "dip": "distortion + rate + {lambda_od:g} offdiag^2 + {lambda_d:g} (diag - 1)^2 (DIP-VAE-{dip})",
        "grouped": "sum over groups of distortion + {beta:g} rate",
    }
)


def describe(config: ObjectiveConfig, spec: ImageSpec, num_latents: int) -> str:
    """The loss in a line, with its weights and the three forms of beta."""
    forms = betas(config, spec, num_latents)
    formula = _FORMULAS[config.objective].format_map(vars(config.resolved()) | {"beta": forms.beta})
    if "beta" not in DEFAULTS[config.objective]:
        return f"{config.objective}: {formula}"
    warmup = config.resolved().beta_warmup
    rises = f", rising over {warmup:g} of the run" if warmup else ""
    return (
        f"{config.objective}: {formula}; beta {forms.beta:.4g} = beta-norm {forms.beta_norm:.4g} = "
        f"beta-pixel-mean {forms.beta_pixel_mean:.4g}{rises}"
    )
