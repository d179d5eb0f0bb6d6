"""Spectral regularisation: a penalty on the largest singular value of every convolution, by batched power iteration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvae.convolution import NORM_EPS, WeightNormConv2d

FIRST_CALL_FACTOR = 10
MIN_NORM = 1e-3


class SpectralRegulariser(nn.Module):
    """Sum over convolutions of the largest singular value of the effective weight (paper, section 3.3).

    A weight counts as the matrix ``C_out x (C_in / groups * k * k)``. Matrices of one shape are iterated together, in
    the order of the model's modules. The vectors are buffers of this module, so that resuming continues with them; the
    model's own state stays clean. The linear layers of squeeze-and-excitation are not penalised.

    Args:
        model: its convolutions are referred to, not owned.
        num_iterations: power iterations of a call; the first call makes ten times as many.
        seed: of the starting vectors; the same on all ranks.
    """

    started: Tensor

    def __init__(self, model: nn.Module, num_iterations: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        self._layers: dict[str, list[nn.Conv2d]] = {}
        self.layer_names: dict[str, list[str]] = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                rows = module.weight.shape[0]
                shape = f"{rows}x{module.weight.numel() // rows}"
                self._layers.setdefault(shape, []).append(module)
                self.layer_names.setdefault(shape, []).append(name)
        generator = torch.Generator().manual_seed(seed)
        for shape, layers in self._layers.items():
            u = torch.randn(len(layers), layers[0].weight.shape[0], generator=generator)
            self.register_buffer(f"u_{shape}", F.normalize(u, dim=1, eps=MIN_NORM).to(layers[0].weight.device))
            normalised = torch.tensor([isinstance(layer, WeightNormConv2d) for layer in layers]).view(-1, 1, 1)
            self.register_buffer(f"normalised_{shape}", normalised.to(layers[0].weight.device), persistent=False)
        self.register_buffer("started", torch.tensor(False))
        self._settled = False  # spares reading the buffer, which would wait for the device, in every call

    def matrices(self) -> list[Tensor]:
        """The effective weights of all convolutions in few operations: stacks ``[N, R, C]``, one for each shape.

        Columns are in the order (row, column, input channel), which singular values do not mind.
        """
        with torch.autocast(self.started.device.type, enabled=False):
            return [
                _effective_matrices(layers, getattr(self, f"normalised_{shape}"))
                for shape, layers in self._layers.items()
            ]

    def weights(self, matrices: list[Tensor]) -> dict[nn.Module, Tensor]:
        """What the weight-normalised convolutions may convolve with: views of ``matrices``, in autocast's precision."""
        device_type = self.started.device.type
        found: dict[nn.Module, Tensor] = {}
        for stack, layers in zip(matrices, self._layers.values(), strict=True):
            if torch.is_autocast_enabled(device_type):
                stack = stack.to(torch.get_autocast_dtype(device_type))
            for layer, matrix in zip(layers, stack.unbind(0), strict=True):
                if isinstance(layer, WeightNormConv2d):
                    out_channels, in_channels, height, width = layer.weight.shape
                    found[layer] = matrix.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)
        return found

    def forward(self, matrices: list[Tensor] | None = None) -> Tensor:
        """The penalty, a scalar in float32 with gradients to the weights; advances the vectors.

        ``matrices``: of :meth:`matrices`, where they were computed already.
        """
        iterations = self.num_iterations
        if not self._settled:
            iterations *= 1 if bool(self.started) else FIRST_CALL_FACTOR
            self.started.fill_(True)
            self._settled = True
        total: Tensor | None = None
        for shape, stack in zip(self._layers, self.matrices() if matrices is None else matrices, strict=True):
            with torch.autocast(stack.device.type, enabled=False):
                sigma = _sum_of_singular_values(stack, getattr(self, f"u_{shape}"), iterations)
            total = sigma if total is None else total + sigma
        assert total is not None
        return total

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = False


def _raw_matrix(layer: nn.Conv2d) -> Tensor:
    """[R, C]: the weight before normalisation, masked where it is; a view where its layout is channels_last."""
    weight = layer.raw_weight() if isinstance(layer, WeightNormConv2d) else layer.weight
    return weight.permute(0, 2, 3, 1).flatten(1)


def _effective_matrices(layers: list[nn.Conv2d], normalised: Tensor) -> Tensor:
    """Weights of convolutions of one matrix shape, [N, R, C]; those that are not ``normalised`` [N, 1, 1] as they are."""
    raw = torch.stack([_raw_matrix(layer) for layer in layers])
    norm: Tensor = torch.linalg.vector_norm(raw, dim=2, keepdim=True)  # [N, R, 1]
    none = raw.new_zeros(raw.shape[1], 1)
    logs = [layer.log_weight_norm.flatten(1) if isinstance(layer, WeightNormConv2d) else none for layer in layers]
    scale = torch.where(normalised, torch.stack(logs).exp() / (norm + NORM_EPS), 1.0)
    return raw * scale


def _sum_of_singular_values(weight: Tensor, u: Tensor, iterations: int) -> Tensor:
    """Sum of u'Wv over matrices ``weight`` [N, R, C] after iterating ``u`` [N, R] in place; v follows from u."""
    with torch.no_grad():
        left = u.unsqueeze(1)  # [N, 1, R]
        for _ in range(iterations):
            right = F.normalize(torch.bmm(left, weight), dim=2, eps=MIN_NORM)  # [N, 1, C]
            left = F.normalize(torch.bmm(right, weight.mT), dim=2, eps=MIN_NORM)
        u.copy_(left.squeeze(1))
    return (torch.bmm(left, weight) * right).sum()
