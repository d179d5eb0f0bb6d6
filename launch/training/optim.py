"""Optimisers by name, and the learning rate as a function of the step."""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from launch.console.config import OptimConfig


def learning_rate(config: OptimConfig, step: int, total_steps: int) -> float:
    """Linear warm-up from 0, then a cosine to ``lr_min`` by the step (the published NVAE steps it by the epoch)."""
    warmup = config.lr_warmup * total_steps
    if step < warmup:
        return config.lr * step / warmup
    if config.lr_schedule == "constant":
        return config.lr
    progress = min((step - warmup) / max(total_steps - 1 - warmup, 1.0), 1.0)
    floor = min(config.lr_min, config.lr)
    return floor + (config.lr - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _apex_optimizer(name: str, torch_name: str) -> Any:
    """apex' fused optimiser; each of the three ways of not having it gets its own line."""
    instead = f"use --optimizer {torch_name}, torch's own"
    if importlib.util.find_spec("apex") is None:
        raise ModuleNotFoundError(
            f"--optimizer {name} needs NVIDIA's apex, which is not installed; {instead}, or build apex from NVIDIA's repository "
            "(the package called apex on the index is another project)"
        )
    try:
        theirs = importlib.util.find_spec("apex.optimizers") is not None
    except ImportError:  # no package, or one that does not even import
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
    """The optimiser that ``config`` names.

    ``torch.optim.Adamax`` is the published NVAE's rule: epsilon inside the infinity norm, L2 weight decay. On a GPU
    torch's optimisers count their steps there, so that a step can be undone without the host.

    Raises:
        ModuleNotFoundError: a fused optimiser without a usable apex; names torch's alternative.
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
    """Go on from a state saved perhaps on another device: how the steps are computed stays as it was built here."""
    here = {k: v for k, v in optimizer.defaults.items() if k in ("foreach", "fused", "capturable")}
    groups = [{**group, **here} for group in saved["param_groups"]]
    optimizer.load_state_dict({**saved, "param_groups": groups})
