"""The ELBO's arithmetic on a model whose evidence is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from metrics import elbo
from metrics.elbo import Group, VAEOutput
from metrics.likelihoods import Gaussian
from metrics.normal import Normal


def linear_gaussian(x: Tensor, noise: Tensor, shift: float = 0.0) -> VAEOutput:
    """z ~ N(0, 1), y = 2x - 1 ~ N(z, 0.5^2) for one pixel; the posterior is exact where shift is 0."""
    y = 2 * x.flatten(1) - 1
    posterior = Normal(y / 1.25 + shift, torch.full_like(y, math.sqrt(0.2)))
    z = posterior.rsample(noise)
    likelihood = Gaussian(Normal(z[..., None, None], torch.tensor(0.5)))
    return VAEOutput(likelihood, [Group(z, posterior, Normal(torch.zeros_like(z), torch.ones_like(z)))])


def evidence(x: Tensor) -> Tensor:
    return torch.distributions.Normal(0.0, math.sqrt(1.25)).log_prob(2 * x - 1).flatten()


def test_exact_posterior_makes_every_importance_weight_the_evidence() -> None:
    x = torch.rand(5, 1, 1, 1)
    for _ in range(3):
        weight = elbo.log_weight(linear_gaussian(x, torch.randn(5, 1)), x)
        torch.testing.assert_close(weight, evidence(x), atol=1e-5, rtol=0)


def test_elbo_is_below_the_evidence_and_the_bound_rises_to_it() -> None:
    x = torch.full((1, 1, 1, 1), 0.8)
    many = x.expand(200_000, 1, 1, 1)
    output = linear_gaussian(many, torch.randn(200_000, 1), shift=0.5)
    terms = elbo.terms(output, many)
    gap = evidence(x).item() - terms.elbo.mean().item()
    assert gap == pytest.approx(0.5**2 / (2 * 0.2), abs=0.02)  # KL of two Gaussians of equal std, half a unit apart
    weights = elbo.log_weight(output, many)
    assert elbo.importance_bound(weights[None]).item() == pytest.approx(evidence(x).item(), abs=0.02)


def test_terms_add_up() -> None:
    x = torch.rand(4, 1, 1, 1)
    terms = elbo.terms(linear_gaussian(x, torch.randn(4, 1)), x)
    assert terms.kl.shape == (4, 1)
    torch.testing.assert_close(terms.elbo, -(terms.rate + terms.distortion))


def test_kl_of_a_flow_is_its_one_sample_estimate() -> None:
    posterior, prior = Normal(torch.ones(1, 2), torch.ones(1, 2)), Normal(torch.zeros(1, 2), torch.ones(1, 2))
    base = torch.tensor([[1.5, 0.0]])
    group = Group(base - 1, posterior, prior, base=base)
    torch.testing.assert_close(group.kl(), posterior.log_prob(base) - prior.log_prob(base - 1))


def test_bits_per_dim_and_active_units() -> None:
    assert elbo.bits_per_dim(8 * math.log(2.0) * 12, 12) == pytest.approx(8.0)
    assert elbo.active_units(torch.tensor([0.05, 0.2, 3.0])) == 2


def test_kl_per_channel_sums_space_and_averages_images() -> None:
    group = Group(
        torch.zeros(2, 3, 4, 5),
        Normal(torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 5)),
        Normal(torch.zeros(2, 3, 4, 5), torch.ones(2, 3, 4, 5)),
    )
    torch.testing.assert_close(group.kl_per_channel(), torch.full((3,), 10.0))
