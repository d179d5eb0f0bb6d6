"""Properties of every model of every family: shapes, signs, gradients, bounds, and agreement of all passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import flat_vae
import nvae
from datasets import ImageSpec
from metrics import edits, elbo
from metrics.decisions import Fixed, PriorSample
from metrics.model import VAE
from tests.contract import ladder

BINARY = ImageSpec(channels=1, height=16, width=16, num_bits=1)
COLOUR = ImageSpec(channels=3, height=11, width=14, num_bits=5)  # odd, not square, not a multiple of any stride
NVAE_CONFIG = nvae.NVAEConfig(
    num_scales=2,
    groups_per_scale=(2, 1),
    latent_channels=2,
    channels_enc=4,
    channels_dec=4,
    preprocess_cells=1,
    postprocess_cells=1,
    cells_per_group_enc=1,
    cells_per_group_dec=1,
    num_mixtures=2,
    cell_arch="res_bnswish",
)
FLAT_CONFIG = flat_vae.FlatVAEConfig(network="conv", conv_channels=4, latent_dim=3, num_mixtures=2)
LADDER_CONFIG = ladder.LadderConfig(num_groups=3)


class Case(NamedTuple):
    """A family and images for it."""

    model: Callable[[ImageSpec], VAE]
    objective: Callable[[Any], Any]
    spec: ImageSpec


def _cases() -> dict[str, Case]:
    families: dict[str, tuple[Callable[[ImageSpec], VAE], Callable[[Any], Any]]] = {
        "nvae": (
            lambda spec: nvae.NVAE(NVAE_CONFIG, spec),
            lambda model: nvae.NVAEObjective(nvae.ObjectiveConfig(), model, 100),
        ),
        "flat": (
            lambda spec: flat_vae.FlatVAE(FLAT_CONFIG, spec),
            lambda model: flat_vae.build_objective(flat_vae.ObjectiveConfig(), model, 100, 100),
        ),
        "ladder": (
            lambda spec: ladder.Ladder(LADDER_CONFIG, spec),
            lambda model: ladder.LadderObjective(ladder.ObjectiveConfig(), model),
        ),
    }
    specs = {"binary": BINARY, "colour": COLOUR}
    return {f"{f}-{s}": Case(*families[f], specs[s]) for f in families for s in specs}


CASES = _cases()


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def model(case: Case) -> VAE:
    """A model in evaluation mode after two training steps, so that posteriors and priors differ."""
    torch.manual_seed(3)
    model = case.model(case.spec).train()
    objective, optimizer = case.objective(model), torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(2):
        optimizer.zero_grad()
        objective(model, images(case.spec), step, None).total.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def images(spec: ImageSpec, num: int = 4) -> Tensor:
    top = 2**spec.num_bits - 1
    shape = (num, spec.channels, spec.height, spec.width)
    return torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(5)) / top


def noise(model: VAE, num: int = 4) -> list[Tensor]:
    source = torch.Generator().manual_seed(6)
    return [torch.randn(num, *shape, generator=source) for shape in model.group_shapes]


def test_beliefs_have_the_shapes_that_the_model_names(model: VAE, case: Case) -> None:
    x = images(case.spec)
    output = model(x, noise(model))
    for group, shape in zip(output.groups, model.group_shapes, strict=True):
        for tensor in (group.z, group.posterior.mean, group.posterior.std, group.prior.mean, group.prior.std):
            assert tensor.shape == (4, *shape)
        assert (group.posterior.std > 0).all()
        assert (group.prior.std > 0).all()
    parts = elbo.terms(output, x)
    assert parts.log_likelihood.shape == (4,)
    assert parts.kl.shape == (4, len(model.group_shapes))
    assert output.likelihood.mean.shape == x.shape
    assert ((output.likelihood.mean >= 0) & (output.likelihood.mean <= 1)).all()


def test_rate_and_distortion_of_discrete_pixels_are_not_negative(model: VAE, case: Case) -> None:
    parts = elbo.terms(model(images(case.spec)), images(case.spec))
    assert (parts.kl >= 0).all()
    assert (parts.rate > 0).all()
    assert (parts.distortion >= 0).all()  # probabilities, not densities
    assert torch.equal(parts.elbo, -(parts.rate + parts.distortion))


def test_without_an_image_every_posterior_is_its_prior(model: VAE) -> None:
    output = model.top_down([PriorSample(noise=n) for n in noise(model)], num=4)
    assert all(float(group.kl().abs().max()) == 0.0 for group in output.groups)


def test_each_parameter_gets_a_gradient(case: Case) -> None:
    torch.manual_seed(3)
    model = case.model(case.spec).train()
    objective = case.objective(model)
    loss = objective(model, images(case.spec), 50, noise(model))
    loss.total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert {"elbo", "rate", "distortion"} <= loss.terms.keys()
    assert not any(term.requires_grad for term in (*loss.terms.values(), loss.kl_per_group))
    assert loss.kl_per_group.shape == (len(model.group_shapes),)
    assert [tuple(shape) for shape in objective.noise_shapes][: len(model.group_shapes)] == [
        tuple(shape) for shape in model.group_shapes
    ]


def test_the_importance_bound_is_above_the_elbo(model: VAE, case: Case) -> None:
    """Its log-weights average to the ELBO, and 64 draws together are a tighter bound."""
    x, draws = images(case.spec), 64
    torch.manual_seed(0)
    output = model.from_features(model.bottom_up(x).repeat(draws))
    repeated = x.repeat_interleave(draws, dim=0)
    weights = elbo.log_weight(output, repeated).unflatten(0, (len(x), draws))
    closed_form = elbo.terms(output, repeated).elbo.unflatten(0, (len(x), draws))
    bound = elbo.importance_bound(weights)
    assert (bound > closed_form.mean(1)).all()
    spread = (weights - closed_form).std(1) / draws**0.5
    assert ((weights.mean(1) - closed_form.mean(1)).abs() < 5 * spread + 1e-3).all()


def test_weights_that_were_saved_give_the_same_beliefs(model: VAE, case: Case) -> None:
    torch.manual_seed(99)
    other = case.model(case.spec).eval()
    other.load_state_dict(model.state_dict())
    x, eps = images(case.spec), noise(model)
    one, two = model(x, eps), other(x, eps)
    assert torch.equal(one.likelihood.log_prob(x), two.likelihood.log_prob(x))
    assert all(torch.equal(a.z, b.z) for a, b in zip(one.groups, two.groups, strict=True))


def test_encode_decode_and_reconstruct_agree(model: VAE, case: Case) -> None:
    x = images(case.spec)
    zs = model.encode(x)
    torch.testing.assert_close(model.decode(zs).mean, model.reconstruct(x))
    torch.testing.assert_close(zs, [group.z for group in model.groups_at_means(x)])
    for alone, together in zip(model.encode(x[:1]), zs, strict=True):  # no image sees another
        torch.testing.assert_close(alone, together[:1], rtol=1e-4, atol=1e-5)


def test_samples_are_decoded_draws_from_the_prior(model: VAE, case: Case) -> None:
    eps = noise(model)
    drawn = model.sample(4, noise=eps)
    output = model.top_down([PriorSample(noise=n) for n in eps], num=4)
    torch.testing.assert_close(drawn, output.likelihood.mean)
    fixed = model.top_down([Fixed(group.z) for group in output.groups], num=4)
    torch.testing.assert_close(fixed.likelihood.mean, drawn)
    top = 2**case.spec.num_bits - 1
    pixels = [model.sample(2, 0.7, pixels="sample", generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*pixels)
    torch.testing.assert_close(pixels[0] * top, (pixels[0] * top).round())  # on the grid of grey levels


def test_edits_end_where_they_should(model: VAE, case: Case) -> None:
    a, b = images(case.spec)[:2], images(case.spec)[2:]
    path = edits.interpolate(model, a, b, num=3)
    torch.testing.assert_close(path[0], model.reconstruct(a), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(path[-1], model.reconstruct(b), rtol=1e-3, atol=1e-4)
    swapped = edits.swap(model, a, b, range(len(model.group_shapes)))
    torch.testing.assert_close(swapped[0], model.reconstruct(b), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(swapped[1], model.reconstruct(a), rtol=1e-3, atol=1e-4)


def test_what_does_not_fit_is_refused(model: VAE, case: Case) -> None:
    x, eps = images(case.spec), noise(model)
    for refused in (
        lambda: model(x[:, :, :-1]),
        lambda: model((x * 255).to(torch.uint8)),
        lambda: model(x, eps[:-1]),
        lambda: model.decode(model.encode(x)[:-1]),
        lambda: model.top_down([], num=2),
        lambda: model.top_down([PriorSample() for _ in model.group_shapes]),
        lambda: model.sample(0),
    ):
        with pytest.raises(ValueError, match=r"; (give|divide)"):
            refused()
