from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig, ObjectiveConfig, build_objective
from flat_vae.autoencoders import DenoisingAutoencoder
from flat_vae.base import ramp
from flat_vae.dip import batch_covariance
from flat_vae.grouped import GroupedVAE
from flat_vae.objectives import OBJECTIVES
from metrics import elbo
from metrics.normal import Normal
from tests.flat_vae.cases import BINARY


def noise_for(objective: object, num: int, seed: int = 1) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(num, *shape, generator=source) for shape in objective.noise_shapes]  # type: ignore[attr-defined]


def gradients(model: FlatVAE, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name: str, model: FlatVAE, x: Tensor) -> None:
    """Finite, repeatable by its noise, elbo = -(rate + distortion), detached terms, a gradient for each weight."""
    objective = build_objective(ObjectiveConfig(objective=name), model, 100, 1000)  # type: ignore[arg-type]
    assert objective.noise_shapes[0] == (4,)
    noise = noise_for(objective, len(x))
    loss = objective(model, x, 7, noise)
    assert torch.equal(loss.total, objective(model, x, 7, noise).total)
    assert loss.total.isfinite()
    torch.testing.assert_close(loss.terms["elbo"], -(loss.terms["rate"] + loss.terms["distortion"]))
    assert loss.kl_per_group.shape == (1,)
    assert not any(term.requires_grad or term.dim() for term in loss.terms.values())
    loss.total.backward()
    assert all(p.grad is not None for p in model.parameters())  # DDP waits for each
    still = [n for n, p in model.named_parameters() if not p.grad.any()]  # type: ignore[union-attr]
    assert still == (["log_variance.weight", "log_variance.bias"] if name in ("ae", "denoising") else [])
    assert objective(model, x, 7).total.isfinite()
    objective.after_step(False)
    objective.load_state_dict(copy.deepcopy(objective.state_dict()))


def test_too_little_noise_is_named(model: FlatVAE, x: Tensor) -> None:
    objective = build_objective(ObjectiveConfig(objective="factor"), model, 1, 10)
    with pytest.raises(ValueError, match="1 noise tensors; give 2"):
        objective(model, x, 0, [torch.randn(6, 4)])


def test_beta_weights_the_rate_and_rises(model: FlatVAE, x: Tensor) -> None:
    config = ObjectiveConfig(objective="beta", beta=3.0, beta_warmup=0.5)
    objective = build_objective(config, model, 100, 1000)
    noise = noise_for(objective, len(x))
    parts = elbo.terms(model(x, noise), x)
    for step, beta in ((0, 0.0), (25, 1.5), (50, 3.0), (99, 3.0)):
        expected = (parts.distortion + beta * parts.rate).mean()
        torch.testing.assert_close(objective(model, x, step, noise).total, expected)


def test_beta_norm_reaches_the_loss(model: FlatVAE, x: Tensor) -> None:
    # 64 pixels, 4 latents: beta = 0.25 * 64 / 4 = 4
    by_norm = build_objective(ObjectiveConfig(objective="beta", beta_norm=0.25), model, 1, 10)
    plain = build_objective(ObjectiveConfig(objective="beta", beta=4.0), model, 1, 10)
    noise = noise_for(plain, len(x))
    assert torch.equal(by_norm(model, x, 0, noise).total, plain(model, x, 0, noise).total)


def test_capacity_holds_the_rate_from_both_sides(model: FlatVAE, x: Tensor) -> None:
    config = ObjectiveConfig(objective="capacity", capacity=8.0, gamma=50.0, capacity_warmup=0.5)
    objective = build_objective(config, model, 100, 1000)
    noise = noise_for(objective, len(x))
    parts = elbo.terms(model(x, noise), x)
    distortion, rate = parts.distortion.mean(), parts.rate.mean()
    low, high = objective(model, x, 0, noise).total, objective(model, x, 100, noise).total
    torch.testing.assert_close(low, distortion + 50.0 * rate)  # C = 0
    torch.testing.assert_close(high, distortion + 50.0 * (8.0 - rate))  # the untrained rate is below C = 8
    of_rate, of_distortion = gradients(model, rate)["mean.weight"], gradients(model, distortion)["mean.weight"]
    torch.testing.assert_close(gradients(model, high)["mean.weight"], of_distortion - 50.0 * of_rate)


def test_ramp() -> None:
    assert [ramp(step, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert ramp(0, 0.0) == 1.0


def test_the_autoencoder_ignores_its_noise(model: FlatVAE, x: Tensor) -> None:
    objective = build_objective(ObjectiveConfig(objective="ae"), model, 1, 10)
    loss = objective(model, x, 0, noise_for(objective, 6))
    expected = -model.decode(model.encode(x)).log_prob(x).mean()
    torch.testing.assert_close(loss.total, expected)


def test_denoising_encodes_the_corrupted_image_and_reconstructs_the_clean_one(model: FlatVAE, x: Tensor) -> None:
    objective = DenoisingAutoencoder(model, "zero", 0.3)
    noise = noise_for(objective, 6)
    seen = objective.corrupt(x, noise[1])
    assert torch.equal(seen[seen != x], torch.zeros_like(seen[seen != x]))
    torch.testing.assert_close(
        objective(model, x, 0, noise).total, -model.decode(model.encode(seen)).log_prob(x).mean()
    )


def test_corruptions_have_their_rate_and_std() -> None:
    model = FlatVAE(FlatVAEConfig(conv_channels=4), BINARY)
    ones = torch.ones(2000, 1, 8, 8)
    zero, gaussian = DenoisingAutoencoder(model, "zero", 0.3), DenoisingAutoencoder(model, "gaussian", 0.3)
    noise = noise_for(zero, 2000)[1]  # 128,000 pixels: standard errors .0013 and .0006
    assert float(1.0 - zero.corrupt(ones, noise).mean()) == pytest.approx(0.3, abs=0.006)
    assert float((gaussian.corrupt(ones, noise) - ones).std()) == pytest.approx(0.3, abs=0.004)
    with pytest.raises(ValueError, match=r"give a number in \[0, 1\]"):
        DenoisingAutoencoder(model, "zero", 1.5)


def test_batch_covariance_against_numpys_definition() -> None:
    posterior = Normal(torch.randn(50, 3, dtype=torch.float64), torch.rand(50, 3, dtype=torch.float64) + 0.1)
    of_means = torch.cov(posterior.mean.T, correction=0)
    torch.testing.assert_close(batch_covariance(posterior, "i"), of_means)
    # law of total covariance: a draw's covariance is that of the means plus the mean variance
    expected = of_means + torch.diag((posterior.std**2).mean(0))
    torch.testing.assert_close(batch_covariance(posterior, "ii"), expected)


@pytest.mark.parametrize("kind", ["i", "ii"])
def test_dip_penalises_the_distance_from_the_identity(kind: str, model: FlatVAE, x: Tensor) -> None:
    config = ObjectiveConfig(objective="dip", dip=kind, lambda_od=2.0, lambda_d=5.0)  # type: ignore[arg-type]
    objective = build_objective(config, model, 1, 10)
    noise = noise_for(objective, 6)
    output = model(x, noise)
    parts, covariance = elbo.terms(output, x), batch_covariance(output.groups[0].posterior, kind)
    penalty = 0.0
    for i in range(4):
        for j in range(4):
            entry = float(covariance[i, j].detach())
            penalty += 5.0 * (entry - 1.0) ** 2 if i == j else 2.0 * entry**2
    expected = float((parts.distortion + parts.rate).mean().detach()) + penalty
    assert float(objective(model, x, 0, noise).total.detach()) == pytest.approx(expected, rel=1e-6)


def test_grouped_terms_reach_the_encoder_only_through_their_own_group(model: FlatVAE, x: Tensor) -> None:
    objective = GroupedVAE(model, (1, 3), beta=0.0)
    noise = noise_for(objective, 6)
    z = model(x, noise).groups[0].z
    views = objective.view(z).chunk(2)
    assert torch.equal(views[0], torch.cat([z[:, :1], torch.zeros(6, 3)], dim=1))
    assert torch.equal(views[1], z)
    for view, own in zip(views, ([0], [1, 2, 3]), strict=True):
        found = gradients(model, -model.decode([view]).log_prob(x).mean())
        for head in ("mean", "log_variance"):
            reached = found[f"{head}.weight"].abs().sum(1) > 0
            assert reached.nonzero().flatten().tolist() == own
        assert all(g.any() for n, g in found.items() if n.startswith("decoder") and not n.startswith("decoder.0"))


def test_grouped_is_the_sum_of_its_terms(model: FlatVAE, x: Tensor) -> None:
    objective = GroupedVAE(model, (1, 3), beta=0.7)
    noise = noise_for(objective, 6)
    output = model(x, noise)
    z, parts = output.groups[0].z, elbo.terms(output, x)
    first = -model.decode([z * torch.tensor([1.0, 0.0, 0.0, 0.0])]).log_prob(x).mean()
    loss = objective(model, x, 0, noise)
    torch.testing.assert_close(loss.total, first + parts.distortion.mean() + 0.7 * parts.rate.mean())
    torch.testing.assert_close(loss.terms["distortion"], parts.distortion.mean().detach())
    torch.testing.assert_close(loss.terms["distortion_groups_to_1"], first.detach())


def test_one_group_is_the_beta_vae(model: FlatVAE, x: Tensor) -> None:
    grouped = GroupedVAE(model, (4,), beta=3.0)
    plain = build_objective(ObjectiveConfig(objective="beta", beta=3.0), model, 1, 10)
    noise = noise_for(plain, 6)
    ours, theirs = (gradients(model, o(model, x, 0, noise).total) for o in (grouped, plain))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name])


def test_groups_must_add_up(model: FlatVAE) -> None:
    with pytest.raises(ValueError, match=r"latent groups \(3, 3\) for 4 latents; give positive sizes that add up"):
        GroupedVAE(model, (3, 3), 1.0)
    assert GroupedVAE(model, None, 1.0).ends == [2, 4]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_under_autocast_the_loss_stays_float32(name: str, model: FlatVAE, x: Tensor) -> None:
    objective = build_objective(ObjectiveConfig(objective=name), model, 100, 1000)  # type: ignore[arg-type]
    noise = noise_for(objective, len(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(model, x, 7, noise)
    assert loss.total.dtype == torch.float32
    exact = objective(model, x, 7, noise).total
    torch.testing.assert_close(loss.total, exact, rtol=0.01, atol=0.0)  # bfloat16 has 8 bits
