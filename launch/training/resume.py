"""Resuming: find the checkpoint, check that it belongs to the same run, and refuse to overwrite a run that has none."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import datasets
from datasets import recipes
from launch.console.config import SharedConfig, to_json
from launch.console.terminal import say
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.training import checkpoint, records
from launch.training.checkpoint import load_state
from launch.training.folder import RunFolder, changed_keys, with_defaults
from launch.training.step import Trainer, TrainState

LENGTH = ("run.epochs", "run.max_steps")
AFTER_DIVERGENCE = (
    *("optim.lr", "optim.lr_min", "optim.lr_warmup", "optim.grad_clip", "optim.grad_skip"),
    "run.precision",
)


def resume_all(
    trainers: Mapping[str, Trainer], folders: Mapping[str, RunFolder], *, global_batch: int, data: datasets.Dataset
) -> int:
    """Continue runs that are trained together, from the newest step at which each has a valid checkpoint.

    Returns:
        That step; 0 if there is none.

    Raises:
        ValueError: as for :func:`resume`, or only some of the runs have checkpoints.
    """
    until = _common_step(folders) if len(folders) > 1 else None
    steps = [resume(trainers[name], folders[name], global_batch, data, until=until) for name in folders]
    return steps[0]


def _common_step(folders: Mapping[str, RunFolder]) -> int:
    """Newest step at which every replica has a valid checkpoint; a kill may have come between two saves.

    Raises:
        ValueError: only some replicas have checkpoints, and training all from the start would overwrite these.
    """
    steps = {
        name: {int(content["step"]) for _, content in checkpoint.newest_valid(folder.checkpoints, lambda text: None)}
        for name, folder in folders.items()
    }
    common = max(set[int].intersection(*steps.values()), default=0)
    have = [name for name, found in steps.items() if found]
    lack = [name for name, found in steps.items() if not found]
    was_killed_at_first = all(len(steps[name]) == 1 for name in have) and all(
        folders[name].config_path.exists() for name in lack
    )
    if common or not have or was_killed_at_first:
        return common
    raise ValueError(
        f"{', '.join(have[:3])} have checkpoints but {', '.join(lack[:3]) or 'the others'} none of the same step, and "
        "replicas train in step with each other; choose another --run-dir for the new ones"
    )


def resume(
    trainer: Trainer, folder: RunFolder, global_batch: int, data: datasets.Dataset, *, until: int | None = None
) -> int:
    """Load the newest valid checkpoint (up to step ``until``) into the trainer; return its step, or 0 if there is none.

    A checkpoint that does not fit is refused before anything is written. A diverged run continues from its last
    checkpoint with finite losses, and may change learning rate, clipping and precision. Any run may be extended.

    Raises:
        ValueError: the data or settings that matter differ from those of the run (the message names them), the ranks
            see different checkpoints, or a checkpoint lacks a part.
    """
    state, ranks = trainer.state, trainer.ranks
    found = next(_usable(folder, ranks, until), None)
    if found is None:
        _refuse_to_start_over(folder, trainer.config, len(data) // global_batch, is_common=until is not None)
    else:
        path, content = found
        _refuse_half(content, path)
        changed = _refuse_another_run(content, folder, trainer, global_batch, data)
        _load(state, content, path)
        here = ranks.device_name
        if (before := content.get("noise_drawn_by", here)) != here:
            _warn(
                ranks,
                f"noise was drawn by {before} and is now drawn by {here}; the run will differ from one that stays there",
            )
        if ranks.is_main:
            _announce(state.step, path, changed)
    steps = ranks.gather(state.step)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the processes see different checkpoints in {folder.path} (steps {', '.join(map(str, steps))}); "
            "put --run-dir on storage that all machines share"
        )
    return state.step


def _usable(folder: RunFolder, ranks: Ranks, until: int | None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Valid checkpoints to continue from, newest first: up to step ``until``, or with finite losses after a divergence."""
    for path, content in checkpoint.newest_valid(folder.checkpoints, functools.partial(_warn, ranks)):
        if until is None and folder.diverged and content.get("num_bad_in_a_row"):
            _warn(ranks, f"skipped: {path} was saved between steps that were not finite")
        elif until is None or content["step"] <= until:
            yield path, content


def _warn(ranks: Ranks, text: str) -> None:
    if ranks.is_main:
        say(f"warning: {text}", file=sys.stderr)


def _refuse_half(content: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint of weights alone, or in which a part is missing or of the wrong type."""
    if content.get("global_batch") == 0:  # an imported checkpoint, or an exported copy
        raise ValueError(
            f"{path.parent.parent} holds weights without an optimiser's state, so training cannot continue from them; "
            "choose another --run-dir to train (--init-from starts from these weights); other scripts can read them here"
        )
    parts = {"config": dict, "global_batch": int, "num_images": int, "model": dict}
    for name, kind in parts.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{path} has no valid {name}; remove it to use an older one")


def _refuse_another_run(
    content: dict[str, Any], folder: RunFolder, trainer: Trainer, global_batch: int, data: datasets.Dataset
) -> list[str]:
    """Refuse a checkpoint with other settings or data; return the permitted differences as 'key: old -> new'."""
    config = trainer.config
    saved = with_defaults(content["config"], to_json(type(config)()))
    changed = changed_keys(saved, to_json(config))
    # config.json already has the new values if a diverged run was resumed before and has saved nothing since
    allowed = AFTER_DIVERGENCE if folder.diverged or not folder.changes(config) else ()
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
            f"--batch-size and --accumulation whose product with {trainer.ranks.world_size} process(es) is "
            f"{content['global_batch']}"
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
    return [*changed, *_other_parts(saved, config)]


def _other_parts(saved: dict[str, Any], config: SharedConfig) -> list[str]:
    """Say that a step is divided differently: its images are the same, but not those of one forward pass."""
    before, now = saved["optim"]["accumulation"], config.optim.accumulation
    if before == now:
        return []
    return [
        f"optim.accumulation: {before} -> {now} (batch norms and some objectives relate the images of one forward pass, so the "
        "run will differ from one that keeps it)"
    ]


def _is_longer(saved: dict[str, Any], config: SharedConfig, steps_per_epoch: int) -> bool:
    """True if --max-steps or --epochs was raised; leaving out an earlier --max-steps does not count."""
    try:
        steps, epochs = saved["run"]["max_steps"], saved["run"]["epochs"]
        if config.run.max_steps is None:
            return bool(steps is None and config.run.epochs >= epochs)
        return bool(config.run.max_steps >= (steps or epochs * steps_per_epoch))
    except (LookupError, TypeError):
        return False


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
    """Refuse to overwrite a run without a usable checkpoint, unless it was stopped before the first one was complete.

    If ``is_common``, several runs need one of the same step, and this run may have a valid first checkpoint.

    Raises:
        ValueError: the folder holds records of a run; the message names them.
    """
    first = config.run.save_every(config.run.num_steps(steps_per_epoch))
    found = checkpoint.trace(folder.checkpoints, beyond=first, weights=not is_common)
    steps = [record["step"] for _, record in records.read(folder.path / records.NAME) if record is not None]
    if found is None and steps and max(steps) > first:
        found = f"{records.NAME} reaches step {max(steps):,}"
    if found is None and steps and (changed := folder.changes(config)):
        found = f"it was trained with other settings: {', '.join(changed[:6])}"
    if found is not None:
        several = "all runs that are trained together need one of the same step; " if is_common else ""
        raise ValueError(
            f"{folder.path} holds a run but no checkpoint to continue from, and starting over would overwrite it "
            f"({found}); {several}restore its checkpoints or choose another --run-dir"
        )


def init_from(state: TrainState, run: Path, ranks: Ranks) -> None:
    """Copy the weights of another run (its averages, if it has them) to the weights and to their averages.

    Raises:
        ValueError: it has no valid checkpoint, or only one of another model (the message names the keys).
    """
    found = next(checkpoint.newest_valid(RunFolder(run).checkpoints, functools.partial(_warn, ranks)), None)
    if found is None:
        raise ValueError(f"--init-from {run}: the folder has no valid checkpoint; give the folder of a trained run")
    path, content = found
    weights = content["model"] if content.get("ema") is None else content["ema"]
    load_state(state.model, weights, str(path))
    if state.ema is not None:
        load_state(state.ema.model, weights, str(path))
    if ranks.is_main:
        say(f"weights from {path}, of step {content.get('step')}", file=sys.stderr)
