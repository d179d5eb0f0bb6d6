"""The Gaussian belief against quadrature and scipy."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from metrics.normal import Normal

means = st.floats(-3, 3)
stds = st.floats(0.2, 4)


def scalar(mean: float, std: float) -> Normal:
    return Normal(torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64))


@settings(deadline=None, max_examples=40)
@given(means, stds, means, stds)
def test_kl_equals_quadrature_and_is_not_negative(m1: float, s1: float, m2: float, s2: float) -> None:
    q, p = stats.norm(m1, s1), stats.norm(m2, s2)
    exact, _ = integrate.quad(lambda v: q.pdf(v) * (q.logpdf(v) - p.logpdf(v)), m1 - 12 * s1, m1 + 12 * s1, limit=200)
    kl = scalar(m1, s1).kl(scalar(m2, s2)).item()
    assert kl >= 0
    np.testing.assert_allclose(kl, exact, atol=1e-7, rtol=1e-7)


@settings(deadline=None, max_examples=40)
@given(means, stds, st.floats(-10, 10))
def test_log_prob_and_entropy_equal_scipy(mean: float, std: float, value: float) -> None:
    belief = scalar(mean, std)
    log_prob = belief.log_prob(torch.tensor(value, dtype=torch.float64)).item()
    np.testing.assert_allclose(log_prob, stats.norm(mean, std).logpdf(value), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(belief.entropy().item(), stats.norm(mean, std).entropy(), rtol=1e-10)


def test_sample_is_mean_plus_std_times_noise() -> None:
    belief = Normal(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]))
    noise = torch.tensor([2.0, -1.0])
    assert torch.equal(belief.rsample(noise), torch.tensor([2.0, -1.0]))
    assert torch.equal(belief.tempered(0.5).rsample(noise), torch.tensor([1.5, 0.5]))


def test_drawn_noise_has_the_broadcast_shape_and_moments() -> None:
    drawn = Normal(torch.zeros(20_000, 1), torch.tensor([1.0, 2.0])).rsample()
    assert drawn.shape == (20_000, 2)
    # standard error of a standard deviation from n draws is s / sqrt(2 n): 1 %; five of them
    np.testing.assert_allclose(drawn.std(0).numpy(), [1.0, 2.0], rtol=0.025)
