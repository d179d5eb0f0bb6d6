"""Residual cells of all published kinds, built from their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvae.activations import Activation, activate
from nvae.batch_norm import BatchNorm, frozen_statistics
from nvae.convolution import Conv2d, DataInitConv2d, FactorizedReduce, UpsampleConv, WeightNormConv2d
from nvae.cross_rank import recording, replaying
from nvae.depthwise import DepthwiseConv2d
from nvae.excitation import SqueezeExcite
from nvae.sharing import Given, use_weights, weights_in_use

Resize = Literal["none", "down", "up"]
RESIDUAL_SCALE = 0.1


@contextmanager
def _as_in_the_forward_pass(weights: Mapping[nn.Module, Given], exchanged: list[Any]) -> Iterator[None]:
    with frozen_statistics(), use_weights(weights), replaying(exchanged):
        yield


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts in which the recomputation, perhaps in another thread, uses the same weights and moves no statistics."""
    exchanged: list[Any] = []
    return recording(exchanged), _as_in_the_forward_pass(weights_in_use(), exchanged)


def recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``; its intermediate results are not kept but recomputed in the backward pass."""
    output: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)
    return output


def upsample_nearest(x: Tensor) -> Tensor:
    """Double height and width."""
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class ResidualOp(nn.Module):
    """[Batch norm,] activation, [nearest doubling,] 3x3 convolution.

    Without a batch norm (``res_elu``), the convolution is initialised from data.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resize: Resize, activation: Activation, *, norm: bool, dilation: int
    ) -> None:
        super().__init__()
        self.upsample = resize == "up"
        self.activation: Activation = activation
        self.norm = BatchNorm(in_channels, activation) if norm else None
        conv = WeightNormConv2d if norm else DataInitConv2d
        self.conv = conv(in_channels, out_channels, 3, stride=2 if resize == "down" else 1, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, ...]``."""
        x = activate(x, self.activation) if self.norm is None else self.norm(x)
        x = upsample_nearest(x) if self.upsample else x
        output: Tensor = self.conv(x)
        return output


class InvertedResidualOp(nn.Module):
    """[Nearest doubling,] batch norm, 1x1 expansion, depthwise (or grouped) K x K, 1x1 projection, batch norm.

    Batch norm and SiLU follow the first two convolutions. None of the three has a bias or a normalised weight. The
    doubling is computed after the expansion. The result is the same, because batch norm, 1x1 convolution and SiLU treat
    the four copies of a pixel alike, and three quarters of their work is saved.
    """

    def __init__(
        self, in_channels: int, out_channels: int, resize: Resize, *, expansion: int, kernel: int, groups: int
    ) -> None:
        super().__init__()
        hidden = expansion * in_channels
        if groups and hidden % groups:
            raise ValueError(
                f"{hidden} hidden channels ({expansion} x {in_channels}) do not divide into {groups} groups; "
                f"choose channel counts that are multiples of {groups} or a depthwise cell_arch such as mbconv_sep"
            )
        self.upsample = resize == "up"
        self.norm_in = BatchNorm(in_channels)
        self.expand = Conv2d(in_channels, hidden, 1, bias=False)
        self.norm_expand = BatchNorm(hidden, "silu")
        stride = 2 if resize == "down" else 1
        self.depthwise: nn.Conv2d = (
            Conv2d(hidden, hidden, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
            if groups
            else DepthwiseConv2d(hidden, kernel, stride=stride)
        )
        self.norm_depthwise = BatchNorm(hidden, "silu")
        self.project = Conv2d(hidden, out_channels, 1, bias=False)
        self.norm_out = BatchNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, ...]``."""
        copies = 4 if self.upsample else 1
        x = self.norm_expand(self.expand(self.norm_in(x, copies)), copies)
        x = upsample_nearest(x) if self.upsample else x
        x = self.norm_depthwise(self.depthwise(x))
        output: Tensor = self.norm_out(self.project(x))
        return output


INVERTED_RESIDUAL = re.compile(r"mconv_e(\d+)k(\d+)g(\d+)")


def make_op(name: str, in_channels: int, out_channels: int, resize: Resize) -> nn.Module:
    """The operation called ``name`` (see :class:`nvae.config.CellOps`)."""
    if name in ("res_bnswish", "res_bnswish5"):
        dilation = 2 if name == "res_bnswish5" else 1
        return ResidualOp(in_channels, out_channels, resize, "silu", norm=True, dilation=dilation)
    if name in ("res_bnelu", "res_elu"):
        return ResidualOp(in_channels, out_channels, resize, "elu", norm=name == "res_bnelu", dilation=1)
    if match := INVERTED_RESIDUAL.fullmatch(name):
        expansion, kernel, groups = (int(number) for number in match.groups())
        if not expansion or not kernel % 2:
            raise ValueError(
                f"cell operation {name} cannot be built; give an expansion of 1 or more and an odd kernel size"
            )
        return InvertedResidualOp(in_channels, out_channels, resize, expansion=expansion, kernel=kernel, groups=groups)
    raise ValueError(
        f"unknown cell operation {name!r}; choose res_bnswish, res_bnswish5, res_bnelu, res_elu or mconv_e<x>k<k>g<g>"
    )


class Cell(nn.Module):
    """``skip(x) + 0.1 * gate(ops(x))``; the first operation resizes and changes the channels.

    Args:
        ops: names of the operations, in order.
        in_channels: C_in.
        out_channels: C_out.
        resize: "down" halves, "up" doubles height and width.
        squeeze_excite: gate the channels.
        checkpointing: recompute the cell in the backward pass instead of storing its activations.
    """

    def __init__(
        self,
        ops: tuple[str, ...],
        in_channels: int,
        out_channels: int,
        resize: Resize = "none",
        *,
        squeeze_excite: bool,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.skip: nn.Module
        if resize == "down":
            self.skip = FactorizedReduce(in_channels, out_channels)
        elif resize == "up":
            self.skip = UpsampleConv(in_channels, out_channels)
        else:
            self.skip = nn.Identity()
        first = make_op(ops[0], in_channels, out_channels, resize)
        rest = [make_op(name, out_channels, out_channels, "none") for name in ops[1:]]
        self.ops = nn.Sequential(first, *rest)
        self.gate = SqueezeExcite(out_channels) if squeeze_excite else nn.Identity()

    def _run(self, x: Tensor) -> Tensor:
        skip, y = self.skip(x), self.ops(x)
        if isinstance(self.gate, SqueezeExcite):
            return self.gate.add_gated(skip, y, RESIDUAL_SCALE)
        return torch.add(skip, y, alpha=RESIDUAL_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_in, H, W]`` -> ``[B, C_out, H', W']``."""
        recomputes = self.checkpointing and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        return recomputed(self._run, x) if recomputes else self._run(x)


def compile_cells(cells: Iterable[Cell], backend: str = "inductor") -> None:
    """Compile cells in place, each kind once: cells of the same operations and shapes share their code.

    Shapes are static. Names of parameters do not change, and copies of the model (averaged weights) are not compiled.
    The compiler recomputes checkpointed cells itself: it keeps only the input of a cell. The exchanges of batch norms
    between ranks are part of the graphs, in the same order on every rank because every rank compiles the same code.
    """
    import torch._dynamo  # imported here because it takes a second
    import torch._functorch.config

    cells = list(cells)
    # graphs of a kind: training, evaluation and no gradients, each for up to two batch sizes
    dynamo, limit = torch._dynamo.config, 6 * len(cells)
    dynamo.recompile_limit = max(dynamo.recompile_limit, limit)
    dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, limit)
    if any(cell.checkpointing for cell in cells):
        torch._functorch.config.activation_memory_budget = 0.0
    for cell in cells:
        cell.compile(dynamic=False, backend=backend)
