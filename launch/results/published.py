"""Reading a checkpoint file of the published NVAE without executing anything that it holds.

The published code saves one dictionary with ``torch.save``: ``state_dict``, ``args`` (an ``argparse.Namespace``), ``epoch``,
``global_step``, and the state of optimiser, scheduler and gradient scaler; old files hold more. Tensors, plain data and
that one harmless class are all that is unpickled here.
"""

from __future__ import annotations

import argparse
import pickle
import re
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Published:
    """What we take of a published checkpoint: weights by their published names, arguments, training position."""

    state_dict: dict[str, Tensor]
    args: dict[str, Any]
    epoch: int
    step: int


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}; give one that the published code saved")
    if tarfile.is_tarfile(path):
        raise ValueError(f"{path} has the tar format of PyTorch before 0.1.10; save it again with a later PyTorch")
    if zipfile.is_zipfile(path):  # torch packs nothing: a small file that unpacks to gigabytes is an attack
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise ValueError(f"{path} is compressed, as no checkpoint of PyTorch is; fetch it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if refused is None:
            raise ValueError(f"{path} is no checkpoint or a damaged one; fetch it again") from error
        raise ValueError(
            f"{path} holds {refused[1]}, which is more than tensors, plain data and arguments, and nothing of it was run; "
            "use a checkpoint from a source that you trust"
        ) from error
    except (RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no checkpoint or a damaged one; fetch it again") from error


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(key, str | int) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, bool | int | float | str)


def _arguments(args: Any, path: Path) -> dict[str, Any]:
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if not isinstance(args, dict):
        raise ValueError(f"{path} holds no arguments under args; give a checkpoint that the published code saved")
    odd = sorted(str(name) for name, value in args.items() if not (isinstance(name, str) and _is_plain(value)))
    if odd:
        raise ValueError(
            f"{path} has arguments that are no plain values ({', '.join(odd[:5])}); use another checkpoint"
        )
    return dict(args)


def _count(content: dict[str, Any], name: str) -> int:
    value = content.get(name, 0)
    return value if isinstance(value, int) and value >= 0 else 0


def read(path: Path) -> Published:
    """Read a published checkpoint, in today's zip format or the older one; keys that we do not need are passed over.

    Raises:
        ValueError: missing, truncated, or holding anything but tensors, plain data and a Namespace of plain values.
    """
    content = _load(path)
    if not isinstance(content, dict) or not {"state_dict", "args"} <= content.keys():
        raise ValueError(f"{path} lacks state_dict or args; give a checkpoint that the published code saved")
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(
            f"state_dict of {path} is no table of tensors; give a checkpoint that the published code saved"
        )
    args = _arguments(content["args"], path)
    return Published(dict(state), args, _count(content, "epoch"), _count(content, "global_step"))
