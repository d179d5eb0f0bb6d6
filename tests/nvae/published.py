"""Small models in the published form, without published files."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nvae import NVAE, official

ARGS: dict[str, Any] = {
    "dataset": "cifar10",
    "num_x_bits": 8,
    "arch_instance": "res_mbconv",
    "use_se": True,
    "res_dist": True,
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 3,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 8,
    "num_channels_dec": 8,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 1,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 2,
    "num_cell_per_cond_dec": 1,
    "num_mixture_dec": 2,
    "num_nf": 0,
}


def published_form(model: NVAE) -> dict[str, Tensor]:
    """The state dict that the published code would have saved, with the aliases and counters of its files."""
    state, names = model.state_dict(), official.published_names(model)
    published = {names[key]: value.clone() for key, value in state.items() if key in names}
    for key in [key for key in published if key.endswith("running_mean")]:
        published[key.replace("running_mean", "num_batches_tracked")] = torch.tensor(12)
    for key in [key for key in published if key.endswith(".weight") and published[key].dim() == 4]:
        published[f"{key}_normalized"] = published[key]
    return published


def randomised(args: dict[str, Any]) -> NVAE:
    model = NVAE(official.model_config(args), official.image_spec(args))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return model.eval()
