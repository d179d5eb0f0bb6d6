"""The start of a training: from a configuration to a trained run folder, for every family."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import datasets
from launch.console import errors
from launch.console.config import SharedConfig, differences
from launch.console.terminal import say
from launch.families import family_of
from launch.machine import distributed, execution
from launch.machine.distributed import Ranks
from launch.training import checkpoint, loop, memory
from launch.training.folder import RunFolder
from launch.training.loop import Loop, TakeStep
from launch.training.records import Monitor
from launch.training.replicas import ReplicaTrainer
from launch.training.resume import init_from, resume_all
from launch.training.run import Run, Score
from launch.training.step import Trainer, new_state, resolve_precision

FEW_STEPS = 500  # fewer steps are hardly enough to learn anything; checked if the length is given in epochs


def default_run_dir(config: SharedConfig) -> Path:
    """Folder of a run without --run-dir: runs/<dataset>-<family>-<preset>-<objective>-seed<seed>.

    For a folder of images, its name takes the place of the data set's.
    """
    family, root = family_of(config), config.data.data_root
    setting = family.setting(config)
    data = root.resolve().name if config.data.dataset == "folder" and root is not None else config.data.dataset
    parts = [data or config.data.dataset, family.name, config.preset, "" if setting == config.preset else setting]
    name = re.sub(r"[^\w.]+|_", "-", "-".join(filter(None, parts)))
    path = Path("runs") / f"{name}-seed{config.run.seed}"
    older = Path("runs") / f"{config.data.dataset}-{config.preset}-seed{config.run.seed}"  # name before 2026-11-28
    return older if config.run.resume == "auto" and older.exists() and not path.exists() else path


def announce(config: SharedConfig, preset: SharedConfig, plan: Plan, ranks: Ranks) -> None:
    """Print one line per value that differs from the preset, then the plan of the run."""
    data, held_out, total_steps = plan.train_data, plan.valid_data, plan.total_steps
    spec, run, global_batch = data.spec, config.run, plan.order.batch_size
    say(f"preset {config.preset}; changed by flags:" if differences(config, preset) else f"preset {config.preset}")
    for name, value, default in differences(config, preset):
        say(f"  {name} = {value}  (preset: {default})")
    where = ", kept on the device" if loop.keeps_on_device(run, data, ranks.device) else ""
    say(
        f"data   {data.name}: {len(data):,} training images {spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bits"
        f"{where}"
    )
    if data.note:
        say(f"       {data.note}")
    say(f"       held out during training: {len(held_out):,} images of split {held_out.recipe.get('split', 'valid')}")
    say(
        f"batch  {run.batch_size} per process x {ranks.world_size} process(es) x accumulation {config.optim.accumulation} = "
        f"{global_batch}; {total_steps:,} steps, {total_steps * global_batch / len(data):.1f} epochs"
    )
    if run.max_steps is None and total_steps < FEW_STEPS:
        say(
            f"       this is short: {run.epochs} epochs of so few images are {total_steps} steps, and an image model "
            "needs thousands; give --max-steps 3000"
        )
    for line in family_of(config).describe(config, spec):
        say(line)


def _announce_model(num_parameters: int, config: SharedConfig, spec: datasets.ImageSpec, device: torch.device) -> None:
    """Print the size of the model and, on a GPU, the memory of a step, which takes a second or more to count."""
    say(
        f"model  {num_parameters / 1e6:.2f} M parameters, {resolve_precision(config.run.precision, device)} on {device.type}"
    )
    if device.type == "cuda":
        needs = memory.count(config, spec)
        say(
            f"       a step needs about {needs.step_gib(config.run.batch_size):.1f} GiB in fp32 "
            f"({needs.activation_bytes_per_image / 2**20:.0f} MiB per image)"
        )


def _on_main(ranks: Ranks, act: Callable[[], None]) -> None:
    """Act on rank 0; raise its error on all ranks."""
    fault: str | None = None
    if ranks.is_main:
        try:
            act()
        except (ValueError, OSError) as error:
            fault = str(error)
    fault = ranks.from_main(fault)
    if fault:
        raise ValueError(fault)


def train(
    config: SharedConfig,
    preset: SharedConfig,
    *,
    members: Mapping[str, SharedConfig] | None = None,
    dry_run: bool = False,
    score: Score | None = None,
) -> None:
    """Train the run that ``config`` describes and write its folder.

    Args:
        config: complete configuration.
        preset: the configuration before the user's flags, to list the differences.
        members: configurations, by name, of several runs that differ only in seed, folder and the weights of the
            objective. They are trained as one batched model, and ``config`` holds their shared settings.
        dry_run: only print the plan, whether it fits this machine and how long it takes.
        score: cheap scores of a model's codes, for ``--score-every``.

    Raises:
        ValueError: a folder holds another run, the data do not fit the configuration, or there are members and several
            processes.
    """
    stop = errors.StopRequest()
    with distributed.joined(
        config.run.device, config.run.timeout_minutes, remedy="continue with --resume auto"
    ) as ranks:
        plan = _plan(config, members, ranks, is_new=not dry_run)
        if ranks.is_main:
            announce(config, preset, plan, ranks)
            if members:
                say(f"{len(members)} replicas of this, trained as one batched model: {' '.join(members)}")
        if dry_run:
            _try_out(plan, ranks)
        else:
            _train(plan, ranks, stop, score)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of the training: one run, or the members of a batched model, by name."""

    configs: Mapping[str, SharedConfig]
    folders: Mapping[str, RunFolder]
    train_data: datasets.Dataset
    valid_data: datasets.Dataset
    orders: Mapping[str, datasets.Batches]
    total_steps: int

    def data_of(self, name: str) -> datasets.Dataset:
        """Training images of a run. Replicas share the images, and each has the random views of its seed."""
        if len(self.configs) == 1:
            return self.train_data
        recorded = self.folders[name].recipe or {}
        return datasets.with_seed(self.train_data, recorded.get("seed", self.configs[name].run.seed))

    @property
    def order(self) -> datasets.Batches:
        """Batches of the first run; those of the others differ only in their seed."""
        return next(iter(self.orders.values()))


def _plan(config: SharedConfig, members: Mapping[str, SharedConfig] | None, ranks: Ranks, *, is_new: bool) -> Plan:
    """Open the data and refuse a training that cannot work; with ``is_new`` also one whose folder holds a run."""
    run_dir = config.run.run_dir or default_run_dir(config)
    configs = members or {"": replace(config, run=replace(config.run, run_dir=run_dir))}
    folders = {name: RunFolder(each.run.run_dir or run_dir) for name, each in configs.items()}
    configs = {name: _with_recorded_start(each, folders[name]) for name, each in configs.items()}
    if members:
        _refuse_members(folders, ranks)
    if is_new:  # before the data are decoded, which can take minutes

        def refuse() -> None:
            for folder in folders.values():
                folder.refuse_a_run(config.run.resume == "auto")

        _on_main(ranks, refuse)
    recorded = next((found for folder in folders.values() if (found := folder.recipe)), None)
    train_data, valid_data = open_data(config, ranks, recorded=recorded)
    if config.run.batch_size == ranks.world_size == 1:
        memory.check_batch_norm(config, train_data.spec)
    size = config.run.batch_size * ranks.world_size * config.optim.accumulation
    orders = {
        name: datasets.Batches(
            len(train_data),
            size,
            each.run.seed,
            ranks.rank,
            ranks.world_size,
            accumulation=config.optim.accumulation,
        )
        for name, each in configs.items()
    }
    steps_per_epoch = next(iter(orders.values())).steps_per_epoch
    return Plan(
        configs=configs,
        folders=folders,
        train_data=train_data,
        valid_data=valid_data,
        orders=orders,
        total_steps=config.run.num_steps(steps_per_epoch),
    )


def _with_recorded_start(config: SharedConfig, folder: RunFolder) -> SharedConfig:
    """The configuration with the recorded --init-from of the run that it resumes, which need not be typed again."""
    if config.run.resume != "auto" or config.run.init_from is not None or folder.begun_with is None:
        return config
    return replace(config, run=replace(config.run, init_from=folder.begun_with))


def _refuse_members(folders: Mapping[str, RunFolder], ranks: Ranks) -> None:
    if ranks.world_size > 1:
        raise ValueError(
            f"replicas train in one process, but torchrun started {ranks.world_size}; start plain python, once for each GPU, "
            "with its own --seed and CUDA_VISIBLE_DEVICES"
        )
    parent = next(iter(folders.values())).path.parent
    if RunFolder(parent).config_path.exists():
        raise ValueError(f"{parent} already holds a run; choose another --run-dir for the folders of the replicas")


def _try_out(plan: Plan, ranks: Ranks) -> None:
    """Print whether a step fits this machine and, if so, how long the run takes, measured by steps that are discarded."""
    config, data, device = next(iter(plan.configs.values())), plan.train_data, ranks.device
    needed, free = memory.needed_bytes(config, data.spec, len(plan.configs), device), memory.free_bytes(device)
    if ranks.is_main:
        _announce_model(memory.count(config, data.spec).num_parameters, config, data.spec, device)
        say(memory.says_memory(needed, free, device))
    if any(ranks.maximum(not memory.fits(needed, free))):
        return
    short = {name: memory.shortened(each, data.spec, device) for name, each in plan.configs.items()}
    size = next(iter(short.values())).run.batch_size
    take_step = _take_step([_new_trainer(each, plan, ranks) for each in short.values()])
    images = data.images([row % len(data) for row in range(size * len(short))]).to(device)
    seconds = memory.seconds_of_step(take_step, images, device)
    if ranks.is_main:
        say(memory.says_time(seconds, size, config.run.batch_size * config.optim.accumulation, plan.total_steps))


def _train(plan: Plan, ranks: Ranks, stop: errors.StopRequest, score: Score | None) -> None:
    # trainers before folders, so that a failure here leaves nothing behind
    trainers = {name: _new_trainer(each, plan, ranks) for name, each in plan.configs.items()}
    # a run with a checkpoint no longer needs --init-from; replicas start over unless each of them has a checkpoint
    if not ranks.from_main(all(checkpoint.find(folder.checkpoints) for folder in plan.folders.values())):
        for trainer in trainers.values():
            _init(trainer)
    if ranks.is_main:
        first = next(iter(trainers.values()))
        size = sum(p.numel() for p in first.state.model.parameters())
        _announce_model(size, first.config, plan.train_data.spec, ranks.device)
    with contextlib.ExitStack() as stack:
        for name, folder in plan.folders.items():
            stack.enter_context(folder)
            _on_main(ranks, functools.partial(folder.claim, resume=plan.configs[name].run.resume == "auto"))
        start = resume_all(trainers, plan.folders, global_batch=plan.order.batch_size, data=plan.train_data)
        if ranks.from_main(start >= plan.total_steps and all(folder.has_summary for folder in plan.folders.values())):
            if ranks.is_main:
                say(_says_complete([folder.path for folder in plan.folders.values()]))
            return
        stop.deferred = True  # from here on there may be something to save
        runs: list[Run] = []
        for name, trainer in trainers.items():
            monitor = stack.enter_context(_begin(plan, name, trainer, start, shows_progress=not runs))
            run = Run(
                name=name,
                folder=plan.folders[name],
                train_data=plan.data_of(name),
                valid_data=plan.valid_data,
                order=plan.orders[name],
                trainer=trainer,
                monitor=monitor,
                stop=stop,
                score=score,
                saved_step=start,
            )
            runs.append(run)
        Loop(runs, _take_step(list(trainers.values()))).train()


def _begin(plan: Plan, name: str, trainer: Trainer, start: int, *, shows_progress: bool) -> Monitor:
    """Write the record of a run that begins or continues at step ``start``; return the monitor of its progress."""
    folder, config = plan.folders[name], plan.configs[name]
    if trainer.ranks.is_main:
        folder.begin(
            config, plan.data_of(name), plan.order.batch_size, is_new=not start or bool(folder.changes(config))
        )
        folder.reopen(start)
    return Monitor(
        folder.path,
        active=trainer.ranks.is_main,
        resume_step=start,
        total_steps=plan.total_steps,
        name=name,
        shows_progress=shows_progress,
        shows=family_of(config).measure(config, plan.train_data.spec).shows,
    )


def _new_trainer(config: SharedConfig, plan: Plan, ranks: Ranks) -> Trainer:
    """Build a trainer whose weights depend only on the run's seed."""
    torch.manual_seed(config.run.seed)
    return trainer_for(config, plan.train_data, ranks, plan.total_steps)


def _init(trainer: Trainer) -> None:
    """Begin with the weights of the run that --init-from names, if any."""
    if trainer.config.run.init_from is not None:
        init_from(trainer.state, trainer.config.run.init_from, trainer.ranks)


def _take_step(trainers: Sequence[Trainer]) -> TakeStep:
    """The step function of one trainer, or of several at once."""
    if len(trainers) > 1:
        batch = family_of(trainers[0].config).batch
        assert batch is not None, "only a family that offers replicas has members"
        return ReplicaTrainer(trainers, batch).train_step
    only = trainers[0]
    return lambda images, stop: [only.train_step(images, stop=stop)]


def _says_complete(paths: Sequence[Path]) -> str:
    if len(paths) == 1:
        return f"{paths[0]} is complete; next: python launch/evaluate.py --run {paths[0]}"
    parent = paths[0].parent
    return f"{parent} is complete; next: python launch/compare.py --runs {parent}/*"


def open_data(
    config: SharedConfig, ranks: Ranks, *, recorded: dict[str, Any] | None = None
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out images; rank 0 builds the cache, the others find it.

    Args:
        config: configuration of the run.
        ranks: ranks of the run.
        recorded: recipe of a resumed run; its rules for splits are kept.

    Raises:
        ValueError: scores are requested but the data have no factors, or the images can't be kept on the device.
    """
    with ranks.main_first():
        train_data = config.data.open("train", seed=config.run.seed, recorded=recorded)
        valid_data = config.data.open_held_out(recorded=recorded)
    if config.log.score_every and not valid_data.factor_names:
        raise ValueError(f"--score-every: {valid_data.name} has no ground-truth factors; leave it out")
    loop.keeps_on_device(config.run, train_data, ranks.device)
    return train_data, valid_data


def trainer_for(config: SharedConfig, data: datasets.Dataset, ranks: Ranks, total_steps: int) -> Trainer:
    """A trainer with a fresh model, objective and optimiser; the same weights on every rank."""
    family = family_of(config)
    model = family.build_model(config, data.spec)
    model.to(ranks.device)
    objective = family.build_objective(config, model, total_steps, len(data))
    objective.to(ranks.device)
    if config.run.compile:
        execution.compile_parts(model, ranks.device)
    state = new_state(model, objective, config, ranks.device)
    return Trainer(state, config, ranks, total_steps)
