from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flat_vae.upsampling import MOST_CHANNELS, SubpixelConvTranspose2d, upsampling


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("out_channels", "size"), [(1, (4, 6)), (3, (1, 1)), (MOST_CHANNELS, (5, 2))], ids=["grey", "one-pixel", "most"]
)
def test_it_is_the_transposed_convolution(
    out_channels: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    layer = SubpixelConvTranspose2d(5, out_channels).double().to(memory_format=memory_format)
    twin = nn.ConvTranspose2d(5, out_channels, 4, stride=2, padding=1).double()
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(3, 5, *size, dtype=torch.float64).to(memory_format=memory_format)
    weights = torch.randn(3, out_channels, 2 * size[0], 2 * size[1], dtype=torch.float64)
    results = []
    for each in (layer, twin):
        inputs = x.clone().requires_grad_()
        output = each(inputs)
        (output * weights).sum().backward()
        results.append([output.detach(), inputs.grad, each.weight.grad, each.bias.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_only_few_channels_take_this_form() -> None:
    assert isinstance(upsampling(32, MOST_CHANNELS), SubpixelConvTranspose2d)
    wide = upsampling(32, MOST_CHANNELS + 1)
    assert type(wide) is nn.ConvTranspose2d
    x = torch.randn(2, 32, 3, 3)
    assert torch.equal(wide(x), F.conv_transpose2d(x, wide.weight, wide.bias, stride=2, padding=1))
