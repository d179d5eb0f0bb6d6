"""The contract of the model for any images: shapes, determinism, gradients, sampling, refusals."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch

from metrics.decisions import Fixed, PosteriorSample, PriorSample
from metrics.elbo import importance_bound, log_weight, terms
from metrics.likelihoods import Bernoulli, DiscretizedLogisticMixture, Gaussian
from nvae import NVAE, NVAEConfig
from nvae.config import CELL_OPS
from tests.nvae.small import SMALL, Images, images, noise, small

SPECS = [
    Images(1, 28, 20, 8),
    Images(3, 17, 30, 5),
    Images(1, 28, 28, 1),
    Images(2, 8, 8, 3),
    Images(4, 12, 9, 8),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_shapes_for_any_images(spec: Images) -> None:
    model = small(spec).eval()
    x = images(model)
    output = model(x, noise(model))
    assert [tuple(g.z.shape[1:]) for g in output.groups] == list(model.group_shapes)
    assert all(g.posterior.std.shape == g.z.shape == g.prior.mean.shape for g in output.groups)
    found = terms(output, x)
    assert found.kl.shape == (4, 3)
    assert found.log_likelihood.shape == (4,)
    assert (found.kl >= 0).all()
    assert isinstance(output.likelihood, Bernoulli if spec.num_bits == 1 else DiscretizedLogisticMixture)
    for pixels in ("mean", "sample"):
        drawn = model.sample(2, 0.7, pixels=pixels)
        assert drawn.shape == (2, spec.channels, spec.height, spec.width)
        assert 0.0 <= float(drawn.min()) <= float(drawn.max()) <= 1.0
    assert model.reconstruct(x).shape == x.shape
    assert [z.shape for z in model.encode(x)] == [g.z.shape for g in output.groups]


def test_groups_are_named_from_the_top_down() -> None:
    model = small(Images(3, 32, 24))
    assert model.group_shapes == [(3, 8, 6), (3, 16, 12), (3, 16, 12)]


@pytest.mark.parametrize("spec", [Images(1, 64, 64, 1), Images(3, 30, 17, 8)], ids=str)
def test_folded_pixels_come_back_to_their_places(spec: Images) -> None:
    model = small(spec, patch_size=4, preprocess_blocks=0, postprocess_blocks=0).eval()
    x = images(model)
    sides = [-(-side // 8) for side in (spec.height, spec.width)]  # stride 8: a patch of 4, one halving
    assert model.group_shapes == [(3, *sides), *[(3, 2 * sides[0], 2 * sides[1])] * 2]
    assert model.stem.weight.shape[1] == 16 * spec.channels
    assert model.sample(2).shape == (2, spec.channels, spec.height, spec.width)
    bias = torch.zeros_like(model.output_conv.bias)
    bias[1:16:16] = 20.0  # the pixel in the first row and second column of each patch
    if spec.num_bits == 1:
        with torch.no_grad():
            model.output_conv.log_weight_norm.fill_(-20.0)
            model.output_conv.bias.copy_(bias)
        white = model.reconstruct(x)[0, 0].round()
        assert white.sum() == white[0::4, 1::4].sum() == 16 * 16


def test_the_odd_pixel_of_padding_is_at_the_bottom_and_right() -> None:
    model = small(Images(1, 17, 30, 8))
    padded = model.padding.pad(torch.ones(1, 1, 17, 30))
    assert padded.shape == (1, 1, 20, 32)
    assert padded[0, 0, 1:18, 1:31].sum() == padded.sum() == 17 * 30
    assert torch.equal(model.padding.crop(padded), torch.ones(1, 1, 17, 30))


def test_normal_likelihood() -> None:
    model = small(likelihood="normal").eval()
    x = images(model)
    output = model(x, noise(model))
    assert isinstance(output.likelihood, Gaussian)
    mean, std = output.likelihood.normal.mean, output.likelihood.normal.std
    expected = torch.distributions.Normal(mean, std).log_prob(2 * x - 1).flatten(1).sum(1)
    torch.testing.assert_close(terms(output, x).log_likelihood, expected)


@pytest.mark.parametrize("arch", sorted(CELL_OPS))
def test_every_parameter_gets_a_gradient(arch: str) -> None:
    model = small(cell_arch=arch, num_flows=1).train()
    x = images(model)
    (-terms(model(x, noise(model)), x).elbo.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert sum(float(p.grad.abs().sum()) > 0 for p in model.parameters() if p.grad is not None) > 0.9 * len(
        list(model.parameters())
    )


def test_one_group_alone() -> None:
    model = small(num_scales=1, groups_per_scale=(1,), channels_enc=6, channels_dec=10).train()
    x = images(model)
    (-terms(model(x), x).elbo.mean()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.sample(2).shape == (2, 3, 16, 16)
    assert "initial_state" not in model.state_dict()


@pytest.mark.parametrize("num_flows", [0, 1])
def test_importance_bound_is_above_the_elbo(num_flows: int) -> None:
    model = small(num_flows=num_flows).eval()
    x = images(model)
    with torch.no_grad():
        output = model.from_features(model.bottom_up(x).repeat(64), noise(model, 4 * 64))
        weights = log_weight(output, x.repeat_interleave(64, 0)).view(4, 64)
        bounds = [importance_bound(weights.view(-1, k)).mean() for k in (1, 8, 64)]  # of the same draws
    assert bounds[0] < bounds[1] < bounds[2]
    if num_flows == 0:  # the ELBO itself, up to the noise of the draws
        elbo = terms(output, x.repeat_interleave(64, 0)).elbo.mean()
        assert float(elbo) == pytest.approx(float(bounds[0]), abs=2.0)
        assert elbo < bounds[2]


def test_features_serve_several_draws() -> None:
    model = small().eval()
    x, eps = images(model), noise(model, 8)
    features = model.bottom_up(x)
    together = model.from_features(features.repeat(2), eps)
    first = model(x, [e[0::2] for e in eps])
    torch.testing.assert_close(terms(together, x.repeat_interleave(2, 0)).elbo[0::2], terms(first, x).elbo)


def test_seeds_and_given_noise_decide_everything() -> None:
    model = small().eval()
    x = images(model)
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append(model(x).groups[-1].z)
    assert torch.equal(*drawn)
    eps = noise(model)
    assert torch.equal(model(x, eps).groups[-1].z, model(x, eps).groups[-1].z)
    pictures = [
        model.sample(2, 0.8, pixels="sample", generator=torch.Generator().manual_seed(4), pixel_temperature=0.5)
        for _ in range(2)
    ]
    assert torch.equal(*pictures)
    given = [e[:2] for e in eps]
    assert torch.equal(model.sample(2, 0.8, given), model.sample(2, [0.8, 0.8, 0.8], given))
    assert not torch.equal(model.sample(2, 0.8, given), model.sample(2, [0.1, 0.8, 0.8], given))


def test_encoding_is_the_forward_pass_without_noise() -> None:
    model = small(num_flows=1).eval()
    x = images(model)
    still = model(x, [torch.zeros_like(e) for e in noise(model)])
    codes = model.encode(x)
    for z, group in zip(codes, still.groups, strict=True):
        torch.testing.assert_close(z, group.z)
        assert not torch.allclose(z, group.posterior.mean)  # the flow moved it
    torch.testing.assert_close(model.decode(codes).mean, still.likelihood.mean)
    torch.testing.assert_close(model.reconstruct(x), still.likelihood.mean)


def test_decisions_group_by_group() -> None:
    model = small().eval()
    x, eps = images(model), noise(model)
    codes = model.encode(x)
    output = model.top_down([Fixed(codes[0]), PosteriorSample(eps[1]), PriorSample(0.0)], model.bottom_up(x))
    assert torch.equal(output.groups[0].z, codes[0])
    torch.testing.assert_close(
        output.groups[1].z, output.groups[1].posterior.mean + output.groups[1].posterior.std * eps[1]
    )
    assert torch.equal(output.groups[2].z, output.groups[2].prior.mean)
    blind = model.top_down([PriorSample()] * 3, num=2)
    assert all(torch.equal(g.kl(), torch.zeros_like(g.z)) for g in blind.groups)
    torch.testing.assert_close(blind.groups[0].prior.std, torch.full_like(blind.groups[0].z, 1.01))


def test_residual_posterior_is_relative_to_the_prior() -> None:
    model = small().eval()
    with torch.no_grad():
        for conv in model.posterior_convs:
            conv.log_weight_norm.fill_(-30.0)
            conv.bias.zero_()
    x = images(model)
    kl = terms(model(x, noise(model)), x).kl
    torch.testing.assert_close(kl, torch.zeros_like(kl), rtol=0, atol=1e-3)
    absolute = NVAE(NVAEConfig(**SMALL, residual_posterior=False), Images()).eval()
    absolute.load_state_dict(model.state_dict())
    assert (terms(absolute(x, noise(model)), x).kl[:, 1:] > 0.1).all()


def test_channels_last_and_autocast() -> None:
    model = small().train()
    x, eps = images(model), noise(model)
    expected = terms(model(x, eps), x).elbo
    last = small().to(memory_format=torch.channels_last).train()
    torch.testing.assert_close(
        terms(last(x.to(memory_format=torch.channels_last), eps), x).elbo, expected, rtol=1e-5, atol=0
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = small().train()(x, eps)
        elbo = terms(low, x).elbo
    assert elbo.dtype == low.groups[0].posterior.std.dtype == torch.float32
    torch.testing.assert_close(elbo, expected, rtol=2e-2, atol=0)
    elbo.mean().backward()


def test_weights_survive_saving_and_loading(tmp_path: Any) -> None:
    model = small(cell_arch="res_elu", num_flows=1).train()
    x, eps = images(model), noise(model)
    model(x, eps)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    config = NVAEConfig(**json.loads(json.dumps(asdict(model.config))))
    assert config == model.config
    again = NVAE(config, Images())
    again.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(again.eval()(x, eps).groups[-1].z, model.eval()(x, eps).groups[-1].z)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_scales": 0}, "num_scales is 0"),
        ({"groups_per_scale": (2,)}, r"groups_per_scale \(2,\) does not fit num_scales 2"),
        ({"postprocess_blocks": 2}, "preprocess_blocks is 1 but postprocess_blocks is 2"),
        ({"cell_arch": "res_mbconv9"}, "cell_arch is 'res_mbconv9'; choose one of res_mbconv"),
        ({"likelihood": "poisson"}, "likelihood is 'poisson'"),
        ({"num_flows": -1}, "num_flows is -1"),
        ({"num_mixtures": 0}, "num_mixtures is 0"),
    ],
)
def test_contradictory_configurations_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NVAEConfig(**{**SMALL, **change})


def test_images_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3 x 16 pixels are smaller than this model's stride 4 .* sides of 4, 8, 12"):
        small(Images(3, 3, 16))
    with pytest.raises(ValueError, match=r"padded_size \(18, 18\)"):
        small(padded_size=(18, 18))
    with pytest.raises(ValueError, match="do not divide into 8 groups"):
        small(cell_arch="mbconv_den", channels_enc=5)
    with pytest.raises(ValueError, match="unknown cell operation 'res_gelu'"):
        small(encoder_ops=("res_gelu",))
    model = small()
    with pytest.raises(ValueError, match=r"\(2, 3, 16, 12\) do not fit the model; give \[B, 3, 16, 16\]"):
        model(torch.zeros(2, 3, 16, 12))


def test_requests_that_make_no_sense_are_refused() -> None:
    model = small()
    for temperature in (0.0, -1.0, float("nan"), [0.5, 0.0, 0.5]):
        with pytest.raises(ValueError, match="temperature is"):
            model.sample(1, temperature)
    with pytest.raises(ValueError, match="2 temperatures for 3 groups"):
        model.sample(1, [1.0, 1.0])
    with pytest.raises(ValueError, match="noise has 1 tensors for 3 groups"):
        model.sample(1, noise=[torch.zeros(1, 3, 4, 4)])
    with pytest.raises(ValueError, match="pixels is 'median'"):
        model.sample(1, pixels="median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="1 tensors for 3 groups"):
        model.decode([torch.zeros(1, 3, 4, 4)])
