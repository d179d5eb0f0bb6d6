"""Import of a checkpoint of the published NVAE, without executing anything in the file.

The published code saves one dictionary with ``torch.save``: ``state_dict``, ``args`` (an ``argparse.Namespace``), ``epoch``,
``global_step``, and the state of optimiser, scheduler and gradient scaler; old files hold more. Only tensors, plain
data and that one harmless class are unpickled here.
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import datasets
from datasets.files import open_regular
from launch.console.config import DataConfig, OptimConfig, RunConfig, to_json
from launch.families.nvae import NVAE, NVAETrainConfig, official
from launch.machine import files
from launch.training import checkpoint
from launch.training.folder import RunFolder, record_of
from metrics.likelihoods import Edges


@dataclass(frozen=True)
class Published:
    """The parts of a published checkpoint that are used: weights by published names, arguments, position in training."""

    state_dict: dict[str, Tensor]
    args: dict[str, Any]
    epoch: int
    step: int


def _load(path: Path) -> Any:
    if not path.is_file():
        raise ValueError(f"there is no checkpoint file {path}; give one that the published code saved")
    if tarfile.is_tarfile(path):
        raise ValueError(f"{path} has the tar format of PyTorch before 0.1.10; save it again with a later PyTorch")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), open_regular(path, files.MOST_BYTES) as file:
            return files.load_tensors(file)
    except pickle.UnpicklingError as error:
        refused = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        if refused is None:
            raise ValueError(f"{path} is not a checkpoint, or is damaged; fetch it again") from error
        raise ValueError(
            f"{path} holds {refused[1]}, which is not a tensor, plain data or an argument, and was not executed; "
            "use a checkpoint from a source that you trust"
        ) from error
    except Exception as error:  # bytes of unknown origin can make the reader raise anything
        raise ValueError(
            f"{path} is not a checkpoint, or is damaged ({files.reason(error)}); fetch it again"
        ) from error


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
            f"{path} has arguments that are not plain values ({', '.join(odd[:5])}); use another checkpoint"
        )
    return dict(args)


def _count(content: dict[str, Any], name: str) -> int:
    value = content.get(name, 0)
    return value if isinstance(value, int) and value >= 0 else 0


def read(path: Path) -> Published:
    """Read a published checkpoint, in today's zip format or the older one; unused keys are ignored.

    Raises:
        ValueError: the file is missing or truncated, or holds more than tensors, plain data and a Namespace of plain
            values.
    """
    content = _load(path)
    if not isinstance(content, dict) or not {"state_dict", "args"} <= content.keys():
        raise ValueError(f"{path} lacks state_dict or args; give a checkpoint that the published code saved")
    state = content["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(
            f"state_dict of {path} is not a table of tensors; give a checkpoint that the published code saved"
        )
    args = _arguments(content["args"], path)
    return Published(dict(state), args, _count(content, "epoch"), _count(content, "global_step"))


# --- As a run folder ------------------------------------------------------------------------------------------------


def data_config(args: Mapping[str, Any]) -> DataConfig:
    """Our data set for the published ``dataset``; one without a recipe here becomes a folder of images."""
    name, spec = str(args["dataset"]), official.image_spec(args)
    if name == "mnist":
        return DataConfig(dataset="mnist")
    if name == "cifar10":
        return DataConfig(dataset="cifar10", num_bits=None if spec.num_bits == 8 else spec.num_bits)
    size = (spec.height,) if spec.height == spec.width else (spec.height, spec.width)
    known = "celeba" if name == "celeba_64" else "folder"
    return DataConfig(dataset=known, image_size=size, num_bits=spec.num_bits)


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    """An argument that is a finite number, else the default."""
    value = args.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else default


def _train_config(model: NVAE, args: Mapping[str, Any], data_root: Path | None) -> NVAETrainConfig:
    """Our configuration, with our defaults for missing arguments. The published code averages no weights."""
    optim, run, epochs = OptimConfig(), RunConfig(), _number(args, "epochs", 0.0)
    has_warmup = epochs > 0 and "warmup_epochs" in args
    warmup = _number(args, "warmup_epochs", 0.0) / epochs if has_warmup else optim.lr_warmup
    return NVAETrainConfig(
        preset="published",
        data=replace(data_config(args), data_root=data_root),
        model=model.config,
        objective=official.objective_config(args),
        optim=OptimConfig(
            lr=max(_number(args, "learning_rate", optim.lr), 1e-12),
            lr_min=max(_number(args, "learning_rate_min", optim.lr_min), 0.0),
            lr_warmup=min(max(warmup, 0.0), 1.0),
            weight_decay=max(_number(args, "weight_decay", optim.weight_decay), 0.0),
            ema_decay=0.0,
        ),
        run=RunConfig(
            epochs=max(1, int(_number(args, "epochs", run.epochs))),
            batch_size=max(1, int(_number(args, "batch_size", run.batch_size))),
            seed=int(_number(args, "seed", run.seed)) % 2**31,
        ),
    )


def write_run(source: Published, model: NVAE, folder: RunFolder, *, data_root: Path | None) -> None:
    """Fill a run folder: config.json, a checkpoint, summary.json."""
    config = _train_config(model, source.args, data_root)
    spec = datasets.ImageSpec(**vars(model.spec))
    num_parameters = sum(p.numel() for p in model.parameters())
    data = {"name": source.args["dataset"], "num_images": None, "recipe": None}
    published_as = {"epoch": source.epoch, "unknown_arguments": official.unknown_arguments(source.args)}
    content = {"model": model.state_dict(), "ema": None, "config": to_json(config), "global_batch": 0, "num_images": 0}
    checkpoint.save(folder.checkpoints, source.step, content)
    folder.figures.mkdir()
    folder.write_json("summary.json", {"step": source.step, "num_parameters": num_parameters, "imported": True})
    folder.write_json("config.json", record_of(config, spec, data, published=published_as))


def import_checkpoint(path: Path, out: Path, *, edges: Edges = "exact", data_root: Path | None = None) -> list[str]:
    """Turn a published checkpoint into the run folder ``out``; return the names of ignored arguments.

    The folder appears only once it is complete.

    Raises:
        ValueError: ``out`` exists; the file is missing, damaged or holds more than weights and arguments; the weights
            do not fit the arguments (the message names the keys).
    """
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out")
    source = read(path)
    unknown = official.unknown_arguments(source.args)
    known = {name: value for name, value in source.args.items() if name not in unknown}
    try:
        model = official.load(source.state_dict, known, legacy=edges == "legacy")
    except TypeError as error:  # an argument of the wrong type
        said = re.sub(r"\s+", " ", str(error))
        raise ValueError(f"the arguments of {path} do not describe a model ({said}); use another checkpoint") from error
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_run(source, model, RunFolder(temporary), data_root=data_root)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return unknown
