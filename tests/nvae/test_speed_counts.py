"""Counts that speed and memory depend on; nothing is timed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import counting
from benchmarks.harness import waiting_for_the_device_is_an_error
from benchmarks.plain import plain_model, plain_step
from datasets.arrays import ArrayDataset
from launch.console.config import OptimConfig
from launch.machine.distributed import Ranks
from launch.training import evaluation
from launch.training.optim import build
from metrics.elbo import terms
from nvae import NVAE, NVAEObjective, ObjectiveConfig
from nvae.batch_norm import BatchNorm
from nvae.cells import upsample_nearest
from nvae.convolution import effective_weight
from nvae.depthwise import depthwise
from nvae.excitation import SqueezeExcite
from nvae.resizing import double_bilinear
from nvae.spectral import SpectralRegulariser
from tests.nvae.small import images, noise, small

STEP, TOTAL_STEPS = 100, 1000


def objective_of(model: NVAE) -> NVAEObjective:
    objective = NVAEObjective(ObjectiveConfig(), model, TOTAL_STEPS)
    objective(model, images(model), STEP, noise(model))  # the long first power iteration
    return objective


def loss_and_gradients(model: NVAE, objective: NVAEObjective) -> list[Tensor]:
    model.zero_grad(set_to_none=True)
    loss = objective(model, images(model), STEP, noise(model)).total
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_launches_half_of_what_a_plain_port_does(checkpointing: bool) -> None:
    model = small(groups_per_scale=(4, 2), cells_per_group_enc=2, cells_per_group_dec=2, checkpointing=checkpointing)
    objective = objective_of(model)
    optimizer = build(OptimConfig(), model.parameters())

    def step() -> None:
        loss_and_gradients(model, objective)
        optimizer.step()

    step()
    port = plain_model(model)
    x = images(model)
    take = plain_step(port, ObjectiveConfig(), 1e-3, STEP, TOTAL_STEPS)
    take(x)
    ours, plain = counting.count(step), counting.count(lambda: take(x))
    assert ours.operations < (0.65 if checkpointing else 0.5) * plain.operations
    moved = sum(count for name, count in ours.by_name.items() if name.startswith("_foreach"))
    assert 0 < moved <= 20


def test_weights_are_normalised_once_for_each_shape() -> None:
    """There is no norm per layer and none for the penalty alone; one norm serves the vectors of all shapes."""
    model = small()
    objective = objective_of(model)
    shapes = sum(group.has_normalised for group in objective.spectral.stacks.groups)
    counts = counting.count(lambda: objective(model, images(model), STEP, noise(model)))
    assert counts.by_name["linalg_vector_norm"] == shapes + 2 * objective.config.num_power_iterations


def test_the_batches_of_a_step_share_weights_and_penalties() -> None:
    """Compare values, gradients and operations; the losses are averaged."""
    model = small(num_flows=1)
    objective = objective_of(model)
    vectors = copy.deepcopy(objective.state_dict())
    halves = [(images(model, seed=seed), noise(model, seed=seed)) for seed in (1, 2)]
    found = []
    for shares in (True, False):
        objective.load_state_dict(vectors)
        model.zero_grad(set_to_none=True)
        with objective.one_step(2) if shares else nullcontext():
            losses = []
            for x, given in halves:
                if not shares:
                    objective.load_state_dict(vectors)
                loss = objective(model, x, STEP, given)
                (loss.total / 2).backward()
                losses.append(loss)
        found.append(([loss.total.detach() for loss in losses], [p.grad for p in model.parameters()]))
        assert all(losses[0].terms[name] == losses[1].terms[name] for name in ("spectral", "batch_norm"))
    torch.testing.assert_close(*(torch.stack(totals) for totals, _ in found), rtol=1e-5, atol=1e-5)
    largest = max(float(grad.abs().max()) for grad in found[1][1] if grad is not None)
    for mine, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5 * largest)

    def step() -> None:
        with objective.one_step(2):
            for x, given in halves:
                (objective(model, x, STEP, given).total / 2).backward()

    products = 2 * objective.config.num_power_iterations * len(objective.spectral.stacks.groups)
    assert counting.count(step).by_name["bmm"] < 1.5 * products  # and one more for each gradient


def test_stacked_weights_are_those_of_the_layers() -> None:
    model = small(num_flows=1)
    stacks = SpectralRegulariser(model).stacks
    found = stacks.given(stacks())
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | BatchNorm)]
    assert list(found).sort(key=id) == layers.sort(key=id)
    for layer in layers:
        expected = effective_weight(layer) if isinstance(layer, nn.Conv2d) else layer.weight
        torch.testing.assert_close(found[layer].weight, expected)
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            assert torch.equal(found[layer].bias, layer.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = stacks.given(stacks())
    assert all(low[layer].weight.dtype == torch.bfloat16 for layer in layers if isinstance(layer, nn.Conv2d))
    assert all(low[layer].weight.dtype == torch.float32 for layer in layers if isinstance(layer, BatchNorm))


def test_gradients_of_stacked_weights() -> None:
    """The gradients are those of autograd through each layer's own normalisation, in float64."""
    model = small(num_flows=1).double()
    stacks = SpectralRegulariser(model).stacks.double()
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64) for layer in layers]
    found = []
    for stacked in (True, False):
        model.zero_grad(set_to_none=True)
        given = stacks.given(stacks()) if stacked else {}
        weights = [given[layer].weight if stacked else effective_weight(layer) for layer in layers]
        torch.stack([(w * f).sum() for w, f in zip(weights, factors, strict=True)]).sum().backward()
        found.append([(layer.weight.grad, getattr(layer, "log_weight_norm", layer.weight).grad) for layer in layers])
    for mine, autograds in zip(*found, strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-12, atol=1e-14)


def test_gradients_of_a_gated_cell() -> None:
    """The gradients are those of autograd, in float64."""
    torch.manual_seed(0)
    gate = SqueezeExcite(8).double()
    skip, x, upstream = (torch.randn(2, 8, 3, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found = []
    for y in (gate.add_gated(skip, x, 0.1), skip + 0.1 * gate(x)):
        found.append([y, *torch.autograd.grad(y, [skip, x, *gate.parameters()], upstream.detach())])
    for mine, autograds in zip(*found, strict=True):
        torch.testing.assert_close(mine, autograds, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("size", [(3, 5), (1, 4), (8, 8)])
def test_doubling_is_bilinear_interpolation(size: tuple[int, int]) -> None:
    """It avoids the operation whose gradient CUDA sums in an undefined order."""
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    upstream = torch.randn_like(expected)
    y = double_bilinear(x)
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)
    mine, autograds = (torch.autograd.grad(value, x, upstream)[0] for value in (y, expected))
    torch.testing.assert_close(mine, autograds, rtol=1e-13, atol=1e-13)
    counts = counting.count(lambda: double_bilinear(x).sum().backward())
    assert not any("upsample" in name for name in counts.by_name)
    assert double_bilinear(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("changes", [{}, {"num_flows": 1}, {"checkpointing": True}, {"cell_arch": "res_elu"}])
def test_sharing_weights_changes_no_gradient(monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    found = []
    for shares in (True, False):
        model = small(**changes)
        objective = objective_of(model)
        if not shares:
            monkeypatch.setattr(objective, "_stacks", lambda: None)
        found.append(loss_and_gradients(model, objective))
    largest = max(float(alone.abs().max()) for alone in found[1][1:])
    for shared, alone in zip(*found, strict=True):  # some gradients are zero but for rounding
        torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5 * largest)


def test_the_plain_port_computes_the_same() -> None:
    """Otherwise the benchmark would compare two different models."""
    model = small()
    port = plain_model(model)
    x, given = images(model), noise(model)
    torch.testing.assert_close(terms(port(x, given), x).elbo, terms(model(x, given), x).elbo, rtol=1e-4, atol=0.0)
    ours, theirs = model.state_dict(), port.state_dict()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5)


def test_checkpointing_keeps_at_most_15_percent_of_a_plain_ports_activations() -> None:
    kept = []
    changes = {"groups_per_scale": (4, 2), "cells_per_group_enc": 2, "cells_per_group_dec": 2, "num_mixtures": 1}
    for model in (small(**changes, checkpointing=True), plain_model(small(**changes))):
        x = images(model, num=16)
        forward = lambda model=model, x=x: terms(model(x), x).elbo.mean()  # noqa: E731
        kept.append(counting.saved_bytes(forward, list(model.parameters())))
    assert kept[0] <= 0.15 * kept[1]


def test_one_bottom_up_pass_serves_all_draws() -> None:
    model = small().eval()
    passes: list[int] = []
    model.stem.register_forward_hook(lambda module, args, output: passes.append(len(output)))
    shape = (3, model.spec.channels, model.spec.height, model.spec.width)
    data = ArrayDataset(name="zeros", array=np.zeros(shape, np.uint8), rows=np.arange(3), recipe={})
    alone = Ranks(0, 1, torch.device("cpu"))
    counts = []
    for draws in (0, 1, 10):
        passes.clear()
        evaluation.evaluate(model, data, alone, batch_size=3, seed=0, importance_draws=draws)
        counts.append(list(passes))
    without, one, ten = counts
    assert one == ten == [*without, 3]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_layout_is_the_same_throughout(layout: torch.memory_format) -> None:
    """Our model uses channels_last, the plain port the contiguous layout."""
    model = small().train()
    model = model if layout is torch.channels_last else plain_model(model)
    layouts: list[bool] = []
    for module in model.modules():
        if isinstance(module, BatchNorm):
            module.register_forward_hook(lambda module, args, y: layouts.append(y.is_contiguous(memory_format=layout)))
    model(images(model))
    assert len(layouts) > 0
    assert all(layouts)


class _WeightGradients(counting.OperationCounter):
    """Records the widths of the kernels whose gradients are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "convolution_backward" and args[-1][1]:
            self.widths.append(args[2].shape[-1])
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 11])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_depthwise_gradients(kernel: int, stride: int, layout: torch.memory_format) -> None:
    """The gradients are PyTorch's, by kernels narrow enough for oneDNN's fast path."""
    x = torch.randn(2, 24, 12, 9).to(memory_format=layout).requires_grad_()
    weight = torch.randn(24, 1, kernel, kernel, requires_grad=True)
    expected = F.conv2d(x.double(), weight.double(), None, stride, kernel // 2, groups=24)
    y = depthwise(x, weight, stride)
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(y)
    theirs = torch.autograd.grad(expected, (x, weight), upstream.double())
    with _WeightGradients() as seen:
        ours = torch.autograd.grad(y, (x, weight), upstream)
    assert max(seen.widths) <= 3
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


def test_depthwise_in_half_precision() -> None:
    x, weight = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 1, 5, 5, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = depthwise(x, weight)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@pytest.mark.parametrize("momentum", [0.05, 1.0])
def test_normalising_before_doubling_is_normalising_after(momentum: float) -> None:
    before, after = BatchNorm(3, "silu"), BatchNorm(3, "silu")
    before.momentum = after.momentum = momentum
    x = torch.randn(2, 3, 2, 2) * 3 + 1
    for _ in range(2):
        torch.testing.assert_close(upsample_nearest(before(x, 4)), after(upsample_nearest(x)))
        torch.testing.assert_close(before.running_mean, after.running_mean)
        torch.testing.assert_close(before.running_var, after.running_var)


@pytest.mark.gpu
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_do_not_wait_for_the_device(checkpointing: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = small(num_flows=1, checkpointing=checkpointing).cuda()
    objective = NVAEObjective(ObjectiveConfig(), model, TOTAL_STEPS)
    x, given = images(model).cuda(), [eps.cuda() for eps in noise(model)]
    for _ in range(2):
        objective(model, x, STEP, given).total.backward()
    with waiting_for_the_device_is_an_error():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = objective(model, x, STEP, given)
        loss.total.backward()


def test_replacing_the_layout_keeps_saved_weights_loadable() -> None:
    model = small()
    again = NVAE(replace(model.config), model.spec)
    again.load_state_dict({k: v.contiguous() for k, v in model.state_dict().items()})
    assert again.output_conv.weight.is_contiguous(memory_format=torch.channels_last)
    x, given = images(model), noise(model)
    assert torch.equal(terms(model(x, given), x).elbo, terms(again(x, given), x).elbo)
