"""The optimiser, its learning rate, the checks of a step, and the average of the weights."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from launch.console.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up from 0, then a cosine to ``lr_min``, updated every step (the published NVAE updates it once per epoch)."""
    warmup = config.lr_warmup * total_steps
    if step < warmup:
        return config.lr * step / warmup
    if config.lr_schedule == "constant":
        return config.lr
    progress = min((step - warmup) / max(total_steps - 1 - warmup, 1.0), 1.0)
    floor = min(config.lr_min, config.lr)
    return floor + (config.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _apex_optimizer(name: str, torch_name: str) -> Any:
    """apex' fused optimiser; the error distinguishes a missing, an unrelated and an incomplete package apex."""
    instead = f"use --optimizer {torch_name}, torch's own"
    if importlib.util.find_spec("apex") is None:
        raise ModuleNotFoundError(
            f"--optimizer {name} needs NVIDIA's apex, which is not installed; {instead}, or build apex from NVIDIA's repository "
            "(the package called apex on the index is another project)"
        )
    try:
        theirs = importlib.util.find_spec("apex.optimizers") is not None
    except ImportError:  # no package, or one whose import fails
        theirs = False
    if not theirs:
        raise ModuleNotFoundError(f"the installed package apex is not NVIDIA's; {instead}, and uninstall that apex")
    try:
        importlib.import_module("amp_C")
    except ImportError:
        raise ModuleNotFoundError(
            f"the installed apex was built without its CUDA extensions (amp_C); {instead}, or rebuild apex with them"
        ) from None
    return importlib.import_module("apex.optimizers")


def build(config: OptimConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Build the optimiser that ``config`` names.

    ``torch.optim.Adamax`` is the published NVAE's rule: epsilon inside the infinity norm, L2 weight decay. On a GPU
    torch's optimisers count their steps on the device, so that a step can be skipped without the host.

    Raises:
        ModuleNotFoundError: a fused optimiser without a usable apex; the message names torch's alternative.
    """
    params = list(parameters)
    capturable = bool(params) and params[0].is_cuda
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "rmsprop":
        more: dict[str, Any] = {"alpha": config.rmsprop_decay, "eps": config.optimizer_eps, "capturable": capturable}
        return torch.optim.RMSprop(params, **more, **common)
    common["eps"] = config.optimizer_eps
    if config.optimizer == "adamax":
        return torch.optim.Adamax(params, foreach=True, capturable=capturable, **common)
    if config.optimizer == "adam":
        return torch.optim.Adam(params, fused=True, **common)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(params, fused=True, **common)
    if config.optimizer == "fused_adam":
        optimizer: torch.optim.Optimizer = _apex_optimizer("fused_adam", "adam").FusedAdam(params, **common)
    else:
        optimizer = _apex_optimizer("fused_lamb", "adamw").FusedLAMB(params, **common)
    return optimizer


def load_state_dict(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state that may come from another device, but keep this device's implementation of a step."""
    here = {k: v for k, v in optimizer.defaults.items() if k in ("foreach", "fused", "capturable")}
    groups = [{**group, **here} for group in saved["param_groups"]]
    optimizer.load_state_dict({**saved, "param_groups": groups})


class Findings(NamedTuple):
    """Findings of a step on any rank."""

    bad_loss: bool
    bad_gradient: bool
    too_long: bool
    """The gradient is finite but exceeds the largest allowed norm."""
    stop: bool
    """The run was asked to stop; this does not skip the step."""

    @property
    def skips(self) -> bool:
        """True if the weights must not move."""
        return self.bad_loss or self.bad_gradient or self.too_long


class Verdict:
    """Findings of a step as a tensor on the device, and a copy of them for the host.

    Args:
        flags: 0 or 1 for each field of :class:`Findings`, the same on all ranks; float32 [4].
    """

    def __init__(self, flags: Tensor) -> None:
        self.flags = flags
        self._copy, self._copied = flags, None
        if flags.is_cuda:  # copied to pinned memory after the queued work; the host does not wait
            self._copy = torch.empty(flags.shape, pin_memory=True).copy_(flags, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(flags.device))  # the current device may be another one

    @property
    def skips(self) -> Tensor:
        """True, on the device, if the weights must not move."""
        return self.flags[:3].any()

    def read(self) -> Findings:
        """The findings on the host; waits only if the device has not finished the step."""
        if self._copied is not None:
            self._copied.synchronize()
        return Findings(*(value > 0.0 for value in self._copy.tolist()))


class ExponentialMovingAverage:
    """A copy of ``model`` whose parameters trail it.

    The decay is smaller at the start, min(decay, (1 + step) / (10 + step)), so that a run of a few hundred steps is
    averaged over its last tenth and not over its beginning. Buffers (batch-norm statistics) are copied.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def weight(self, step: int) -> float:
        """Weight of the new weights in the average after optimiser step ``step``, from 0 to 1."""
        return 1.0 - min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after optimiser step ``step``."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), self.weight(step))

    @torch.no_grad()
    def copy_buffers(self, model: nn.Module) -> None:
        """Copy ``model``'s batch-norm statistics; call before using the average."""
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
