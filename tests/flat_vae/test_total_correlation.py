from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from flat_vae import FlatVAE, ObjectiveConfig, build_objective
from flat_vae.total_correlation import decompose, log_stratified_weights
from metrics import elbo
from metrics.elbo import Group
from metrics.normal import Normal


def random_group(batch: int, dims: int, seed: int = 0) -> Group:
    source = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, dims, generator=source, dtype=torch.float64)
    posterior = Normal(mean, torch.rand(batch, dims, generator=source, dtype=torch.float64) * 0.5 + 0.1)
    z = posterior.rsample(torch.randn(batch, dims, generator=source, dtype=torch.float64))
    return Group(z, posterior, Normal(torch.zeros_like(z), torch.ones_like(z)))


def density(z: float, mean: float, std: float) -> float:
    return math.exp(-0.5 * ((z - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))


def naive(group: Group, num_images: int) -> np.ndarray:
    """Rows (mutual information, total correlation, dim-wise KL), by loops over probabilities as the paper writes them."""
    z, mean, std = (t.numpy() for t in (group.z, group.posterior.mean, group.posterior.std))
    batch, dims = z.shape
    others = batch - 1
    rows = []
    for i in range(batch):
        weights = [1.0 / others] * batch
        weights[(i + 1) % batch] = (num_images - others) / (num_images * others)
        weights[i] = 1.0 / num_images
        per_dim = [[density(z[i, d], mean[j, d], std[j, d]) for d in range(dims)] for j in range(batch)]
        joint = sum(w * math.prod(p) for w, p in zip(weights, per_dim, strict=True))
        marginals = math.prod(sum(w * p[d] for w, p in zip(weights, per_dim, strict=True)) for d in range(dims))
        given_x = math.prod(per_dim[i])
        prior = math.prod(density(z[i, d], 0.0, 1.0) for d in range(dims))
        rows.append([math.log(given_x / joint), math.log(joint / marginals), math.log(marginals / prior)])
    return np.array(rows)


@pytest.mark.parametrize(("batch", "num_images"), [(2, 2), (2, 50), (5, 5), (7, 1000)])
def test_against_the_naive_twin(batch: int, num_images: int) -> None:
    group = random_group(batch, 3)
    split = decompose(group, num_images)
    ours = torch.stack([split.mutual_information, split.total_correlation, split.dim_kl], dim=1)
    np.testing.assert_allclose(ours.numpy(), naive(group, num_images), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("batch", "num_images"), [(2, 2), (2, 9), (64, 663_552)])
def test_weights_of_a_row_add_up_to_one(batch: int, num_images: int) -> None:
    weights = log_stratified_weights(batch, num_images).exp()
    torch.testing.assert_close(weights.sum(1), torch.ones(batch, dtype=torch.float64))
    torch.testing.assert_close(weights.diagonal(), torch.full((batch,), 1.0 / num_images, dtype=torch.float64))


def test_the_estimate_of_q_is_unbiased() -> None:
    """Over all batches of 3 of 5 images that hold the first one, its weighted mean density is the exact mixture's."""
    num_images, batch = 5, 3
    densities = np.random.default_rng(0).random(num_images)
    weights = log_stratified_weights(batch, num_images).exp()[0].numpy()
    estimates = [weights @ densities[[0, *rest]] for rest in itertools.permutations(range(1, num_images), batch - 1)]
    assert np.mean(estimates) == pytest.approx(densities.mean(), rel=1e-12)


def test_the_three_terms_add_up_to_the_kl() -> None:
    group = random_group(6, 4)
    split = decompose(group, 100)
    total = split.mutual_information + split.total_correlation + split.dim_kl
    torch.testing.assert_close(total, (group.log_q() - group.log_p()).sum(1))
    # and its mean over many draws is the closed form; 20,000 draws: standard error of about .01 nats
    posterior = Normal(group.posterior.mean[:1].expand(20_000, 4), group.posterior.std[:1].expand(20_000, 4))
    z = posterior.rsample(torch.randn(20_000, 4, dtype=torch.float64))
    many = Group(z, posterior, Normal(torch.zeros_like(z), torch.ones_like(z)))
    sampled = (many.log_q() - many.log_p()).sum(1).mean()
    torch.testing.assert_close(sampled, group.kl().sum(1)[0], rtol=0.0, atol=0.06)


def test_independent_latents_have_no_total_correlation() -> None:
    """One posterior for all images: q(z) is a product, I = TC = 0 exactly."""
    group = random_group(1, 3)
    same = Normal(group.posterior.mean.expand(8, 3), group.posterior.std.expand(8, 3))
    z = same.rsample(torch.randn(8, 3, dtype=torch.float64))
    split = decompose(Group(z, same, Normal(torch.zeros_like(z), torch.ones_like(z))), 40)
    zeros = torch.zeros(8, dtype=torch.float64)
    torch.testing.assert_close(split.mutual_information, zeros, rtol=0, atol=1e-12)
    torch.testing.assert_close(split.total_correlation, zeros, rtol=0, atol=1e-12)


def test_with_all_weights_one_it_is_the_vae_with_a_sampled_rate(model: FlatVAE, x: Tensor) -> None:
    config = ObjectiveConfig(objective="tc", alpha=1.0, beta=1.0, gamma=1.0)
    objective = build_objective(config, model, 1, 100)
    noise = [torch.randn(6, 4)]
    output = model(x, noise)
    sampled_rate = (output.groups[0].log_q() - output.groups[0].log_p()).sum(1)
    expected = (elbo.terms(output, x).distortion + sampled_rate).mean()
    torch.testing.assert_close(objective(model, x, 0, noise).total, expected, rtol=1e-5, atol=1e-4)


def test_each_weight_weighs_its_term(model: FlatVAE, x: Tensor) -> None:
    noise = [torch.randn(6, 4)]
    output = model(x, noise)
    split = decompose(output.groups[0], 100)
    objective = build_objective(ObjectiveConfig(objective="tc", alpha=2.0, beta=3.0, gamma=5.0), model, 1, 100)
    weighted = 2.0 * split.mutual_information + 3.0 * split.total_correlation + 5.0 * split.dim_kl
    expected = (elbo.terms(output, x).distortion + weighted).mean()
    torch.testing.assert_close(objective(model, x, 0, noise).total, expected)


@pytest.mark.parametrize(("batch", "num_images"), [(1, 10), (6, 5)])
def test_a_batch_without_pairs_or_too_large_is_named(batch: int, num_images: int) -> None:
    with pytest.raises(ValueError, match=rf"{batch}\b.*{num_images}\b.*--batch-size"):
        log_stratified_weights(batch, num_images)
