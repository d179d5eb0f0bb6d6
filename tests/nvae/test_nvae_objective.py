"""Schedules, balancing, and what the loss is made of."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch

from metrics.elbo import terms
from nvae import NVAEObjective, ObjectiveConfig
from nvae.objective import kl_balance_alpha, kl_balance_coefficients, kl_coefficient, spectral_weight
from tests.nvae.small import images, noise, small


def test_kl_coefficient_rises_linearly() -> None:
    config = ObjectiveConfig(kl_anneal_portion=0.5, kl_const_portion=0.1, kl_const_coefficient=0.01)
    values = [kl_coefficient(step, 100, config) for step in (0, 10, 11, 35, 60, 99)]
    assert values == pytest.approx([0.01, 0.01, 0.02, 0.5, 1.0, 1.0])
    at_once = ObjectiveConfig(kl_anneal_portion=0.0, kl_const_portion=0.0)
    assert kl_coefficient(0, 100, at_once) == 1.0


def test_spectral_weight_anneals_in_logarithms() -> None:
    config = ObjectiveConfig(spectral_weight=0.01, spectral_weight_initial=1.0)
    assert [spectral_weight(c, config) for c in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.1, 0.01])
    assert spectral_weight(0.2, ObjectiveConfig(spectral_weight=0.3)) == 0.3


def test_alpha_by_hand() -> None:
    """Scales of 4, 2, 1 groups, highest resolution first: 1/1, 4/2, 16/4 over the smallest."""
    torch.testing.assert_close(kl_balance_alpha((4, 2, 1)), torch.tensor([1.0, 2, 2, 4, 4, 4, 4]))


def test_balancing_by_hand() -> None:
    factors = kl_balance_coefficients(torch.tensor([0.99, 2.99]), torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(factors, torch.tensor([0.8, 1.2]))  # 1.00 : 1.50 with mean 1


def test_loss_by_hand() -> None:
    model = small()
    x, eps = images(model), noise(model)
    config = ObjectiveConfig(spectral_weight=0.5, spectral_weight_initial=2.0)
    objective = NVAEObjective(config, model, total_steps=100)
    loss = objective(model, x, 15, eps)
    twin = small()
    plain = terms(twin(x, eps), x)
    coefficient = kl_coefficient(15, 100, config)
    factors = kl_balance_coefficients(plain.kl.abs().mean(0), kl_balance_alpha((2, 1)))
    weight = math.exp((1 - coefficient) * math.log(2.0) + coefficient * math.log(0.5))
    expected = plain.distortion.mean() + coefficient * (factors * plain.kl.mean(0)).sum()
    expected = expected + weight * (loss.terms["spectral"] + loss.terms["batch_norm"])
    torch.testing.assert_close(loss.total, expected)
    for name in ("elbo", "rate", "distortion"):
        torch.testing.assert_close(loss.terms[name], getattr(plain, name).mean().detach())
    torch.testing.assert_close(loss.kl_per_group, plain.kl.mean(0).detach())
    assert loss.terms["kl_coefficient"].item() == pytest.approx(coefficient)
    assert loss.terms["spectral_weight"].item() == pytest.approx(weight)
    assert all(not value.requires_grad and value.dim() == 0 for value in loss.terms.values())


def test_after_warm_up_and_in_evaluation_the_kl_is_not_balanced() -> None:
    model = small()
    x, eps = images(model), noise(model)
    objective = NVAEObjective(ObjectiveConfig(spectral_weight=0.0), model, total_steps=100)
    done = objective(model, x, 99, eps)
    torch.testing.assert_close(done.total.detach(), -done.terms["elbo"])
    assert "spectral" not in done.terms
    model.eval()
    objective = NVAEObjective(ObjectiveConfig(spectral_weight=0.1), model, total_steps=100)
    early = objective(model, x, 15, eps)
    expected = early.terms["distortion"] + early.terms["kl_coefficient"] * early.terms["rate"]
    torch.testing.assert_close(early.total.detach(), expected)


def test_state_holds_the_vectors_and_nothing_of_the_model() -> None:
    objective = NVAEObjective(ObjectiveConfig(), small(), total_steps=10)
    assert list(objective.parameters()) == []
    assert all(key.startswith("spectral.") for key in objective.state_dict())
    assert objective.noise_shapes == small().group_shapes


def test_training_lowers_the_loss_and_every_parameter_learns() -> None:
    model = small()
    x = images(model)
    objective = NVAEObjective(ObjectiveConfig(), model, total_steps=20)
    optimiser = torch.optim.Adamax(model.parameters(), lr=1e-2, eps=1e-3)
    losses = []
    for step in range(8):
        loss = objective(model, x, step)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        losses.append(loss.terms["distortion"].item())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert losses[-1] < losses[0] - 50


def test_configuration_survives_json() -> None:
    config = ObjectiveConfig(spectral_weight=0.01, spectral_weight_initial=1.0)
    assert ObjectiveConfig(**json.loads(json.dumps(asdict(config)))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kl_anneal_portion": 1.5}, "kl_anneal_portion is 1.5"),
        ({"spectral_weight": -1.0}, "spectral_weight is -1.0"),
        ({"spectral_weight": 0.0, "spectral_weight_initial": 1.0}, "log-linear"),
        ({"num_power_iterations": 0}, "num_power_iterations is 0"),
    ],
)
def test_contradictions_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="total_steps is 0"):
        NVAEObjective(ObjectiveConfig(), small(), total_steps=0)
