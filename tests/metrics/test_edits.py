"""Latents: what stays, what moves, and that nothing else does."""

from __future__ import annotations

import re

import pytest
import torch

from flat_vae import FlatVAE, FlatVAEConfig
from metrics import edits
from metrics.model import VAE
from nvae import NVAE
from tests.nvae.small import Images, images, small


def flat() -> FlatVAE:
    torch.manual_seed(3)
    return FlatVAE(FlatVAEConfig(latent_dim=5, conv_channels=4, likelihood="normal"), Images()).eval()


@pytest.fixture(scope="module", params=[0, 1], ids=["gaussian", "flows"])
def model(request: pytest.FixtureRequest) -> NVAE:
    return small(num_flows=request.param).eval()


@pytest.fixture(scope="module", params=["gaussian", "flows", "flat"])
def any_model(request: pytest.FixtureRequest) -> VAE:
    return flat() if request.param == "flat" else small(num_flows=int(request.param == "flows")).eval()


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_residual_parameters(any_model: VAE) -> None:
    x = images(any_model)
    output = [edits.residual_parameters(group) for group in any_model.groups_at_means(x)]
    codes = edits.coordinates(any_model, x)
    assert [b.mean.shape for b in output] == [z.shape for z in any_model.encode(x)]
    assert all((b.std > 0).all() for b in output)
    if not getattr(any_model.config, "num_flows", 0):
        for belief, code in zip(output, codes, strict=True):
            same(belief.mean, code)
    scale = 1.0 if isinstance(any_model, FlatVAE) else 1.01  # std of the top prior
    same(codes[0], any_model.encode(x)[0] / scale)


def test_decode_top(model: NVAE) -> None:
    x = images(model)
    zs = model.encode(x)
    same(edits.decode_top(model, zs, 3), model.reconstruct(x))
    mean = edits.decode_top(model, zs, 1)
    assert torch.equal(mean, edits.decode_top(model, zs, 1))
    seeds = [torch.Generator().manual_seed(s) for s in (1, 1, 2)]
    drawn = [edits.decode_top(model, zs, 1, temperature=0.7, generator=g) for g in seeds]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], mean)
    with pytest.raises(ValueError, match="num_fixed is 4; give a number from 1 to 3"):
        edits.decode_top(model, zs, 4)
    with pytest.raises(ValueError, match="temperature is 0"):
        edits.decode_top(model, zs, 1, temperature=0.0)


@pytest.mark.parametrize("kind", ["spherical", "linear"])
def test_interpolation_ends_at_the_reconstructions(any_model: VAE, kind: str) -> None:
    model = any_model
    a, b = images(model, 2, seed=1), images(model, 2, seed=2)
    path = edits.interpolate(model, a, b, 5, kind)  # type: ignore[arg-type]
    assert path.shape == (5, *a.shape)
    same(path[0], model.reconstruct(a))
    same(path[-1], model.reconstruct(b))
    same(path[2], edits.interpolate(model, b, a, 5, kind)[2])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kind is 'cubic'"):
        edits.interpolate(model, a, b, 5, "cubic")  # type: ignore[arg-type]


def test_spherical_keeps_the_norm_and_the_angle() -> None:
    a, b = torch.nn.functional.normalize(torch.randn(2, 3, 8), dim=2)
    third = edits.spherical(a, b, 1 / 3)
    same(third.norm(dim=1), torch.ones(3))
    same(torch.acos((a * third).sum(1)), torch.acos((a * b).sum(1)) / 3)
    same(edits.spherical(a, a, 0.3), a)


def test_traversal(model: NVAE) -> None:
    x = images(model)
    codes = edits.coordinates(model, x)
    axis = edits.latent_axis(model, 1, 2, 0, 1)
    same(axis.value(codes[1]), codes[1][:, 2, 0, 1])
    moved = axis.move(codes[1], 1.5)
    same(moved[:, 2, 0, 1], torch.full((4,), 1.5))
    assert ((moved - codes[1]).abs() > 1e-6).sum() == 4
    pictures = edits.traverse(model, x, axis)
    assert pictures.shape == (5, *x.shape)
    here = [edits.traverse(model, x[i : i + 1], axis, [float(codes[1][i, 2, 0, 1])])[0] for i in range(4)]
    same(torch.cat(here), model.reconstruct(x))  # moving to where it is changes nothing
    for below in ("latents", "prior"):
        other = edits.traverse(model, x, axis, below=below)
        assert not torch.allclose(other, pictures)
    with pytest.raises(ValueError, match="below is 'all'"):
        edits.traverse(model, x, axis, below="all")  # type: ignore[arg-type]


def test_channels_and_principal_axes(model: NVAE) -> None:
    x = images(model, 6)
    codes = edits.coordinates(model, x)
    channel = edits.latent_axis(model, 0, 1)
    same(channel.value(codes[0]), codes[0][:, 1].mean((1, 2)))
    moved = channel.move(codes[0], -2.0)
    same(moved[:, 1].mean((1, 2)), torch.full((6,), -2.0))
    same(moved[:, 0], codes[0][:, 0])
    same(moved[:, 1] - moved[:, 1].mean((1, 2), keepdim=True), codes[0][:, 1] - codes[0][:, 1].mean((1, 2), True))
    first, second = edits.principal_axes(model, x, group=0, num=2)
    values = first.value(codes[0])
    assert float(values.mean()) == pytest.approx(0.0, abs=1e-4)
    assert float(values.std()) == pytest.approx(1.0, rel=1e-4)
    assert float(first.direction.norm()) > float(second.direction.norm())
    assert float((first.direction * second.direction).sum()) == pytest.approx(0.0, abs=1e-4)
    with pytest.raises(ValueError, match="6 principal axes of 6 images"):
        edits.principal_axes(model, x, 0, 6)


@pytest.mark.parametrize("below", ["coordinates", "latents"])
def test_swapping(model: NVAE, below: str) -> None:
    a, b = images(model, 2, seed=1), images(model, 2, seed=2)
    first, second = edits.swap(model, a, b, [0, 1, 2], below)  # type: ignore[arg-type]
    same(first, model.reconstruct(b))
    same(second, model.reconstruct(a))
    first, second = edits.swap(model, a, b, [], below)  # type: ignore[arg-type]
    same(first, model.reconstruct(a))
    first, second = edits.swap(model, a, b, [1], below)  # type: ignore[arg-type]
    other, _ = edits.swap(model, b, a, [0, 2], below)  # type: ignore[arg-type]
    same(first, other)
    with pytest.raises(ValueError, match="group 3 does not exist; the model has groups 0"):
        edits.swap(model, a, b, [3])


def test_latents_out_of_range_are_named(model: NVAE) -> None:
    with pytest.raises(ValueError, match="group -1 does not exist"):
        edits.latent_axis(model, -1, 0)
    for index in [(3, 0, 0), (0, 0, 0, 0), ()]:
        with pytest.raises(ValueError, match=rf"{re.escape(str(index))}.*\(3, 4, 4\)"):
            edits.latent_axis(model, 0, *index)


@torch.no_grad()
def test_a_flat_model_is_edited_as_a_hierarchy_is() -> None:
    model = flat()
    x = images(model, 6)
    mean = model.encode(x)[0]
    axis = edits.latent_axis(model, 0, 3)
    moved = mean.clone()
    moved[:, 3] = -1.5
    same(edits.traverse(model, x, axis, [-1.5])[0], model.decode([moved]).mean)
    first, second = edits.principal_axes(model, x, 0, 2)
    assert first.direction.shape == (5,)
    assert float(first.value(mean).std()) == pytest.approx(1.0, rel=1e-4)
    assert float((first.direction * second.direction).sum()) == pytest.approx(0.0, abs=1e-4)
    same(edits.decode_top(model, [mean], 1), model.reconstruct(x))
    exchanged = edits.swap(model, x[:2], x[2:4], [0])
    same(torch.cat(exchanged), model.reconstruct(torch.cat([x[2:4], x[:2]])))
