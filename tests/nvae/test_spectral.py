"""The spectral penalty against singular values, its gradient, its state."""

from __future__ import annotations

import torch
from torch import nn

from nvae.convolution import effective_weight
from nvae.spectral import SpectralRegulariser
from tests.nvae.small import small


def singular_values(model: nn.Module) -> torch.Tensor:
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    return torch.stack([torch.linalg.svdvals(effective_weight(c).detach().double().flatten(1))[0] for c in convs])


def test_penalty_is_the_sum_of_largest_singular_values() -> None:
    model = small(num_flows=1)
    exact = singular_values(model)
    penalty = SpectralRegulariser(model, num_iterations=200)().detach()
    torch.testing.assert_close(penalty.double(), exact.sum(), rtol=1e-4, atol=0.0)
    short = SpectralRegulariser(model, num_iterations=1)  # first call: 10 iterations
    first, second = short().detach(), short().detach()
    assert first < second <= exact.sum() * (1 + 1e-6)  # a lower bound that each iteration tightens


def test_gradient_is_that_of_the_singular_value() -> None:
    conv = nn.Conv2d(3, 4, 3, bias=False)
    penalty = SpectralRegulariser(conv, num_iterations=100)()
    penalty.backward()
    u, _, vh = torch.linalg.svd(conv.weight.detach().flatten(1))
    assert conv.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad.flatten(1), torch.outer(u[:, 0], vh[0]), rtol=1e-3, atol=1e-4)


def test_linear_layers_are_left_out_and_the_model_stays_clean() -> None:
    model = small(squeeze_excite=True)
    keys = set(model.state_dict())
    regulariser = SpectralRegulariser(model)
    assert list(regulariser.parameters()) == []
    assert all(name == "started" or name.startswith("u_") for name in regulariser.state_dict())
    assert set(model.state_dict()) == keys
    names = [name for group in regulariser.layer_names.values() for name in group]
    assert not any("gate" in name for name in names)
    assert len(names) == sum(isinstance(m, nn.Conv2d) for m in model.modules())


def test_resuming_continues_with_the_vectors() -> None:
    model = small()
    once = SpectralRegulariser(model)
    once()
    resumed = SpectralRegulariser(model, seed=9)
    resumed.load_state_dict(once.state_dict())
    assert torch.equal(once().detach(), resumed().detach())
    assert bool(resumed.started)
    for key, value in once.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key])


def test_float32_under_autocast() -> None:
    model = small()
    plain, low = SpectralRegulariser(model), SpectralRegulariser(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = low()
    assert penalty.dtype == torch.float32
    torch.testing.assert_close(penalty.detach(), plain().detach())


def test_vectors_of_vanishing_weights_are_floored() -> None:
    """One iteration from u = 1 at weight 1e-4 by hand: v = 1e-4 / 1e-3, u = 1e-4 v / 1e-3, penalty u w v."""
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 1e-4)
    regulariser = SpectralRegulariser(conv, num_iterations=1)
    regulariser.load_state_dict({"u_1x1": torch.ones(1, 1), "started": torch.tensor(True)})
    torch.testing.assert_close(regulariser().detach(), torch.tensor(1e-7), rtol=1e-5, atol=0.0)
