"""Batch norm: gradients, statistics, checkpointing, re-estimation."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.elbo import terms
from nvae.activations import Activation
from nvae.batch_norm import (
    MOMENTUM,
    BatchNorm,
    batch_norm_penalty,
    frozen_statistics,
    read_statistics,
    reestimate_batch_norm,
    write_statistics,
)
from nvae.cross_rank import EPS, batch_moments, cross_rank_batch_norm
from tests.nvae.small import images, noise, small

ACTIVATIONS: tuple[Activation, ...] = ("none", "silu", "elu")


def reference(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """PyTorch's own differentiation of the formula."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    y = (x - mean) / torch.sqrt(var + EPS) * weight.view(1, -1, 1, 1) + bias.view(1, -1, 1, 1)
    return {"none": y, "silu": F.silu(y), "elu": F.elu(y)}[activation]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_cross_rank_gradients(activation: Activation, memory_format: torch.memory_format) -> None:
    x = (torch.randn(3, 4, 5, 2, dtype=torch.float64) * 2 + 1).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    actual = cross_rank_batch_norm(x, weight, bias, batch_moments(x.detach()), activation)
    expected = reference(x, weight, bias, activation)
    torch.testing.assert_close(actual, expected)
    ours = torch.autograd.grad(actual, (x, weight, bias), upstream)
    theirs = torch.autograd.grad(expected, (x, weight, bias), upstream)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_module_matches_the_formula_and_moves_its_statistics(activation: Activation) -> None:
    norm = BatchNorm(4, activation)
    x = torch.randn(3, 4, 5, 2) * 2 + 1
    torch.testing.assert_close(norm(x), reference(x, norm.weight, norm.bias, activation))
    torch.testing.assert_close(norm.running_mean, MOMENTUM * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.95 + MOMENTUM * x.var((0, 2, 3)))
    before = norm.running_mean.clone()
    with frozen_statistics():
        norm(x + 1)
    norm.eval()(x + 2)
    assert torch.equal(norm.running_mean, before)
    running = copy.deepcopy(norm)
    expected = F.batch_norm(x, running.running_mean, running.running_var, norm.weight, norm.bias, False, 0.0, 1e-5)
    assert activation != "none" or torch.equal(norm(x), expected)


def test_moments_of_channels_far_from_zero() -> None:
    """A variance from sums of squares would have an error of about 1e8 * 6e-8 = 6 and could be negative."""
    x = torch.randn(8, 1, 32, 32) * 0.1 + 1e4
    moments = batch_moments(x)
    assert float(moments.var) == pytest.approx(float(x.double().var(correction=0)), rel=1e-3)
    assert float(moments.count) == 8 * 32 * 32


def test_half_precision_input_keeps_float32_statistics() -> None:
    norm = BatchNorm(4, "silu")
    x = torch.randn(8, 4, 8, 8).bfloat16().requires_grad_()
    y = norm(x)
    assert y.dtype == torch.bfloat16
    assert norm.running_var.dtype == torch.float32
    sync = cross_rank_batch_norm(x, norm.weight, norm.bias, batch_moments(x.detach()), "silu")
    assert sync.dtype == torch.bfloat16
    torch.testing.assert_close(sync, y, rtol=2e-2, atol=2e-2)
    (grad,) = torch.autograd.grad(sync.float().square().sum(), x)
    (expected,) = torch.autograd.grad(y.float().square().sum(), x)
    torch.testing.assert_close(grad, expected, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("arch", ["res_mbconv", "res_elu"])
def test_checkpointing_changes_nothing(arch: str) -> None:
    """Loss and gradients stay the same, and running statistics move once."""
    found = []
    for checkpointing in (False, True):
        model = small(cell_arch=arch, checkpointing=checkpointing).train()
        x = images(model)
        loss = -terms(model(x, noise(model)), x).elbo.mean()
        loss.backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()], read_statistics(model)))
    (loss, grads, statistics), (loss2, grads2, statistics2) = found
    assert torch.equal(loss, loss2)
    assert all(torch.equal(statistics[name], statistics2[name]) for name in statistics)
    for a, b in zip(grads, grads2, strict=True):
        torch.testing.assert_close(a, b)
    if arch == "res_mbconv":
        changed = small(cell_arch=arch).state_dict()
        assert any(not torch.equal(statistics[name], changed[name]) for name in statistics)


def test_reestimation_is_the_plain_average() -> None:
    model = small().eval()
    batches = [images(model, seed=s) for s in range(3)]
    before = read_statistics(model)
    first = "preprocess.0.ops.0.norm"
    statistics = reestimate_batch_norm(model, lambda i: model(batches[i]), 3)
    assert not model.training
    assert all(torch.equal(before[k], v) for k, v in read_statistics(model).items())
    seen = [model.stem(2 * x - 1) for x in batches]  # that norm's input does not depend on other norms
    expected = torch.stack([h.mean((0, 2, 3)) for h in seen]).mean(0)
    torch.testing.assert_close(statistics[f"{first}.running_mean"], expected)
    expected = torch.stack([h.var((0, 2, 3)) for h in seen]).mean(0)
    torch.testing.assert_close(statistics[f"{first}.running_var"], expected)
    write_statistics(model, statistics)
    assert all(torch.equal(statistics[k], v) for k, v in read_statistics(model).items())
    model.train()(batches[0])
    torch.testing.assert_close(  # the ordinary momentum is back
        model.state_dict()[f"{first}.running_mean"],
        0.95 * statistics[f"{first}.running_mean"] + 0.05 * seen[0].mean((0, 2, 3)),
    )


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 1.2])
def test_samples_are_finite_at_any_temperature(temperature: float) -> None:
    model = small().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # re-estimation leaves it
        statistics = reestimate_batch_norm(model, lambda i: model.sample(4, temperature), 3)
    assert all(v.dtype == torch.float32 and v.isfinite().all() for v in statistics.values())
    write_statistics(model, statistics)
    drawn = model.sample(4, temperature, pixels="sample")
    assert drawn.isfinite().all()
    assert 0.0 <= float(drawn.min()) <= float(drawn.max()) <= 1.0


def test_reestimation_needs_a_batch() -> None:
    with pytest.raises(ValueError, match="num is 0"):
        reestimate_batch_norm(small(), lambda i: None, 0)


def test_penalty_is_the_sum_of_the_largest_scales() -> None:
    model = small()
    with torch.no_grad():
        for norm in (m for m in model.modules() if isinstance(m, BatchNorm)):
            norm.weight.fill_(0.5)
            norm.weight[1] = -3.0
    count = sum(isinstance(m, BatchNorm) for m in model.modules())
    assert float(batch_norm_penalty(model).detach()) == pytest.approx(3.0 * count)
    assert float(batch_norm_penalty(torch.nn.Conv2d(1, 1, 1))) == 0.0
