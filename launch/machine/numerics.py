"""What numbers of 32 bits mean on this machine."""

from __future__ import annotations

import torch


def full_float32() -> None:
    """Let float32 mean float32 on GPUs too.

    By default PyTorch convolves float32 in TF32, which has the 10 bits of half precision: results then differ from those
    of a CPU by 1e-3, in training, evaluation and encoding. Who wants speed takes bf16.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
