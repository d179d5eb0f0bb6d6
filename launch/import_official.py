"""Turn a checkpoint of the published NVAE into a run folder, for evaluate, sample, traverse and compress.

Examples:
  python launch/import_official.py checkpoint.pt --out runs/celeba64-published --data-root data/celeba
  python launch/evaluate.py --run runs/celeba64-published --split valid --iw-samples 1000

Nothing that the file holds is executed. Evaluation shows the exact likelihood beside the published one.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import datasets
from launch.console import errors
from launch.console.config import DataConfig, OptimConfig, RunConfig, to_json
from launch.console.flags import parse
from launch.families.nvae import NVAE, NVAETrainConfig, official
from launch.results import published
from launch.training import checkpoint
from launch.training.folder import RunFolder, record_of
from metrics.likelihoods import Edges


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What to import."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """File that the published code saved."""
    out: Path
    """Run folder to make."""
    edges: Edges = "exact"
    """Of mixture likelihoods: exact is a probability, legacy the published rule, in pixel sampling too; evaluate shows both."""
    data_root: Path | None = None
    """Where the data set is; default data/<name>."""


def data_config(args: Mapping[str, Any]) -> DataConfig:
    """Our data set for the published ``dataset``: those we have no recipe for are a folder of images."""
    name, spec = str(args["dataset"]), official.image_spec(args)
    if name == "mnist":
        return DataConfig(dataset="mnist")
    if name == "cifar10":
        return DataConfig(dataset="cifar10", num_bits=None if spec.num_bits == 8 else spec.num_bits)
    size = (spec.height,) if spec.height == spec.width else (spec.height, spec.width)
    known = "celeba" if name == "celeba_64" else "folder"
    return DataConfig(dataset=known, image_size=size, num_bits=spec.num_bits)


def _train_config(model: NVAE, args: Mapping[str, Any], data_root: Path | None) -> NVAETrainConfig:
    return NVAETrainConfig(
        preset="published",
        data=replace(data_config(args), data_root=data_root),
        model=model.config,
        objective=official.objective_config(args),
        optim=_optim_config(args),
        run=_run_config(args),
    )


def _number(args: Mapping[str, Any], name: str, default: float) -> float:
    """An argument that is a finite number, else the default."""
    value = args.get(name, default)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else default


def _optim_config(args: Mapping[str, Any]) -> OptimConfig:
    """The published optimiser; what the arguments lack keeps our default. The published code averages no weights."""
    ours, epochs = OptimConfig(), _number(args, "epochs", 0.0)
    warmup = _number(args, "warmup_epochs", 0.0) / epochs if epochs > 0 and "warmup_epochs" in args else ours.lr_warmup
    return OptimConfig(
        lr=max(_number(args, "learning_rate", ours.lr), 1e-12),
        lr_min=max(_number(args, "learning_rate_min", ours.lr_min), 0.0),
        lr_warmup=min(max(warmup, 0.0), 1.0),
        weight_decay=max(_number(args, "weight_decay", ours.weight_decay), 0.0),
        ema_decay=0.0,
    )


def _run_config(args: Mapping[str, Any]) -> RunConfig:
    ours = RunConfig()
    return RunConfig(
        epochs=max(1, int(_number(args, "epochs", ours.epochs))),
        batch_size=max(1, int(_number(args, "batch_size", ours.batch_size))),
        seed=int(_number(args, "seed", ours.seed)) % 2**31,
    )


def write_run(source: published.Published, model: NVAE, folder: RunFolder, *, data_root: Path | None) -> None:
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
    """Make the run folder ``out`` of a published checkpoint; returns the names of arguments that mean nothing to us.

    The folder appears when it is whole.

    Raises:
        ValueError: ``out`` exists; the file is missing, damaged or holds more than weights and arguments; the weights
            do not fit the arguments (keys named).
    """
    if out.exists():
        raise ValueError(f"{out} exists; choose another --out")
    source = published.read(path)
    unknown = official.unknown_arguments(source.args)
    known = {name: value for name, value in source.args.items() if name not in unknown}
    try:
        model = official.load(source.state_dict, known, legacy=edges == "legacy")
    except TypeError as error:  # an argument of the wrong type
        said = re.sub(r"\s+", " ", str(error))
        raise ValueError(f"the arguments of {path} build no model ({said}); use another checkpoint") from error
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        write_run(source, model, RunFolder(temporary), data_root=data_root)
        os.rename(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return unknown


def main(arguments: list[str]) -> None:
    """Parse, import, and say what came."""
    config = parse(ImportConfig, None, arguments, prog="import_official.py", description=__doc__ or "")
    unknown = import_checkpoint(config.checkpoint, config.out, edges=config.edges, data_root=config.data_root)
    if unknown:
        print(f"warning: arguments that mean nothing here, ignored: {', '.join(unknown)}", file=sys.stderr)
    print(f"{config.out}: try it with python launch/sample.py --run {config.out} --temperature 0.7")


if __name__ == "__main__":
    errors.main(main)
