"""Targets of the fuzzer: files of runs, command lines, and all readers of data sets."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from launch import evaluate, plan, sample
from launch.console.config import differences, to_json
from launch.console.flags import parse
from launch.families import nvae
from launch.families.nvae import NVAETrainConfig
from launch.results import run as opened
from launch.training import checkpoint
from tests.fuzz import data_targets, folder_targets, mutate, run_targets
from tests.fuzz.ends import Target, refused


def checkpoint_file(home: Path) -> Target:
    """Damage a file and give it a matching checksum, as an attacker would."""
    content = {
        "model": {"a": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "config": {"run": {"seed": 0, "run_dir": None}},
    }
    path = checkpoint.save(home, 3, content)
    raw = path.read_bytes()

    def one(chance: random.Random) -> bool:
        data = mutate.damage(raw, chance)
        path.write_bytes(data)
        digest = hashlib.sha256(data if chance.random() < 0.9 else raw).hexdigest()
        path.with_name(path.name + ".sha256").write_text(f"{digest}  {path.name}\n")
        return not refused(lambda: checkpoint.load(path))

    return one


def checkpoint_checksum(home: Path) -> Target:
    path = checkpoint.save(home, 3, {"model": {"a": torch.arange(12.0)}})
    beside = path.with_name(path.name + ".sha256")
    text = beside.read_text()

    def one(chance: random.Random) -> bool:
        beside.write_bytes(mutate.damage_text(text, chance))
        return not refused(lambda: checkpoint.load(path))

    return one


def run_config(home: Path) -> Target:
    """config.json of a run; what is read must be written again without loss."""
    config = nvae.FAMILY.preset("tiny", "folder")
    spec = {"channels": 3, "height": 12, "width": 16, "num_bits": 8}
    record = {"format": 1, "family": "nvae", "config": to_json(config), "spec": spec, "argv": [], "commit": None}
    text = json.dumps(record, indent=1)

    def one(chance: random.Random) -> bool:
        if chance.random() < 0.5:
            raw = mutate.damage_text(text, chance)
        else:
            raw = json.dumps(mutate.damage_tree(record, chance)).encode("utf-8", "surrogatepass")
        (home / "config.json").write_bytes(raw)

        def read() -> None:
            run = opened.open_run(home)
            json.dumps(to_json(run.config))

        return not refused(read)

    return one


def command_line(home: Path) -> Target:
    """Flags of four scripts, parsed as typed; --help ends the program as it should."""
    train = ["--dataset", "folder", "--data-root", str(home), "--preset", "tiny", "--max-steps", "9", "--lr", "0.01"]
    train += ["--groups-per-scale", "1", "1", "--image-size", "12", "16", "--resume", "auto", "--hflip", "--seed", "1"]

    def train_nvae(arguments: list[str]) -> object:
        preset = nvae.FAMILY.recipe(arguments)[0]
        return differences(parse(NVAETrainConfig, preset, arguments, prog="train_nvae.py", description=""), preset)

    def of(kind: Any, prog: str) -> Callable[[list[str]], object]:
        return lambda arguments: parse(kind, None, arguments, prog=prog, description="")

    scripts: list[tuple[list[str], Callable[[list[str]], object]]] = [
        (["--run", str(home), "--images", "9", "--split", "test"], of(evaluate.EvaluateConfig, "evaluate.py")),
        (["--run", str(home), "--num", "9", "--temperature", "0.7"], of(sample.SampleConfig, "sample.py")),
        (["--preset", "celeba64", "--gpus", "8"], of(plan.PlanConfig, "plan.py")),
        (train, train_nvae),
    ]

    def one(chance: random.Random) -> bool:
        genuine, read = scripts[min(chance.randrange(24), 3)] if chance.random() < 0.05 else chance.choice(scripts[:3])
        arguments = list(genuine)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(arguments) + 1)
            match chance.randrange(4):
                case 0:
                    arguments[at:at] = [mutate.word(chance)]
                case 1:
                    arguments[at : at + 1] = [mutate.word(chance)]
                case 2:
                    arguments[at : at + 1] = []
                case _ if arguments:
                    at %= len(arguments)
                    arguments[at] = mutate.damage(arguments[at].encode("utf-8", "surrogatepass"), chance).decode(
                        "utf-8", "surrogateescape"
                    )
        arguments = [a.replace("\x00", "") for a in arguments]  # no kernel passes these
        try:
            return not refused(lambda: read(arguments))
        except SystemExit as stop:
            if stop.code:
                raise AssertionError(f"left with {stop.code}") from stop
            return True

    return one


TARGETS: dict[str, Callable[[Path], Target]] = {
    "dsprites-npz": data_targets.dsprites_npz,
    "dsprites-reader": data_targets.dsprites_reader,
    "mnist": data_targets.mnist_files,
    "cifar10": data_targets.cifar10_files,
    "frey-mat": data_targets.frey_mat,
    "celeba-partition": data_targets.celeba_partition,
    "celeba-attributes": data_targets.celeba_attributes,
    "images": data_targets.images,
    "exif": folder_targets.exif,
    "celeba-lists": folder_targets.celeba_lists,
    "folder-layouts": folder_targets.folder_layouts,
    "cache-meta": data_targets.cache_meta,
    "checkpoint": checkpoint_file,
    "checkpoint-checksum": checkpoint_checksum,
    "run-config": run_config,
    "command-line": command_line,
    **run_targets.TARGETS,
}
