"""One batched model for many: each model's losses and gradients are its own, at the launches of one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import counting
from datasets import ImageSpec
from flat_vae import FlatVAE, FlatVAEConfig, ObjectiveConfig, Replicas, build_objective
from flat_vae.base import FlatObjective
from metrics.objective import Loss
from tests.flat_vae.cases import BINARY, COLOUR, levels

BATCH, STEP = 6, 3


def models(num: int, spec: ImageSpec, **config: Any) -> list[FlatVAE]:
    made = []
    for seed in range(num):
        torch.manual_seed(seed)
        made.append(FlatVAE(FlatVAEConfig(**{"latent_dim": 4, "conv_channels": 4, **config}), spec))
    return made


def objectives(of: list[FlatVAE], **config: Any) -> list[FlatObjective]:
    """At a quarter of a warm-up, if there is one."""
    return [build_objective(ObjectiveConfig(**config), model, 12, 50) for model in of]


def inputs(num: int, spec: ImageSpec, shapes: list[tuple[int, ...]]) -> tuple[Tensor, list[Tensor]]:
    source = torch.Generator().manual_seed(1)
    noise = [torch.randn(num, BATCH, *shape, generator=source) for shape in shapes]
    return torch.stack([levels(spec, BATCH, seed) for seed in range(num)]), noise


def alone(model: FlatVAE, objective: FlatObjective, x: Tensor, noise: list[Tensor]) -> tuple[Loss, list[Tensor]]:
    """A copy's loss and gradients, so that the model's own gradients stay."""
    twin = FlatVAE(model.config, model.spec)
    twin.load_state_dict(model.state_dict())
    loss: Loss = objective(twin, x, STEP, noise)
    return loss, list(torch.autograd.grad(loss.total, list(twin.parameters()), allow_unused=True))


def assert_each_is_its_own(replicas: Replicas, own: list[FlatObjective], spec: ImageSpec) -> None:
    x, noise = inputs(len(replicas), spec, own[0].noise_shapes)
    together = replicas(x, STEP, noise)
    together.total.sum().backward()
    for i, model in enumerate(replicas.models):
        loss, gradients = alone(model, own[i], x[i], [n[i] for n in noise])
        torch.testing.assert_close(together.total[i], loss.total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.kl_per_group[i], loss.kl_per_group, rtol=1e-5, atol=1e-6)
        assert together.terms.keys() == loss.terms.keys()
        for name, value in loss.terms.items():
            torch.testing.assert_close(together.terms[name][i], value, rtol=1e-4, atol=1e-4)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            expected = torch.zeros_like(parameter) if gradient is None else gradient
            # sums of up to a few hundred products in another order
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("spec", [BINARY, COLOUR], ids=["binary", "colour"])
@pytest.mark.parametrize(
    "objective",
    [
        {"objective": "ae"},
        {"objective": "denoising"},
        {"objective": "vae"},
        {"objective": "beta", "beta_warmup": 1.0},
        {"objective": "capacity", "capacity_warmup": 1.0},
        {"objective": "tc"},
        {"objective": "dip", "dip": "ii"},
        {"objective": "grouped"},
    ],
    ids=lambda objective: objective["objective"],
)
def test_losses_and_gradients_are_those_of_each_model_alone(objective: dict[str, Any], spec: ImageSpec) -> None:
    of = models(3, spec)
    assert_each_is_its_own(Replicas(of, objectives(of, **objective)), objectives(of, **objective), spec)


@pytest.mark.parametrize("config", [{"network": "mlp"}, {"network": "frey"}, {"likelihood": "normal"}], ids=str)
def test_other_networks_and_likelihoods(config: dict[str, Any]) -> None:
    of = models(2, BINARY, **config)
    assert_each_is_its_own(Replicas(of, objectives(of)), objectives(of), BINARY)


@pytest.mark.parametrize("name", ["beta", "tc", "grouped"])
def test_each_may_have_its_own_beta(name: str) -> None:
    of = models(3, BINARY)
    own = [
        build_objective(ObjectiveConfig(objective=name, beta=beta, beta_warmup=1.0), model, 12, 50)  # type: ignore[arg-type]
        for model, beta in zip(of, (1.0, 4.0, 16.0), strict=True)
    ]
    replicas = Replicas(of, own)
    assert replicas.weights.keys() == {"beta"}
    assert_each_is_its_own(replicas, own, BINARY)
    x, noise = inputs(3, BINARY, own[0].noise_shapes)
    assert replicas(x, STEP, noise).terms["beta"].tolist() == [0.25, 1.0, 4.0]


def test_only_declared_weights_may_differ() -> None:
    of = models(2, BINARY)
    for name, other in (("warmup_steps", 6.0), ("kind", "ii")):
        own = objectives(of, objective="dip" if name == "kind" else "beta")
        setattr(own[1], name, other)
        with pytest.raises(ValueError, match=name):
            Replicas(of, own)


def test_models_and_stacks_share_memory_and_keep_their_layout() -> None:
    of = models(2, BINARY)
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in of]
    strides = [p.stride() for p in of[0].parameters()]
    replicas = Replicas(of, objectives(of))
    for model, values in zip(of, before, strict=True):
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert [p.stride() for p in model.parameters()] == strides
    assert of[0].encoder[1].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, operator]
    of[1].load_state_dict(before[0])
    assert all(torch.equal(stack[0], stack[1]) for stack in replicas.parameters.values())


def test_a_model_that_is_not_finite_leaves_the_others_alone() -> None:
    of = models(3, BINARY)
    replicas = Replicas(of, objectives(of))
    x, noise = inputs(3, BINARY, [(4,)])
    replicas(x, STEP, noise).total.sum().backward()
    clean = [parameter.grad.clone() for parameter in of[0].parameters() if parameter.grad is not None]
    replicas.zero_grad()
    noise[0][1] = torch.nan
    replicas(x, STEP, noise).total.sum().backward()
    assert replicas.grad_norms().isfinite().tolist() == [True, False, True]
    for parameter, gradient in zip(of[0].parameters(), clean, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-5)


def test_a_model_that_is_held_does_not_move() -> None:
    of = models(2, BINARY)
    replicas = Replicas(of, objectives(of))
    optimizer = torch.optim.SGD([p for model in of for p in model.parameters()], lr=0.1)
    x, noise = inputs(2, BINARY, [(4,)])
    for held in (False, True, False):
        before = [[p.clone() for p in model.parameters()] for model in of]
        replicas(x, STEP, noise).total.sum().backward()
        with replicas.holding([False, held]):
            optimizer.step()
        replicas.zero_grad()
        moved = [
            not all(torch.equal(p, b) for p, b in zip(m.parameters(), old, strict=True))
            for m, old in zip(of, before, strict=True)
        ]
        assert moved == [True, not held]


def test_gradients_are_measured_and_scaled_one_by_one() -> None:
    of = models(2, BINARY)
    replicas = Replicas(of, objectives(of))
    x, noise = inputs(2, BINARY, [(4,)])
    replicas(x, STEP, noise).total.sum().backward()
    norms = [torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]) for model in of]
    torch.testing.assert_close(replicas.grad_norms(), torch.stack(norms))
    replicas.scale_gradients(torch.tensor([0.5, 1.0]))
    torch.testing.assert_close(replicas.grad_norms(), torch.stack(norms) * torch.tensor([0.5, 1.0]))


def test_more_models_launch_no_more_operations() -> None:
    def launched(num: int) -> int:
        of = models(num, BINARY)
        replicas = Replicas(of, objectives(of, objective="beta"))
        x, noise = inputs(num, BINARY, [(4,)])
        return counting.count(lambda: replicas(x, STEP, noise).total.sum().backward()).operations

    single = models(1, BINARY)[0]
    objective = objectives([single], objective="beta")[0]
    x, noise = inputs(1, BINARY, [(4,)])
    one = counting.count(lambda: objective(single, x[0], STEP, [noise[0][0]]).total.backward()).operations
    assert launched(2) == launched(8) < 2 * one
