"""From a configuration to a trained run folder: what the training scripts of both families share."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import datasets
from launch.console import errors
from launch.console.config import SharedConfig, differences
from launch.families import family_of
from launch.machine import compiling, distributed
from launch.machine.distributed import Ranks
from launch.training import evaluation, feeding, memory
from launch.training.folder import RunFolder, write_config
from launch.training.loop import Run
from launch.training.model import as_module
from launch.training.records import Monitor
from launch.training.resume import init_from, records, resume
from launch.training.step import Trainer, new_state, resolve_precision


def default_run_dir(config: SharedConfig) -> Path:
    """runs/<dataset>-<preset>-seed<seed>."""
    return Path("runs") / f"{config.data.dataset}-{config.preset}-seed{config.run.seed}"


def announce(
    config: SharedConfig,
    preset: SharedConfig,
    opened: tuple[datasets.Dataset, datasets.Dataset],
    ranks: Ranks,
    order: datasets.Batches,
    total_steps: int,
) -> None:
    """One line per value that differs from the preset, then what is about to happen."""
    data, held_out = opened
    spec, run = data.spec, config.run
    print(f"preset {config.preset}; changed by flags:" if differences(config, preset) else f"preset {config.preset}")
    for name, value, default in differences(config, preset):
        print(f"  {name} = {value}  (preset: {default})")
    where = ", kept on the device" if feeding.keeps_on_device(run, data, ranks.device) else ""
    print(
        f"data   {data.name}: {len(data):,} training images {spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bits"
        f"{where}"
    )
    if data.note:
        print(f"       {data.note}")
    print(f"       held out on the way: {len(held_out):,} images of split {held_out.recipe.get('split', 'valid')}")
    print(
        f"batch  {run.batch_size} per process x {ranks.world_size} process(es) x accumulation {config.optim.accumulation} = "
        f"{order.batch_size}; {total_steps:,} steps, {total_steps * order.batch_size / len(data):.1f} epochs"
    )
    for line in family_of(config).describe(config, spec):
        print(line)
    needs = memory.count(config, spec)
    print(
        f"model  {needs.num_parameters / 1e6:.2f} M parameters; "
        f"a step needs about {needs.step_gib(run.batch_size):.1f} GiB in fp32 "
        f"({needs.activation_bytes_per_image / 2**20:.0f} MiB an image), {resolve_precision(run.precision, ranks.device)} "
        f"on {ranks.device.type}",
        flush=True,
    )


def claim(folder: RunFolder, config: SharedConfig, ranks: Ranks) -> None:
    """Claim the folder on rank 0; what it says is raised on all ranks."""
    fault: str | None = None
    if ranks.is_main:
        try:
            folder.claim(resume=config.run.resume == "auto")
        except (ValueError, OSError) as error:
            fault = str(error)
    fault = ranks.from_main(fault)
    if fault:
        raise ValueError(fault)


def train(config: SharedConfig, preset: SharedConfig, *, dry_run: bool = False) -> None:
    """Train what ``config`` says and leave a run folder.

    Args:
        config: complete configuration.
        preset: what it was before the user's flags, for the list of what differs.
        dry_run: say what would happen, and stop.
    """
    stop = errors.StopRequest()
    with distributed.joined(config.run.device, config.run.timeout_minutes, remedy="go on with --resume auto") as ranks:
        _train(config, preset, ranks, stop, dry_run=dry_run)


def _train(
    config: SharedConfig, preset: SharedConfig, ranks: Ranks, stop: errors.StopRequest, *, dry_run: bool
) -> None:
    run = config.run
    torch.manual_seed(run.seed)
    run_dir = run.run_dir or default_run_dir(config)
    train_data, valid_data = open_data(config, ranks, recorded=RunFolder(run_dir).recipe)
    global_batch = run.batch_size * ranks.world_size * config.optim.accumulation
    order = datasets.Batches(len(train_data), global_batch, run.seed, ranks.rank, ranks.world_size)
    total_steps = run.num_steps(order.steps_per_epoch)
    if run.batch_size == ranks.world_size == 1:
        memory.check_batch_norm(config, train_data.spec)
    if ranks.is_main:
        announce(config, preset, (train_data, valid_data), ranks, order, total_steps)
    if dry_run:
        return
    config = replace(config, run=replace(run, run_dir=run_dir))
    step = trainer_for(config, train_data, ranks, total_steps)  # before the folder: what fails leaves nothing
    if run.init_from is not None:
        init_from(step.state, run.init_from, ranks)
    with RunFolder(run_dir) as folder:
        claim(folder, config, ranks)
        resumed_at = resume(
            step.state,
            folder,
            config,
            ranks,
            global_batch=order.batch_size,
            data=train_data,
        )
        if ranks.from_main(resumed_at >= total_steps and (folder.path / "summary.json").exists()):
            if ranks.is_main:
                print(f"{folder.path} is complete; next: python launch/evaluate.py --run {folder.path}")
            return
        stop.deferred = True  # from here on there may be something to save
        if ranks.is_main:
            if not resumed_at or not records(folder, config):
                write_config(folder, config, train_data)  # first: without it the folder is nobody's
            folder.reopen(resumed_at)
            (folder.path / "preempted").unlink(missing_ok=True)
        with Monitor(folder.path, active=ranks.is_main, resume_step=resumed_at, total_steps=total_steps) as monitor:
            running = Run(
                config, ranks, folder, train_data, valid_data, order, total_steps, step, monitor, stop, resumed_at
            )
            started = time.monotonic()
            running.loop()
            if running.state.step >= total_steps:
                finish(running, time.monotonic() - started)
            else:
                running.require_saved()


def open_data(
    config: SharedConfig, ranks: Ranks, *, recorded: dict[str, Any] | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out images; rank 0 builds the cache, the others find it.

    Args:
        config: says which data.
        ranks: of the run.
        recorded: the recipe of a run that is resumed, whose rules for splits are kept.

    Raises:
        ValueError: they lack the factors that the configuration wants to score, or no device can keep them.
    """
    with ranks.main_first():
        train_data = config.data.open("train", seed=config.run.seed, recorded=recorded)
        valid_data = config.data.open_held_out(recorded=recorded)
    if config.log.score_every and not valid_data.factor_names:
        raise ValueError(f"--score-every: {valid_data.name} has no ground-truth factors; leave it out")
    feeding.keeps_on_device(config.run, train_data, ranks.device)
    return train_data, valid_data


def trainer_for(config: SharedConfig, data: datasets.Dataset, ranks: Ranks, total_steps: int) -> Trainer:
    """A fresh model, objective, optimiser and what steps them; the same weights on every rank."""
    family = family_of(config)
    model = family.build_model(config, data.spec)
    as_module(model).to(ranks.device)
    objective = family.build_objective(config, model, total_steps, len(data))
    as_module(objective).to(ranks.device)
    if config.run.compile:
        compiling.compile_parts(model, ranks.device)
    state = new_state(model, objective, config, ranks.device)
    return Trainer(state, config, ranks, total_steps)


def finish(run: Run, seconds: float) -> None:
    """The last evaluation, and what to look at.

    Raises:
        FloatingPointError: on every rank, after the summary is written: the evaluation is not finite, or no step was.
    """
    result = run.evaluate(final=True)
    run.require_saved()  # before the summary, which says that the run is complete
    summary = {
        "step": run.state.step,
        "images_seen": run.state.step * run.order.batch_size,
        "seconds": seconds,
        "skipped_steps": run.state.num_skipped,
        "num_parameters": sum(p.numel() for p in as_module(run.state.model).parameters()),
        "valid": result,
    }
    scores = {f"hparam/{k}": float(result[k]) for k in ("bits_per_dim", "elbo", "rate", "distortion", "psnr")}
    if all(math.isfinite(v) for v in scores.values()):
        run.monitor.hparams(run.state.step, {n: v for n, v, _ in differences(run.config, type(run.config)())}, scores)
    if run.ranks.is_main:
        run.folder.write_json("summary.json", summary)
        path = run.folder.path
        print(f"done: {evaluation.describe(result)}")
        print(f"look at  {path / 'figures'}/reconstruction.png, samples_t0.8.png, kl_per_group.png")
        print(f"watch    tensorboard --logdir {path.parent}")
        print(f"next     python launch/evaluate.py --run {path}   python launch/sample.py --run {path}")
        sys.stdout.flush()
    if run.state.num_skipped >= run.state.step:
        raise FloatingPointError(
            f"every one of the {run.state.step} steps was skipped, so nothing was learnt; give a lower --lr, a larger "
            "--grad-skip or --precision fp32"
        )
    evaluation.require_finite(result)
