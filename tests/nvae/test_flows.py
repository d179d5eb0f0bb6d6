"""Flows: autoregressive order, unit Jacobian; data-initialised and factorised convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nvae.convolution import DataInitConv2d, FactorizedReduce, UpsampleConv, WeightNormConv2d
from nvae.flows import AutoregressiveCell, FlowPair

C, H, W = 3, 3, 4


def jacobian(cell: torch.nn.Module) -> Tensor:
    """[N, N] in the order position by position, channels fastest."""
    z = torch.randn(1, C, H, W, dtype=torch.float64)
    full = torch.autograd.functional.jacobian(cell.double(), z).view(C, H * W, C, H * W)
    return full.permute(1, 0, 3, 2).reshape(H * W * C, H * W * C)


def stronger(cell: AutoregressiveCell) -> AutoregressiveCell:
    with torch.no_grad():
        cell.conv_out.log_weight_norm.add_(4.0)  # a shift that no rounding hides
    return cell


def test_raster_order() -> None:
    found = jacobian(stronger(AutoregressiveCell(C, mirror=False)))
    torch.testing.assert_close(found.triu(), torch.eye(H * W * C, dtype=torch.float64))
    below = found.tril(-1)
    assert (below != 0).sum() > C * (C - 1) / 2 * H * W  # and uses channels before it as well as positions


def test_mirrored_order_keeps_the_channels() -> None:
    found = jacobian(stronger(AutoregressiveCell(C, mirror=True))).view(H * W, C, H * W, C)
    reversed_positions = found.flip(0, 2).reshape(H * W * C, H * W * C)
    torch.testing.assert_close(reversed_positions.triu(), torch.eye(H * W * C, dtype=torch.float64))
    assert float(reversed_positions.tril(-1).abs().max()) > 0.1


def test_a_pair_preserves_volume_and_sees_everything() -> None:
    pair = FlowPair(C)
    stronger(pair.forwards), stronger(pair.backwards)
    found = jacobian(pair)
    assert float(torch.linalg.det(found)) == pytest.approx(1.0, abs=1e-8)
    assert float(found.triu(1).abs().max()) > 0.1
    assert float(found.tril(-1).abs().max()) > 0.1


def test_initial_shift_is_a_tenth() -> None:
    conv = AutoregressiveCell(C, mirror=False).conv_out
    norm = (conv.weight * conv.mask).flatten(1).norm(dim=1)
    torch.testing.assert_close(conv.log_weight_norm.exp().flatten(), 0.1 * (norm + 1e-2))


def test_weight_normalisation() -> None:
    conv = WeightNormConv2d(3, 5, 3)
    norm = conv.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(conv.log_weight_norm.exp().flatten(), norm + 1e-2)
    with torch.no_grad():
        conv.log_weight_norm.fill_(0.7)
    actual = conv.effective_weight().flatten(1).norm(dim=1)
    torch.testing.assert_close(actual, torch.exp(torch.tensor(0.7)) * norm / (norm + 1e-5))


def test_data_dependent_initialisation_once_and_saved() -> None:
    conv = DataInitConv2d(3, 5, 3)
    x = 4 * torch.randn(8, 3, 8, 8) + 2
    conv.eval()(x)
    assert not conv.initialised  # evaluation never changes weights
    y = conv.train()(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.full((5,), 0.2), rtol=1e-3, atol=0)
    state = {k: v.clone() for k, v in conv.state_dict().items()}
    again = DataInitConv2d(3, 5, 3)
    again(x)
    again.load_state_dict(state)
    torch.testing.assert_close(again(x + 1), conv(x + 1))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in state.items())
    fresh = DataInitConv2d(3, 5, 3)
    fresh.load_state_dict({**state, "initialised": torch.tensor(False)})
    fresh(x - 3)
    assert not torch.equal(fresh.log_weight_norm, conv.log_weight_norm)


@pytest.mark.parametrize("channels", [7, 8, 10, 16])
def test_factorized_reduce_is_four_strided_convolutions(channels: int) -> None:
    """The odd split of 7 -> 14 is included; at 8 to 14 input channels PyTorch's strided convolutions corrupt memory on CPU."""
    reduce = FactorizedReduce(channels, 2 * channels)
    x = torch.randn(2, channels, 6, 4).to(memory_format=torch.channels_last).requires_grad_()
    parts = []
    for conv, (i, j) in zip(reduce.convs, ((0, 0), (1, 1), (0, 1), (1, 0)), strict=True):
        assert isinstance(conv, WeightNormConv2d)
        shifted = F.silu(x.detach().contiguous())[:, :, i:, j:]
        parts.append(F.conv2d(shifted, conv.effective_weight(), conv.bias, stride=2))
    y = reduce(x)
    torch.testing.assert_close(y, torch.cat(parts, 1))
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_convolving_before_the_bilinear_doubling_is_the_same() -> None:
    up = UpsampleConv(6, 3)
    x = torch.randn(2, 6, 3, 5)
    doubled = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=True)
    torch.testing.assert_close(up(x), up.conv(doubled), rtol=1e-5, atol=1e-6)
