from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig
from metrics import elbo
from metrics.normal import Normal
from tests.flat_vae.cases import BINARY, COLOUR, levels

CONFIGS = {
    "bernoulli": (FlatVAEConfig(latent_dim=3, conv_channels=4), BINARY),
    "mixture": (FlatVAEConfig(latent_dim=3, conv_channels=4, num_mixtures=2), COLOUR),
    "normal": (FlatVAEConfig(latent_dim=3, conv_channels=4, likelihood="normal"), COLOUR),
    "fixed": (FlatVAEConfig(latent_dim=3, conv_channels=4, likelihood="normal", normal_std=0.3), COLOUR),
    "grey cross entropy": (FlatVAEConfig(latent_dim=3, conv_channels=4, likelihood="bernoulli"), COLOUR),
}


@pytest.fixture(params=CONFIGS)
def built(request: pytest.FixtureRequest) -> tuple[FlatVAE, Tensor]:
    config, spec = CONFIGS[request.param]
    return FlatVAE(config, spec), levels(spec, 5)


def test_contract(built: tuple[FlatVAE, Tensor]) -> None:
    model, x = built
    noise = [torch.randn(5, 3)]
    output = model(x, noise)
    terms = elbo.terms(output, x)
    assert model.group_shapes == [(3,)]
    assert terms.log_likelihood.shape == (5,)
    assert terms.kl.shape == (5, 1)
    assert (terms.kl >= 0).all()
    assert torch.equal(model(x, noise).groups[0].z, output.groups[0].z)
    assert [m.shape for m in model.encode(x)] == [(5, 3)]
    assert torch.equal(model.encode(x)[0], output.groups[0].posterior.mean)
    assert torch.equal(model.reconstruct(x), model.decode(model.encode(x)).mean)
    for image in (model.reconstruct(x), *(model.sample(5, pixels=pixels) for pixels in ("mean", "sample"))):  # type: ignore[arg-type]
        assert image.shape == x.shape
        assert ((image >= 0.0) & (image <= 1.0)).all()
    terms.elbo.mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_from_features_serves_several_draws(built: tuple[FlatVAE, Tensor]) -> None:
    model, x = built
    noise = torch.randn(10, 3)
    repeated = model.from_features(model.bottom_up(x).repeat(2), [noise])
    alone = model(x[1:2], [noise[3:4]])
    torch.testing.assert_close(repeated.groups[0].z[3:4], alone.groups[0].z)
    torch.testing.assert_close(repeated.likelihood.mean[3:4], alone.likelihood.mean)


def test_rate_and_distortion_from_scratch() -> None:
    config, spec = CONFIGS["bernoulli"]
    model, x = FlatVAE(config, spec).double(), levels(spec, 3).double()
    noise = torch.randn(3, 3, dtype=torch.float64)
    h = model.encoder(x)
    mean, variance = model.mean(h), model.log_variance(h).exp()
    probability = torch.sigmoid(model.decoder(mean + variance.sqrt() * noise))
    distortion = -(x * probability.log() + (1 - x) * (1 - probability).log()).sum((1, 2, 3))
    rate = 0.5 * (mean**2 + variance - variance.log() - 1).sum(1)
    terms = elbo.terms(model(x, [noise]), x)
    torch.testing.assert_close(terms.distortion, distortion)
    torch.testing.assert_close(terms.rate, rate)


def test_the_fixed_normal_is_a_scaled_squared_error() -> None:
    config, spec = CONFIGS["fixed"]
    model, x = FlatVAE(config, spec), levels(spec, 3)
    likelihood = model(x, [torch.zeros(3, 3)]).likelihood
    error = (2 * x - 1 - model.decoder(model.encode(x)[0])).square().sum((1, 2, 3))
    constant = spec.num_dims * math.log(0.3 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(likelihood.log_prob(x), -error / (2 * 0.09) - constant)


def test_the_learnt_std_cannot_fall_below_half_a_level() -> None:
    config, spec = CONFIGS["normal"]
    model = FlatVAE(config, spec)
    likelihood = model.pixel_head(torch.full((1, 6, 9, 6), -100.0))
    assert float(likelihood.normal.std.detach().min()) == pytest.approx(1 / 31)  # type: ignore[attr-defined]


def test_importance_bound_is_at_least_the_elbo(model: FlatVAE, x: Tensor) -> None:
    with torch.no_grad():
        model.mean.weight *= 30.0  # a posterior that differs from the prior
        features = model.bottom_up(x).repeat(500)
        output = model.from_features(features, [torch.randn(len(x) * 500, 4)])
        repeated = x.repeat_interleave(500, 0)
        log_weights = elbo.log_weight(output, repeated).unflatten(0, (-1, 500))
        bounds = elbo.importance_bound(log_weights)
    assert (bounds > log_weights.mean(1)).all()


def test_beliefs_are_float32_under_autocast(built: tuple[FlatVAE, Tensor]) -> None:
    model, x = built
    noise = [torch.randn(5, 3)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = elbo.terms(model(x, noise), x)
    assert terms.log_likelihood.dtype == terms.kl.dtype == torch.float32
    exact = elbo.terms(model(x, noise), x)
    torch.testing.assert_close(terms.log_likelihood, exact.log_likelihood, rtol=0.02, atol=0.5)


def test_save_and_load_change_nothing(built: tuple[FlatVAE, Tensor]) -> None:
    model, x = built
    other = FlatVAE(model.config, model.spec)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other.reconstruct(x), model.reconstruct(x))


def test_sampling_uses_what_it_is_given(model: FlatVAE) -> None:
    noise = torch.randn(3, 4)
    assert torch.equal(model.sample(3, 0.5, noise=[noise]), model.decode([0.5 * noise]).mean)
    first, again = (model.sample(3, pixels="sample", generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    assert set(first.unique().tolist()) <= {0.0, 1.0}


def test_a_view_is_what_the_decoder_sees(model: FlatVAE, x: Tensor) -> None:
    noise = [torch.randn(6, 4)]
    output = model(x, noise, lambda z: torch.cat([z, 0.0 * z]))
    assert torch.equal(output.likelihood.mean[:6], model(x, noise).likelihood.mean)
    torch.testing.assert_close(output.likelihood.mean[6:], model.decode([torch.zeros(6, 4)]).mean)
    assert isinstance(output.groups[0].posterior, Normal)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda m: m(torch.rand(2, 1, 8, 9)), r"\(2, 1, 8, 9\) do not fit the model; give \[B, 1, 8, 8\]"),
        (lambda m: m.decode([torch.zeros(2, 5)]), r"\(2, 5\) do not fit the model; give \[B, 4\]"),
        (lambda m: m.decode([]), "0 tensors for 1 group"),
        (lambda m: m.sample(0), "num is 0"),
        (lambda m: m.sample(1, temperature=0.0), "temperature is 0.0; give"),
        (lambda m: m.sample(1, pixels="mode"), "mean or sample"),
        (lambda m: FlatVAEConfig(latent_dim=0), "latent_dim is 0; give 1 or more"),
        (lambda m: FlatVAEConfig(latent_dim=10**9), "latent_dim is 1000000000; give at most 65,536"),
        (lambda m: FlatVAEConfig(network="vgg"), "choose one of auto, burgess"),
        (lambda m: FlatVAEConfig(normal_std=0.5), "choose likelihood normal"),
        (lambda m: FlatVAEConfig(likelihood="normal", normal_std=-1.0), "give a positive number"),
    ],
)
def test_bad_input_is_named(model: FlatVAE, call: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(model)  # type: ignore[operator]
