"""torch.compile for training (``--compile``): what it needs, and what its failures mean."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys

import torch

from metrics.model import VAE


def compile_parts(model: VAE, device: torch.device) -> None:
    """Compile a model's parts in place; the compiling itself happens in the first steps.

    Raises:
        ValueError: what is missing on this machine.
    """
    compilers = [os.environ.get("CXX", "g++"), "clang++", "c++"]
    if not any(shutil.which(name) for name in compilers):
        raise ValueError(
            f"--compile needs a C++ compiler and there is none ({', '.join(compilers)}); "
            "install one (Debian: apt install g++) or leave out --compile"
        )
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise ValueError("--compile needs triton on a GPU; pip install triton or leave out --compile")
    model.compile_parts()


def failed(error: RuntimeError) -> bool:
    """Whether the compiler, and not what was compiled, raised this."""
    dynamo = sys.modules.get("torch._dynamo")
    return dynamo is not None and isinstance(error, dynamo.exc.TorchDynamoException)
