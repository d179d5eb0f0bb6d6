"""The base of all models: what follows from a bottom-up and a top-down pass, and input that it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flat_vae import FlatVAE, FlatVAEConfig
from metrics.decisions import Fixed, PosteriorMean, PosteriorSample, PriorSample
from metrics.model import VAE
from metrics.pixel_head import PixelHead
from nvae.posterior import normal_from_raw
from tests.nvae.small import Images, images, noise, small


@pytest.fixture(scope="module", params=["nvae", "flows", "flat_vae"])
def model(request: pytest.FixtureRequest) -> VAE:
    torch.manual_seed(3)
    if request.param == "flat_vae":
        return FlatVAE(FlatVAEConfig(latent_dim=5, conv_channels=4), Images()).eval()
    return small(num_flows=int(request.param == "flows")).eval()


@torch.no_grad()
def test_everything_follows_from_the_two_passes(model: VAE) -> None:
    x, eps = images(model), noise(model)
    features = model.bottom_up(x)
    assert features.num == 4
    output = model(x, eps)
    by_hand = model.top_down([PosteriorSample(e) for e in eps], features)
    torch.testing.assert_close(output.likelihood.mean, by_hand.likelihood.mean)
    codes = model.encode(x)
    assert [z.shape[1:] for z in codes] == [torch.Size(s) for s in model.group_shapes]
    torch.testing.assert_close(model.decode(codes).mean, model.reconstruct(x), rtol=1e-4, atol=1e-5)
    drawn = model.sample(4, 0.5, noise=eps)
    by_hand = model.top_down([PriorSample(0.5, e) for e in eps], num=4)
    torch.testing.assert_close(drawn, by_hand.likelihood.mean)


@torch.no_grad()
def test_the_pass_without_a_likelihood_has_the_same_groups(model: VAE) -> None:
    x, eps = images(model), noise(model)
    decisions = [PosteriorSample(e) for e in eps]
    whole, short = (walk(decisions, model.bottom_up(x)) for walk in (model.top_down, model.descend))
    for ours, theirs in zip(short, whole.groups, strict=True):  # type: ignore[union-attr, arg-type]
        assert torch.equal(ours.z, theirs.z)
        assert torch.equal(ours.posterior.mean, theirs.posterior.mean)
        assert torch.equal(ours.kl(), theirs.kl())


@torch.no_grad()
def test_without_an_image_the_posterior_is_the_prior(model: VAE) -> None:
    for group in model.descend([PosteriorMean()] * len(model.group_shapes), num=3):
        assert torch.equal(group.posterior.mean, group.prior.mean)
        assert torch.equal(group.posterior.std, group.prior.std)
        assert len(group.z) == 3


@pytest.mark.parametrize("name", ["__call__", "encode", "reconstruct", "bottom_up"])
def test_bytes_are_refused_by_all_that_read_images(model: VAE, name: str) -> None:
    levels = (images(model) * 255).to(torch.uint8)
    with pytest.raises(ValueError, match="255"):
        getattr(model, name)(levels)
    with pytest.raises(ValueError, match=r"\[B, 3, 16, 16\]"):
        getattr(model, name)(images(model)[:, :, :9])


@torch.no_grad()
def test_values_outside_the_unit_interval_are_refused(model: VAE) -> None:
    x = images(model)
    for bad in (255.0 * x, x - 0.5):
        for call in (model.encode, model.reconstruct, model(x).likelihood.log_prob):
            with pytest.raises(ValueError, match=r"\[0, 1\]"):
                call(bad)
    assert model(x + torch.randn_like(x)).likelihood.log_prob(x).isfinite().all()  # a denoising model may see such


BAD: list[tuple[Callable[[VAE], object], str]] = [
    (lambda m: m.top_down([PosteriorMean()] * 7, num=1), "7 decisions"),
    (lambda m: m.top_down([PosteriorMean()] * len(m.group_shapes)), "num"),
    (lambda m: m(images(m), [torch.zeros(1)] * 7), "7 tensors"),
    (lambda m: m.decode([torch.zeros(2, *shape)[:, :1] for shape in m.group_shapes]), "do not fit"),
    (lambda m: m.decode([]), "0 tensors"),
    (lambda m: m.sample(0), "num is 0"),
    (lambda m: m.sample(1, pixels="mode"), "mode"),  # type: ignore[arg-type]
    (lambda m: m.sample(1, temperature=0.0), "0.0"),
    (lambda m: m.sample(1, temperature=[1.0] * 7), "7 temperatures"),
    (lambda m: m.sample(1, pixel_temperature=float("nan")), "nan"),
]


@pytest.mark.parametrize(("call", "said"), BAD, ids=[said for _, said in BAD])
def test_bad_input_is_named(model: VAE, call: Callable[[VAE], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call(model)


def test_fixed_latents_are_what_the_decoder_sees(model: VAE) -> None:
    zs = noise(model)
    groups = model.descend([Fixed(z) for z in zs], num=4)
    assert all(torch.equal(group.z, z) for group, z in zip(groups, zs, strict=True))


def test_the_pixel_head_counts_and_reads_its_parameters() -> None:
    colour, binary = Images(), Images(channels=1, num_bits=1)
    for head, name, count in [
        (PixelHead(spec=binary), "bernoulli", 1),
        (PixelHead(spec=colour, num_mixtures=4), "mixture", 40),
        (PixelHead(spec=colour, likelihood="logistic"), "logistic", 6),
        (PixelHead(spec=colour, likelihood="normal"), "normal", 6),
        (PixelHead(spec=colour, likelihood="normal", normal_std=0.3), "normal", 3),
        (PixelHead(spec=colour, likelihood="normal", raw_normal=normal_from_raw), "normal", 6),
    ]:
        assert (head.name, head.num_parameters) == (name, count)
        parameters = torch.randn(2, count, 16, 16, dtype=torch.bfloat16)
        likelihood = head(parameters)
        assert likelihood.mean.dtype == torch.float32
        assert likelihood.mean.shape == (2, head.spec.channels, 16, 16)
