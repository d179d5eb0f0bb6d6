"""Spectral regularisation: a penalty on the largest singular value of every convolution, by batched power iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from nvae.precision import without_autocast
from nvae.stacks import Stacks, WeightStacks

FIRST_CALL_FACTOR = 10
MIN_NORM = 1e-3


class SpectralRegulariser(nn.Module):
    """Sum over convolutions of the largest singular value of the effective weight (paper, section 3.3).

    A weight is read as a matrix ``C_out x (C_in / groups * k * k)``. Matrices of one shape are iterated together, in
    the order of the model's modules. The vectors are buffers of this module, not of the model, so that a resumed run
    continues with them. The linear layers of squeeze-and-excitation are not penalised.

    Args:
        model: model with the convolutions; they are referenced, not owned.
        num_iterations: power iterations per call; the first call makes ten times as many.
        seed: seed of the starting vectors; the same on all ranks.
    """

    started: Tensor

    def __init__(self, model: nn.Module, num_iterations: int = 4, seed: int = 0) -> None:
        super().__init__()
        self.num_iterations = num_iterations
        self.stacks = WeightStacks(model)
        self.layer_names = {group.shape: group.names for group in self.stacks.groups}
        generator = torch.Generator().manual_seed(seed)
        for group in self.stacks.groups:
            weight = group.layers[0].weight
            u = torch.randn(len(group.layers), weight.shape[0], generator=generator)
            self.register_buffer(f"u_{group.shape}", F.normalize(u, dim=1, eps=MIN_NORM).to(weight.device))
        self.register_buffer("started", torch.tensor(False))
        self._settled = False  # so that a call need not read the buffer, which would wait for the device

    def forward(self, stacks: Stacks | None = None) -> Tensor:
        """The penalty, a scalar in float32 with gradients to the weights; advances the vectors.

        ``stacks`` are the model's weights, if they were computed already.
        """
        iterations = self.num_iterations
        if not self._settled:
            iterations *= 1 if bool(self.started) else FIRST_CALL_FACTOR
            self.started.fill_(True)
            self._settled = True
        matrices = (self.stacks() if stacks is None else stacks).matrices
        with without_autocast(self.started.device):
            vectors = [getattr(self, f"u_{group.shape}") for group in self.stacks.groups]
            total: Tensor = _SumOfSingularValues.apply(vectors, iterations, *matrices)
        return total

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._settled = False


class _Padded:
    """Vectors of all matrices in one tensor, [matrices, 1, longest], padded with zeros, so that one norm serves all."""

    def __init__(self, matrices: Sequence[Tensor], dim: int) -> None:
        counts, sizes = [len(matrix) for matrix in matrices], [matrix.shape[dim] for matrix in matrices]
        self.values = matrices[0].new_zeros(sum(counts), 1, max(sizes))
        self.parts = [
            part[:, :, :size] for part, size in zip(self.values.split(counts), sizes, strict=True)
        ]  # [N, 1, R or C] for each stack

    def normalised(self) -> list[Tensor]:
        """The vectors scaled to unit norm, by a factor of at most a thousand."""
        norms = torch.linalg.vector_norm(self.values, dim=2, keepdim=True)
        self.values.div_(norms.clamp_min_(MIN_NORM))
        return self.parts


class _SumOfSingularValues(torch.autograd.Function):
    """Sum of u'Wv over matrices [N, R, C] after iterating ``vectors`` u [N, R] in place; v follows from u."""

    @staticmethod
    def forward(ctx: Any, vectors: Sequence[Tensor], iterations: int, *matrices: Tensor) -> Tensor:
        left, right = _Padded(matrices, 1), _Padded(matrices, 2)
        u = [vector.unsqueeze(1) for vector in vectors]  # [N, 1, R]
        for i in range(iterations):
            for part, start, matrix in zip(right.parts, u, matrices, strict=True):
                torch.bmm(start, matrix, out=part)
            right.normalised()
            for part, end, matrix in zip(left.parts, right.parts, matrices, strict=True):
                torch.bmm(end, matrix.mT, out=part)
            if i == iterations - 1:
                image = left.values.clone()  # W v
            u = left.normalised()
        for vector, part in zip(vectors, u, strict=True):
            vector.copy_(part.squeeze(1))
        ctx.save_for_backward(left.values, right.values)
        ctx.counts = [matrix.shape for matrix in matrices]
        return (left.values * image).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        left, right = ctx.saved_tensors
        counts = [shape[0] for shape in ctx.counts]
        pairs = zip((left * grads[0]).split(counts), right.split(counts), ctx.counts, strict=True)
        outer = [torch.bmm(u[:, :, :rows].mT, v[:, :, :columns]) for u, v, (_, rows, columns) in pairs]
        return None, None, *outer
