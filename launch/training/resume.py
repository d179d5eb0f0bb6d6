"""Resuming: find the checkpoint, check that it belongs to the same run, and refuse to overwrite a run that has none."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

import datasets
from datasets import recipes
from launch.console.config import SharedConfig, to_json
from launch.console.terminal import say
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.training import checkpoint
from launch.training.checkpoint import load_state
from launch.training.folder import RunFolder
from launch.training.records import NAME
from launch.training.records import read as read_records
from launch.training.step import TrainState


def _refuse_half(content: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint in which a part is missing or of the wrong type."""
    parts = {"config": dict, "global_batch": int, "num_images": int, "model": dict}
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{path} has no valid {name}; remove it to use an older one")


def _refuse_another_run(
    content: dict[str, Any],
    folder: RunFolder,
    config: SharedConfig,
    ranks: Ranks,
    *,
    global_batch: int,
    data: datasets.Dataset,
) -> list[str]:
    """Refuse a checkpoint with other settings or data; return the permitted differences as 'key: old -> new'."""
    if content["global_batch"] == 0:  # an imported checkpoint, or an exported copy
        raise ValueError(
            f"{folder.path} holds weights without an optimiser's state, so training cannot continue from them; "
            "choose another --run-dir to train (--init-from starts from these weights); other scripts can read them here"
        )
    saved = with_defaults(content["config"], to_json(type(config)()))
    changed = changed_keys(saved, to_json(config))
    # config.json already has the new values if a diverged run was resumed before and has saved nothing since
    allowed = AFTER_DIVERGENCE if folder.diverged or records(folder, config) else ()
    if _is_longer(saved, config, len(data) // global_batch):
        allowed = (*allowed, *LENGTH)
    if any(row.partition(":")[0] not in allowed for row in changed):
        raise ValueError(
            f"{folder.path} was trained with other settings ({', '.join(changed[:6])}); "
            "type the old ones, or choose another --run-dir, with --init-from to start from this run's weights"
        )
    if content["global_batch"] != global_batch:
        raise ValueError(
            f"the run has a global batch of {content['global_batch']} images, these flags make {global_batch}; choose "
            f"--batch-size and --accumulation whose product with {ranks.world_size} process(es) is {content['global_batch']}"
        )
    if content["num_images"] != len(data):
        raise ValueError(
            f"the run was trained on {content['num_images']:,} images, now there are {len(data):,}; "
            "restore the data or choose another --run-dir"
        )
    other = recipes.differences(content.get("recipe") or folder.recipe or {}, data.recipe, in_order=True)
    if other:
        raise ValueError(
            f"the run was trained on other data ({', '.join(other)}); restore the data or choose another --run-dir"
        )
    return changed


def _is_longer(saved: dict[str, Any], config: SharedConfig, steps_per_epoch: int) -> bool:
    """True if --max-steps or --epochs was raised; leaving out an earlier --max-steps does not count."""
    try:
        steps, epochs = saved["run"]["max_steps"], saved["run"]["epochs"]
        if config.run.max_steps is None:
            return bool(steps is None and config.run.epochs >= epochs)
        return bool(config.run.max_steps >= (steps or epochs * steps_per_epoch))
    except (LookupError, TypeError):
        return False


def resume(
    state: TrainState,
    folder: RunFolder,
    config: SharedConfig,
    ranks: Ranks,
    *,
    global_batch: int,
    data: datasets.Dataset,
    until: int | None = None,
) -> int:
    """Load the newest valid checkpoint (up to step ``until``) into ``state``; return its step, or 0 if there is none.

    A checkpoint that does not fit is refused before anything is written. A diverged run continues from its last
    checkpoint with finite losses, and may change learning rate, clipping and precision. Any run may be extended.

    Raises:
        ValueError: the data or settings that matter differ from those of the run (the message names them), the ranks
            see different checkpoints, or a checkpoint lacks a part.
    """

    def warn(text: str) -> None:
        if ranks.is_main:
            say(f"warning: {text}", file=sys.stderr)

    for path, content in checkpoint.newest_valid(folder.checkpoints, warn):
        if until is not None and content["step"] > until:
            continue
        if until is None and folder.diverged and content.get("num_bad_in_a_row"):
            warn(f"skipped: {path} was saved between steps that were not finite")
            continue
        _refuse_half(content, path)
        changed = _refuse_another_run(content, folder, config, ranks, global_batch=global_batch, data=data)
        _load(state, content, path)
        here = ranks.device_name
        if (before := content.get("noise_drawn_by", here)) != here:
            warn(
                f"noise was drawn by {before} and is now drawn by {here}; the run will differ from one that stays there"
            )
        if ranks.is_main:
            _announce(state.step, path, changed)
        break
    else:
        _refuse_to_start_over(folder, config, len(data) // global_batch, is_common=until is not None)
    steps = ranks.gather(state.step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes see different checkpoints in {folder.path} (steps {', '.join(map(str, steps))}); "
            "put --run-dir on storage that all machines share"
        )
    return state.step


def _announce(step: int, path: Path, changed: list[str]) -> None:
    say(f"resumed from {path} at step {step}", file=sys.stderr)
    for row in changed:
        say(f"  changed: {row}", file=sys.stderr)
    if any(row.partition(":")[0] in LENGTH for row in changed):
        print("  schedules continue as if the run had had its new length from the start", file=sys.stderr)


def _load(state: TrainState, content: dict[str, Any], path: Path) -> None:
    """Load the whole state; weights are checked before they are copied.

    Raises:
        ValueError: a part is missing or does not fit this model and optimiser. The checksum matched, so another program
            wrote it.
    """
    parts = {"model": state.model, "objective": state.objective} | ({"ema": state.ema.model} if state.ema else {})
    for name, own in parts.items():
        if name not in content:
            raise ValueError(f"{path} has no {name}; remove it to use an older one")
        checkpoint.check_weights(own.state_dict(), content[name], f"{name} of {path}")
    try:
        state.load_state_dict(content)
        _check_optimizer(state.optimizer)
        if min(state.num_skipped, state.num_bad_in_a_row) < 0:
            raise ValueError("a counter of steps is negative")
    except Exception as error:  # a file from another program can raise anything while a part is loaded
        raise ValueError(
            f"{path} is not a complete checkpoint of this run ({type(error).__name__}: {files.reason(error)}); "
            "remove it to use an older one"
        ) from error


def _check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimiser state whose shape is not its parameter's."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"the optimiser's {name} has shape {tuple(value.shape)} for {tuple(parameter.shape)}")


def _refuse_to_start_over(folder: RunFolder, config: SharedConfig, steps_per_epoch: int, *, is_common: bool) -> None:
    """Refuse to overwrite a run, unless it was stopped before its first checkpoint was complete.

    Args:
        folder: folder of the run, which has no usable checkpoint.
        config: configuration as typed now.
        steps_per_epoch: steps per epoch of the present data.
        is_common: the search was for a step that several runs share, so this run may have a valid first checkpoint.

    Raises:
        ValueError: the folder holds records of a run; the message names them.
    """
    first = config.run.save_every(config.run.num_steps(steps_per_epoch))
    found = checkpoint.trace(folder.checkpoints, beyond=first, weights=not is_common)
    steps = [record["step"] for _, record in read_records(folder.path / NAME) if record is not None]
    if found is None and steps and max(steps) > first:
        found = f"{NAME} reaches step {max(steps):,}"
    if found is None and steps and (changed := _changed_since(folder, config)):
        found = f"it was trained with other settings: {', '.join(changed[:6])}"
    if found is not None:
        several = "all runs that are trained together need one of the same step; " if is_common else ""
        raise ValueError(
            f"{folder.path} holds a run but no checkpoint to continue from, and starting over would overwrite it "
            f"({found}); {several}restore its checkpoints or choose another --run-dir"
        )


def records(folder: RunFolder, config: SharedConfig) -> bool:
    """True if config.json has the present values of all settings that matter."""
    return not _changed_since(folder, config)


def _changed_since(folder: RunFolder, config: SharedConfig) -> list[str]:
    """Settings that differ from those in config.json; the file itself if it can't be read."""
    try:
        saved = folder.read_json("config.json")["config"]
        return changed_keys(with_defaults(saved, to_json(type(config)())), to_json(config))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        return [f"config.json is damaged ({files.reason(error)})"]


def init_from(state: TrainState, run: Path, ranks: Ranks) -> None:
    """Copy the weights of another run (its averages, if it has them) to the weights and to their averages.

    Raises:
        ValueError: it has no valid checkpoint, or only one of another model (the message names the keys).
    """

    def warn(text: str) -> None:
        if ranks.is_main:
            say(f"warning: {text}", file=sys.stderr)

    found = next(checkpoint.newest_valid(RunFolder(run).checkpoints, warn), None)
    if found is None:
        raise ValueError(f"--init-from {run}: the folder has no valid checkpoint; give the folder of a trained run")
    path, content = found
    weights = content["model"] if content.get("ema") is None else content["ema"]
    load_state(state.model, weights, str(path))
    if state.ema is not None:
        load_state(state.ema.model, weights, str(path))
    if ranks.is_main:
        say(f"weights from {path}, of step {content.get('step')}", file=sys.stderr)


LENGTH = ("run.epochs", "run.max_steps")
AFTER_DIVERGENCE = (
    *("optim.lr", "optim.lr_min", "optim.lr_warmup", "optim.grad_clip", "optim.grad_skip"),
    "run.precision",
)

# Settings that may change when a run is resumed: where and how things are stored and shown, not what is computed.
MAY_CHANGE = (
    "preset",
    "run.run_dir",
    "run.resume",
    "run.init_from",
    "run.stop_at_step",
    "run.device",
    "run.data_on_device",
    "run.compile",
    "run.cuda_graph",
    "run.batch_size",  # with accumulation and the number of processes: only their product matters
    "optim.accumulation",
    "run.checkpoint_every",
    "run.keep_checkpoints",
    "run.max_bad_steps",
    "run.timeout_minutes",
    "log.",
    "data.data_root",
    "data.cache_dir",
    "data.download",
    "data.labels",
)


def may_change(name: str) -> bool:
    """True if the setting with this dotted name does not affect results."""
    return any(name == allowed or (allowed.endswith(".") and name.startswith(allowed)) for allowed in MAY_CHANGE)


def with_defaults(saved: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Fill in the settings that an older record lacks: a newer setting's default reproduces the earlier behaviour."""
    filled = {**defaults, **saved}
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(saved.get(key), dict):
            filled[key] = with_defaults(saved[key], default)
    return filled


def changed_keys(saved: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Settings that matter and differ between a run's record and the present configuration, as 'key: old -> new'."""
    rows: list[str] = []
    for key in sorted(saved.keys() | now.keys()):
        name, old, new = prefix + key, saved.get(key), now.get(key)
        if may_change(name):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            rows += changed_keys(old, new, name + ".")
        elif old != new:
            rows.append(f"{name}: {old} -> {new}")
    return rows
