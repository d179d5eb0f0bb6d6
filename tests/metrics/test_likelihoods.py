"""Likelihoods are probabilities: masses sum to one, samples follow them, and naive float64 twins agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from metrics.likelihoods import (
    Bernoulli,
    DiscretizedLogisticMixture,
    Gaussian,
    discretized_logistic,
    log_bin_mass,
    log_bin_mass_published,
    num_mixture_parameters,
)
from metrics.normal import Normal


def test_channels_of_a_single_logistic_are_independent() -> None:
    generator = torch.Generator().manual_seed(0)
    parameters = torch.randn(2, 6, 4, 5, dtype=torch.float64, generator=generator)
    levels = torch.randint(256, (2, 3, 4, 5), generator=generator)
    likelihood = discretized_logistic(parameters, channels=3, num_bits=8)
    mean, scale = parameters[:, :3].numpy(), parameters[:, 3:].exp().numpy()
    upper = np.where(levels == 255, np.inf, (2 * levels.numpy() + 1 - 255) / 255)
    lower = np.where(levels == 0, -np.inf, (2 * levels.numpy() - 1 - 255) / 255)
    mass = stats.logistic.cdf(upper, mean, scale) - stats.logistic.cdf(lower, mean, scale)
    np.testing.assert_allclose(likelihood.log_prob(levels / 255), np.log(mass).sum((1, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(likelihood.mean, (mean.clip(-1, 1) + 1) / 2)


@settings(deadline=None, max_examples=300)
@given(
    mean=st.floats(-1e4, 1e4) | st.floats(-1.5, 1.5),
    log_scale=st.floats(-7, 30),
    num_bits=st.integers(1, 8),
)
def test_bin_masses_sum_to_one_in_float32(mean: float, log_scale: float, num_bits: int) -> None:
    levels = torch.arange(2.0**num_bits)
    masses = log_bin_mass(levels, torch.tensor(mean), torch.tensor(log_scale), num_bits).exp()
    assert torch.isfinite(masses).all()
    assert abs(masses.double().sum().item() - 1.0) < 1e-6


@pytest.mark.parametrize(("num_bits", "counts_top_twice"), [(8, True), (5, False)])
def test_published_rule_counts_the_top_bin_twice_at_8_bits(num_bits: int, counts_top_twice: bool) -> None:
    """Its edge test x > 0.99 lets value 254 of 255 take the open tail as well; 5-bit values stay clear of it."""
    top, mean, scale = 2**num_bits - 1, 1.0, 0.05
    grid = torch.arange(top + 1, dtype=torch.float64) / top * 2 - 1
    masses = log_bin_mass_published(grid, torch.tensor(mean).double(), torch.tensor(math.log(scale)).double(), num_bits)
    top_bin = stats.logistic(mean, scale).sf(1 - 1 / top)
    assert masses.exp().sum().item() == pytest.approx(1 + counts_top_twice * top_bin, abs=1e-3)


def test_exact_masses_equal_scipy_logistic() -> None:
    levels = np.arange(256)
    upper, lower = (2 * levels + 1 - 255) / 255, (2 * levels - 1 - 255) / 255
    for mean, scale in ((0.1, 0.05), (-0.9, 0.3), (1.1, 0.01)):
        cdf = stats.logistic(mean, scale).cdf
        mass = np.where(levels == 255, 1.0, cdf(upper)) - np.where(levels == 0, 0.0, cdf(lower))
        ours = log_bin_mass(
            torch.tensor(levels).double(), torch.tensor(mean), torch.tensor(math.log(scale)).double(), 8
        )
        keep = mass > 1e-12  # below this the naive difference has no digits left, ours has
        np.testing.assert_allclose(ours.exp().numpy()[keep], mass[keep], rtol=1e-4, atol=1e-13)


def random_mixture(channels: int, num_bits: int, num_mixtures: int = 4) -> tuple[Tensor, Tensor]:
    parameters = torch.randn(2, num_mixture_parameters(channels, num_mixtures), 3, 5) * 1.5
    x = torch.randint(0, 2**num_bits, (2, channels, 3, 5)) / (2**num_bits - 1)
    return parameters, x


def naive_log_prob_map(parameters: Tensor, x: Tensor, num_bits: int, num_mixtures: int) -> np.ndarray:
    """Loops over pixels and components in float64 with scipy, for colour, after the layout in the docstring."""
    top = 2**num_bits - 1
    p, x = parameters.double().numpy(), x.double().numpy()
    out = np.zeros((x.shape[0], *x.shape[2:]))
    for b, h, w in np.ndindex(out.shape):
        v, pixel = p[b, :, h, w], x[b, :, h, w] * 2 - 1
        logits, blocks = v[:num_mixtures], v[num_mixtures:].reshape(3, 3, num_mixtures)  # colour, (mean, scale, coeff)
        total = 0.0
        for m in range(num_mixtures):
            gr, br, bg = np.tanh(blocks[:, 2, m])
            r, g, _ = pixel
            means = blocks[0, 0, m], blocks[1, 0, m] + gr * r, blocks[2, 0, m] + br * r + bg * g
            mass = np.exp(logits[m]) / np.exp(logits).sum()
            for c in range(3):
                cdf = stats.logistic(means[c], np.exp(max(blocks[c, 1, m], -7))).cdf
                level = round((pixel[c] + 1) / 2 * top)
                hi = 1.0 if level == top else cdf((2 * level + 1 - top) / top)
                lo = 0.0 if level == 0 else cdf((2 * level - 1 - top) / top)
                mass *= hi - lo
            total += mass
        out[b, h, w] = np.log(total)
    return out


@pytest.mark.parametrize("num_bits", [8, 5])
def test_mixture_equals_naive_float64_twin(num_bits: int) -> None:
    parameters, x = random_mixture(3, num_bits)
    ours = DiscretizedLogisticMixture(parameters, 3, num_bits).log_prob_map(x)
    np.testing.assert_allclose(ours.numpy(), naive_log_prob_map(parameters, x, num_bits, 4), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_channel_masses_are_probabilities_whose_product_is_the_likelihood(channels: int) -> None:
    parameters, x = random_mixture(channels, 5)
    mixture = DiscretizedLogisticMixture(parameters, channels, 5)
    joint = torch.zeros(2, 3, 5)
    for c in range(channels):
        pmf = mixture.channel_pmf(c, x)
        torch.testing.assert_close(pmf.sum(-1), torch.ones(2, 3, 5), atol=2e-6, rtol=0)
        level = torch.round(x[:, c] * 31).long()
        joint += pmf.gather(-1, level.unsqueeze(-1)).squeeze(-1).log()
    torch.testing.assert_close(joint, mixture.log_prob_map(x), atol=1e-4, rtol=1e-5)


def test_samples_follow_the_pixel_masses() -> None:
    parameters = torch.randn(1, num_mixture_parameters(1, 3), 1, 1)
    parameters[:, 6:] -= 1.0
    mixture = DiscretizedLogisticMixture(parameters.expand(40_000, -1, 1, 1), 1, 3)
    drawn = torch.round(mixture.sample(generator=torch.Generator().manual_seed(1)) * 7).long().flatten()
    expected = DiscretizedLogisticMixture(parameters, 1, 3).channel_pmf(0, torch.zeros(1, 1, 1, 1)).flatten()
    observed = torch.bincount(drawn, minlength=8) / 40_000
    # binomial standard error is at most sqrt(.25 / 40000) = .0025; four of them
    torch.testing.assert_close(observed, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("edges", ["exact", "legacy"])
def test_temperature_turns_the_noise_the_documented_way(edges: str) -> None:
    parameters = torch.zeros(1, 3, 64, 64)
    parameters[:, 2] = -2.5
    mixture = DiscretizedLogisticMixture(parameters, 1, 8, edges=edges)  # type: ignore[arg-type]
    spread = [mixture.sample(t, torch.Generator().manual_seed(0)).std().item() for t in (0.5, 1.0)]
    assert (spread[0] < spread[1]) == (edges == "exact")


def test_mean_of_one_narrow_component_is_its_mean() -> None:
    parameters = torch.zeros(1, 10, 1, 1)
    parameters[0, [1, 4, 7], 0, 0] = torch.tensor([0.5, -0.25, 0.1])
    expected = torch.tensor([0.75, 0.375, 0.55]).view(1, 3, 1, 1)
    torch.testing.assert_close(DiscretizedLogisticMixture(parameters, 3, 8).mean, expected)


def test_wrong_parameter_count_is_named() -> None:
    with pytest.raises(ValueError, match=r"31 parameters.*multiple of 10"):
        DiscretizedLogisticMixture(torch.zeros(1, 31, 2, 2), 3, 8)


def test_gradients_are_finite_at_extreme_parameters() -> None:
    parameters = (torch.randn(1, 100, 8, 8) * 50).requires_grad_()
    x = torch.randint(0, 256, (1, 3, 8, 8)) / 255
    DiscretizedLogisticMixture(parameters, 3, 8).log_prob(x).sum().backward()
    assert parameters.grad is not None
    assert torch.isfinite(parameters.grad).all()


@pytest.mark.parametrize("value", [1.5, -0.1, 255.0])
def test_bernoulli_refuses_targets_outside_0_1(value: float) -> None:
    belief = Bernoulli(torch.zeros(2, 1, 3, 3))
    x = torch.zeros(2, 1, 3, 3)
    x[1, 0, 2, 1] = value
    with pytest.raises(ValueError, match=rf"{value:g}.*give values in \[0, 1\]"):
        belief.log_prob(x)
    batched = torch.vmap(lambda logits, target: Bernoulli(logits).log_prob(target))  # where values can't be looked at
    assert batched(belief.logits[None], x[None].clamp(0, 1)).shape == (1, 2)


def test_bernoulli_equals_torch_and_computes_in_float32() -> None:
    logits, x = torch.randn(2, 1, 4, 4) * 4, torch.randint(0, 2, (2, 1, 4, 4)).float()
    reference = torch.distributions.Bernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli(logits).log_prob(x).double(), reference, rtol=1e-6, atol=1e-5)
    assert Bernoulli(logits.bfloat16()).log_prob(x).dtype == torch.float32


def test_gaussian_is_a_density_of_scaled_pixels() -> None:
    mean, std, x = torch.randn(2, 1, 3, 3), torch.rand(2, 1, 3, 3) + 0.1, torch.rand(2, 1, 3, 3)
    expected = torch.distributions.Normal(mean, std).log_prob(2 * x - 1).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian(Normal(mean, std)).log_prob(x), expected)
    assert Gaussian(Normal(mean, std)).sample(generator=torch.Generator().manual_seed(0)).amin() >= 0
