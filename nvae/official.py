"""Published NVAE weights for our model: translation of the published arguments and key names.

Nothing here runs published code or unpickles anything: callers pass plain tensors and plain arguments.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nvae.config import CELL_OPS, NVAEConfig
from nvae.convolution import DataInitConv2d
from nvae.model import NVAE
from nvae.objective import ObjectiveConfig
from nvae.official_names import published_names, with_ops_of

__all__ = [
    "PublishedImages",
    "image_spec",
    "load",
    "model_config",
    "objective_config",
    "published_names",
    "unknown_arguments",
]

logger = logging.getLogger(__name__)

_CONFIG_FIELDS = {
    "num_latent_scales": "num_scales",
    "num_groups_per_scale": "num_groups",
    "ada_groups": "adaptive_groups",
    "min_groups_per_scale": "min_groups",
    "num_latent_per_group": "latent_channels",
    "num_channels_enc": "channels_enc",
    "num_channels_dec": "channels_dec",
    "num_preprocess_blocks": "preprocess_blocks",
    "num_preprocess_cells": "preprocess_cells",
    "num_postprocess_blocks": "postprocess_blocks",
    "num_postprocess_cells": "postprocess_cells",
    "num_cell_per_cond_enc": "cells_per_group_enc",
    "num_cell_per_cond_dec": "cells_per_group_dec",
    "num_nf": "num_flows",
    "use_se": "squeeze_excite",
    "res_dist": "residual_posterior",
    "arch_instance": "cell_arch",
}
_ABSENT = {"ada_groups": False, "min_groups_per_scale": 1}  # defaults of arguments that older checkpoints lack
_REQUIRED = {"dataset", *_CONFIG_FIELDS} - _ABSENT.keys()
_OPTIONAL = {"num_x_bits", "num_mixture_dec", *_ABSENT}
_WRAPPERS = ("module.", "_orig_mod.")  # prefixes that DistributedDataParallel and torch.compile add to every key
_OBJECTIVE = {
    "weight_decay_norm",
    "weight_decay_norm_init",
    "weight_decay_norm_anneal",
    "kl_anneal_portion",
    "kl_const_portion",
    "kl_const_coeff",
}
_TRAINING = (  # settings of the training run or its machine, on which the model does not depend
    "root save data batch_size epochs warmup_epochs learning_rate learning_rate_min weight_decay fast_adamax seed "
    "cont_training distributed num_proc_node node_rank num_process_per_node master_address local_rank global_rank "
    "num_total_iter swa_start"
)
_KNOWN_ARGS = {*_REQUIRED, *_OPTIONAL, *_OBJECTIVE, *_TRAINING.split()}
_BINARY_DATASETS = ("mnist", "omniglot")  # 28 x 28 images, which the published data pipeline pads to 32 x 32
_COLOUR_SIDES = {"cifar10": 32, "ffhq": 256}
_DETAILS_FROM_WEIGHTS = (  # the name alone does not determine the kernel, expansion or groups of every part
    "mbconv_res",
    "mbconv_sep11",
    "mbconv_den",
)


@dataclass(frozen=True)
class PublishedImages:
    """Channels, height, width and bits of the images that a published model was trained on."""

    channels: int
    height: int
    width: int
    num_bits: int


def image_spec(args: Mapping[str, Any]) -> PublishedImages:
    """Image spec described by the arguments ``dataset`` and ``num_x_bits``; MNIST and OMNIGLOT are 28x28."""
    name = str(args["dataset"])
    if name in _BINARY_DATASETS:
        return PublishedImages(1, 28, 28, 1)
    suffix = re.fullmatch(r"(?:celeba|imagenet|lsun_\w+)_(\d+)", name)
    side = int(suffix[1]) if suffix else _COLOUR_SIDES.get(name)
    if side is None:
        raise ValueError(
            f"dataset {name!r} is not one that the published code trains on; "
            "choose mnist, omniglot, cifar10, ffhq, celeba_<side>, imagenet_<side> or lsun_<class>_<side>"
        )
    return PublishedImages(3, side, side, int(args.get("num_x_bits", 8)))


def unknown_arguments(args: Mapping[str, Any]) -> list[str]:
    """Names in ``args`` that have no meaning here, sorted."""
    return sorted(set(args) - _KNOWN_ARGS)


def model_config(args: Mapping[str, Any], *, legacy: bool = True) -> NVAEConfig:
    """Architecture that published arguments describe.

    ``legacy`` keeps the edges and the sampling rule of the published likelihood, to reproduce published figures.

    Raises:
        ValueError: arguments are missing, or describe a model that the published code cannot run either.
    """
    missing = sorted(_REQUIRED - set(args))
    if missing:
        raise ValueError(f"the arguments lack {', '.join(missing)}; give all arguments that the model was trained with")
    if args["arch_instance"] not in CELL_OPS:
        raise ValueError(f"arch_instance {args['arch_instance']!r} is unknown; choose {', '.join(CELL_OPS)}")
    binary, given = args["dataset"] in _BINARY_DATASETS, {**_ABSENT, **args}
    config = NVAEConfig(
        **{ours: given[theirs] for theirs, ours in _CONFIG_FIELDS.items()},
        num_mixtures=int(args.get("num_mixture_dec", 10)),
        likelihood="bernoulli" if binary else "normal" if args.get("num_mixture_dec", 10) == 1 else "mixture",
        likelihood_edges="legacy" if legacy else "exact",
        padded_size=(32, 32) if binary else None,
    )
    if sum(config.groups) == 1 and config.channels_enc != config.channels_dec:
        raise ValueError(
            f"one group with {config.channels_enc} encoder and {config.channels_dec} decoder channels: the published "
            "code cannot run such a model; give the arguments that belong to these weights"
        )
    return config


def objective_config(args: Mapping[str, Any]) -> ObjectiveConfig:
    """Loss that published arguments describe; missing arguments take the published defaults."""
    weight = float(args.get("weight_decay_norm", 0.0))
    return ObjectiveConfig(
        kl_anneal_portion=float(args.get("kl_anneal_portion", 0.3)),
        kl_const_portion=float(args.get("kl_const_portion", 1e-4)),
        kl_const_coefficient=float(args.get("kl_const_coeff", 1e-4)),
        spectral_weight=weight,
        spectral_weight_initial=(
            float(args.get("weight_decay_norm_init", 10.0)) if args.get("weight_decay_norm_anneal") and weight else None
        ),
    )


def load(state_dict: Mapping[str, Tensor], args: Mapping[str, Any], *, legacy: bool = True) -> NVAE:
    """Our model with published weights, in evaluation mode.

    Args:
        state_dict: tensors by their published names, perhaps with a wrapper's prefix. Unknown tensors are logged.
        args: the published command-line arguments, as a plain mapping. Unknown names are logged.
        legacy: keep the published likelihood, to reproduce published figures. Images are unpadded in either case.

    Raises:
        ValueError: arguments are missing, the data set or cell type is unknown, or weights do not fit the arguments
            (the message names their keys).
    """
    if unknown := unknown_arguments(args):
        logger.warning("unknown arguments of the published model, ignored: %s", ", ".join(unknown))
    state_dict = _unwrapped(state_dict)
    config = model_config(args, legacy=legacy)
    if config.cell_arch in _DETAILS_FROM_WEIGHTS:
        config = with_ops_of(state_dict, config)
    with torch.device("meta"):  # shapes only: arguments that do not fit the weights may ask for any amount of memory
        shapes = NVAE(config, image_spec(args))
    names = published_names(shapes)
    theirs = {key: value for key, value in state_dict.items() if _carries_information(key, config)}
    _check_fit(theirs, {names[key]: value for key, value in shapes.state_dict().items() if key in names})
    model = NVAE(config, image_spec(args))
    with torch.no_grad():
        tensors = model.state_dict()
        for ours, published in names.items():
            tensors[ours].copy_(theirs[published])
    for module in model.modules():
        if isinstance(module, DataInitConv2d):  # the weights are trained; the published code would overwrite them
            module.initialised.fill_(True)
    return model.eval()


def _unwrapped(state_dict: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights without a wrapper's prefix, if every key has it."""
    for prefix in _WRAPPERS:
        if state_dict and all(key.startswith(prefix) for key in state_dict):
            return _unwrapped({key.removeprefix(prefix): value for key, value in state_dict.items()})
    return state_dict


def _carries_information(key: str, config: NVAEConfig) -> bool:
    """True if a key holds a value of its own; aliases, counters and the unused initial state of one group do not."""
    if key.endswith((".weight_normalized", ".num_batches_tracked")):
        return False
    return key != "prior_ftr0" or sum(config.groups) > 1


def _check_fit(given: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> None:
    missing = [key for key in needed if key not in given]
    unexpected = [key for key in given if key not in needed]
    misshapen = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(value.shape)}"
        for key, value in needed.items()
        if key in given and given[key].shape != value.shape
    ]
    if unexpected and not missing and not misshapen:
        logger.warning(
            "ignored %d tensors that the model does not have: %s%s",
            len(unexpected),
            ", ".join(map(repr, unexpected[:5])),
            ", ..." if len(unexpected) > 5 else "",
        )
        return
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = [
        f"{len(keys)} {what} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if found:
        raise ValueError(f"the weights do not fit the arguments: keys {'; '.join(found)}; give those saved together")
