"""Published names of our parameters and buffers, and the cells that published names and shapes imply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from nvae.cells import InvertedResidualOp, ResidualOp
from nvae.config import NVAEConfig
from nvae.model import NVAE

_PLACES = (
    (r"initial_state", "prior_ftr0"),
    (r"preprocess\.", "pre_process."),
    (r"encoder\.", "enc_tower."),
    (r"encoder_top\.", "enc0.1."),
    (r"posterior_convs\.", "enc_sampler."),
    (r"prior_convs\.(\d+)\.", r"dec_sampler.\1.1."),
    (r"decoder\.", "dec_tower."),
    (r"postprocess\.", "post_process."),
    (r"output_conv\.", "image_conditional.1."),
)
_PARTS = (
    (r"\.skip\.conv\.", ".skip.1."),
    (r"\.gate\.squeeze\.", ".se.se.0."),
    (r"\.gate\.excite\.", ".se.se.2."),
    (r"\.forwards\.", ".cell1."),
    (r"\.backwards\.", ".cell2."),
    (r"\.conv_in\.", ".conv.convz.0."),
    (r"\.depthwise\.", ".conv.convz.2."),
    (r"\.conv_out\.", ".mu.conv_0."),
)
_INVERTED = {  # our part of an inverted residual -> (index without upsampling, rest of the published name)
    "norm_in": (0, ".bn"),
    "expand": (1, ".conv.0"),
    "norm_expand": (1, ".conv.1"),
    "depthwise": (2, ".conv.0"),
    "norm_depthwise": (2, ".conv.1"),
    "project": (3, ""),
    "norm_out": (4, ".bn"),
}


def published_names(model: NVAE) -> dict[str, str]:
    """Published name of each of our parameters and buffers that has one, e.g. to compare gradients."""
    return {key: _published_name(key, model) for key in model.state_dict() if not key.endswith(".initialised")}


def _published_name(key: str, model: NVAE) -> str:
    if match := re.fullmatch(r"(.*)\.ops\.(\d+)\.(\w+)\.(\w+)", key):
        cell, index, part, leaf = match.groups()
        op = model.get_submodule(f"{cell}.ops.{index}")
        key = f"{cell}._ops.{index}.{_op_part(op, part)}.{leaf}"
    elif match := re.fullmatch(r"(.*)\.skip\.convs\.(\d)\.(\w+)", key):
        key = f"{match[1]}.skip.conv_{int(match[2]) + 1}.{match[3]}"
    elif match := re.match(r"flows\.(\d+)\.(\d+)", key):
        index = int(match[1]) * model.config.num_flows + int(match[2])
        key = f"nf_cells.{index}{key[match.end() :]}"
    elif sum(model.config.groups) == 1 and key.startswith("decoder.0.conv."):
        return key.replace("decoder.0.conv", "stem_decoder")
    for pattern, name in _PLACES:
        key = re.sub(f"^{pattern}", name, key)
    if "._ops." not in key:
        for pattern, name in _PARTS:
            key = re.sub(pattern, name, key)
    return key


def _op_part(op: nn.Module, part: str) -> str:
    if isinstance(op, InvertedResidualOp):
        index, rest = _INVERTED[part]
        return f"conv.{index + op.upsample}{rest}"  # upsampling comes first and shifts the others by one
    assert isinstance(op, ResidualOp)
    if part == "conv":
        return "conv_0"
    return "bn_act" if op.activation == "silu" else "bn.bn"


def with_ops_of(state_dict: Mapping[str, Tensor], config: NVAEConfig) -> NVAEConfig:
    """``config`` with the operations of each part, read off the published keys and shapes of its first cells."""
    found = [_ops_of(tower, state_dict) for tower in ("pre_process", "enc_tower", "dec_tower", "post_process")]
    return replace(
        config, preprocess_ops=found[0], encoder_ops=found[1], decoder_ops=found[2], postprocess_ops=found[3]
    )


def _ops_of(tower: str, state_dict: Mapping[str, Tensor]) -> tuple[str, ...]:
    ops: dict[int, str] = {}
    for key, weight in state_dict.items():
        match = re.fullmatch(rf"{tower}\.\d+\._ops\.(\d+)\.(.*)\.weight", key)
        if match and int(match[1]) not in ops:
            name = _op_from_weight(match[2], weight, state_dict, key)
            ops |= {int(match[1]): name} if name else {}
    return tuple(ops[index] for index in sorted(ops))


def _op_from_weight(part: str, weight: Tensor, state_dict: Mapping[str, Tensor], key: str) -> str | None:
    """Operation that a weight belongs to: a Swish residual's norm, or an inverted residual's K x K convolution."""
    if part == "bn_act":
        return "res_bnswish"
    match = re.fullmatch(r"conv\.(\d)\.conv\.0", part)
    if not match or weight.shape[-1] == 1:
        return None
    hidden, per_group, kernel, _ = weight.shape
    expand = state_dict[key.replace(f"conv.{match[1]}.conv.0", f"conv.{int(match[1]) - 1}.conv.0")]
    groups = 0 if per_group == 1 else hidden // per_group
    return f"mconv_e{hidden // expand.shape[1]}k{kernel}g{groups}"
