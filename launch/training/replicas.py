"""Several runs of a flat VAE trained at once as one batched model: other seeds, other betas, a run folder for each.

Each is the run that its seed and beta would be alone: the same first weights, images and noise, the same records and
checkpoints, so that everything that reads a run reads these too.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

import datasets
from launch.console import errors
from launch.families.flat_vae import FlatTrainConfig
from launch.machine import distributed
from launch.machine.distributed import Ranks
from launch.training import checkpoint, feeding, start
from launch.training.folder import RunFolder, write_config
from launch.training.loop import Run
from launch.training.records import Monitor
from launch.training.replica_step import Orders, ReplicaTrainer
from launch.training.resume import records, resume
from launch.training.step import StepReport, Trainer


@dataclass(frozen=True, kw_only=True)
class ReplicatedTrainConfig(FlatTrainConfig):
    """Train a flat VAE, or several of them at once."""

    replicas: int = 1
    """Seeds --seed, --seed + 1, ... trained at once as one batched model, each in a run folder under --run-dir."""
    replica_betas: tuple[float, ...] = ()
    """Values of --beta trained at once in the same way, each with every seed."""

    def __post_init__(self) -> None:
        """Refuse what cannot be batched."""
        if self.replicas < 1:
            raise ValueError(f"--replicas {self.replicas}; give 1 or more")
        names = [f"{beta:g}" for beta in self.replica_betas]
        if len(set(names)) < len(names):
            raise ValueError(f"--replica-betas {' '.join(names)}; give each value once")
        if not self.is_batched:
            return
        cannot = {
            "--objective factor, whose discriminator is trained beside it": self.objective.objective == "factor",
            f"--optimizer {self.optim.optimizer}, whose steps are counted for all": "fused_" in self.optim.optimizer,
            "--precision fp16, whose loss scale is one for all": self.run.precision == "fp16",
            "--keep-checkpoints 1, which a kill can leave at different steps": self.run.keep_checkpoints == 1,
        }
        for what, is_asked in cannot.items():
            if is_asked:
                raise ValueError(f"replicas can't be trained with {what}; change it or use launch/sweep.py")

    @property
    def is_batched(self) -> bool:
        """Whether this is more than a single run."""
        return self.replicas > 1 or bool(self.replica_betas)

    @property
    def single(self) -> FlatTrainConfig:
        """What all replicas share, as the configuration of one run."""
        return FlatTrainConfig(**{f.name: getattr(self, f.name) for f in fields(FlatTrainConfig)})

    @property
    def out(self) -> Path:
        """Where the run folders lie."""
        return self.run.run_dir or Path("runs") / f"{self.data.dataset}-{self.preset}-replicas"

    def runs(self) -> dict[str, FlatTrainConfig]:
        """The single runs by name, as launch/sweep.py names them."""
        runs = {}
        for beta in self.replica_betas or (None,):
            objective = self.objective
            if beta is not None:
                objective = replace(objective, beta=beta, beta_norm=None, beta_pixel_mean=None)
            for seed in range(self.run.seed, self.run.seed + self.replicas):
                name = f"seed{seed}" if beta is None else f"beta-{beta:g}-seed{seed}"
                run = replace(self.run, seed=seed, run_dir=self.out / name)
                runs[name] = replace(self.single, objective=objective, run=run)
        return runs


class Replicas:
    """The runs of one batched model: what :class:`Run` does, for all of them at the same steps.

    Args:
        runs: by name, on one process, at the same step.
        trainer: what steps all of them.
    """

    def __init__(self, runs: dict[str, Run], trainer: ReplicaTrainer) -> None:
        self.runs, self.trainer = runs, trainer
        self.first = next(iter(runs.values()))

    @property
    def lost(self) -> list[str]:
        """Names of the runs that diverged."""
        return [name for name, run in self.runs.items() if self.trainer.is_lost(run.state)]

    def train(self) -> None:
        """Train from where the runs are to their end, or to a stop, and summarise those that did not diverge.

        Raises:
            Preempted: asked to stop; a checkpoint of every run is saved.
            FloatingPointError: naming the runs that diverged.
        """
        started = time.monotonic()
        try:
            self._loop()
            lost = self.lost
            for name, run in self.runs.items():
                if name in lost:
                    continue
                if run.state.step >= run.total_steps:
                    start.finish(run, time.monotonic() - started)
                else:
                    run.require_saved()
        except errors.Preempted:
            for run in self.runs.values():
                with contextlib.suppress(errors.Preempted):
                    run.preempted()
            raise
        if lost:
            raise FloatingPointError(
                f"{len(lost)} of {len(self.runs)} replicas diverged ({', '.join(lost)}; see diverged.json there), the others "
                "went on; train these again with a lower --lr, or --grad-clip, or --precision fp32"
            )

    def _loop(self) -> None:
        first, runs = self.first, self.runs.values()
        log, run, total = first.config.log, first.config.run, first.total_steps
        eval_every = first.every(log.eval_every, total // 10)
        save_every = first.every(run.checkpoint_every, min(1000, total // 20))
        end, start = min(total, run.stop_at_step or total), first.state.step
        if start and start % eval_every == 0 and start != total:
            for each in runs:
                if not each.monitor.evaluated:
                    each.evaluate()  # stopped between this step and its evaluation
        if start >= end:
            return
        order, device = Orders([each.order for each in runs]), first.ranks.device
        kept = feeding.keep(run, first.train_data, device)
        with feeding.loader(first.train_data, order, start, end - start, device, kept) as batches:
            since, last_logged = time.monotonic(), start
            for batch in batches:
                reports = self.trainer.train_step(batch.on(device))
                step = first.state.step
                self._note(batch, reports)
                if step % log.log_every == 0 or step == end:
                    for each, report in zip(runs, reports, strict=True):
                        each.log_step(report, time.monotonic() - since, step - last_logged)
                    since, last_logged = time.monotonic(), step
                if step % save_every == 0 or step == end:
                    for each in runs:
                        each.save()
                if len(self.lost) == len(self.runs):
                    return
                if first.stop.asked and step < end:
                    first.preempted()
                if step % eval_every == 0 and step != total:
                    for each in runs:
                        each.evaluate()
                    since, last_logged = time.monotonic(), step
                if log.score_every and step % log.score_every == 0:
                    for each in runs:
                        each.monitor.scalars(step, each.score())
                    since, last_logged = time.monotonic(), step

    def _note(self, batch: datasets.Batch, reports: Sequence[StepReport]) -> None:
        """Say what was skipped; leave a diagnosis of a run that has just diverged."""
        size = len(batch.indices) // len(reports)
        for i, (run, report) in enumerate(zip(self.runs.values(), reports, strict=True)):
            for note in report.notes:
                run.monitor.say(f"warning: {note}")
                try:
                    run.stop_when_diverged(batch._replace(indices=batch.indices[i * size : (i + 1) * size]), report)
                except FloatingPointError as error:
                    run.monitor.say(f"warning: {error}; the other replicas go on")


def _new_trainer(config: FlatTrainConfig, data: datasets.Dataset, ranks: Ranks, total_steps: int) -> Trainer:
    """As a single run of this seed has it."""
    torch.manual_seed(config.run.seed)
    return start.trainer_for(config, data, ranks, total_steps)


def _resume(
    trainers: Sequence[Trainer], folders: Sequence[RunFolder], data: datasets.Dataset, global_batch: int
) -> int:
    """Claim the folders and go on from the newest step of which every run has a valid checkpoint; that step, or 0.

    A kill may have come between two of them.
    """
    for trainer, folder in zip(trainers, folders, strict=True):
        start.claim(folder, trainer.config, trainer.ranks)
    steps = [
        {int(content["step"]) for _, content in checkpoint.newest_valid(folder.checkpoints, lambda text: None)}
        for folder in folders
    ]
    common = max(set[int].intersection(*steps), default=0)
    if not common and any(steps):
        print("warning: the replicas have no checkpoint of one step in common; they start anew", file=sys.stderr)
    for trainer, folder in zip(trainers, folders, strict=True):
        resume(
            trainer.state,
            folder,
            trainer.config,
            trainer.ranks,
            global_batch=global_batch,
            data=data,
            until=common,
        )
    return common


def train_replicas(config: ReplicatedTrainConfig, preset: FlatTrainConfig, *, dry_run: bool = False) -> None:
    """Train what ``config`` says and leave a run folder for each replica.

    Args:
        config: complete configuration.
        preset: what it was before the user's flags, for the list of what differs.
        dry_run: say what would happen, and stop.

    Raises:
        ValueError: on several processes, or where another run is in the way.
    """
    if RunFolder(config.out).config_path.exists():
        raise ValueError(f"{config.out} already holds a run; choose another --run-dir for the folders of the replicas")
    stop, configs = errors.StopRequest(), config.runs()
    ranks = distributed.start(config.run.device)
    if ranks.world_size > 1:
        raise ValueError(
            f"replicas are trained by one process, these are {ranks.world_size}; start plain python, one for each GPU "
            "with its own --seed and CUDA_VISIBLE_DEVICES"
        )
    recorded = next((found for name in configs if (found := RunFolder(config.out / name).recipe)), None)
    data = start.open_data(config, ranks, recorded=recorded)
    size = config.run.batch_size * config.optim.accumulation
    orders = [datasets.Batches(len(data[0]), size, each.run.seed) for each in configs.values()]
    total_steps = config.run.num_steps(orders[0].steps_per_epoch)
    start.announce(config.single, preset, data, ranks, orders[0], total_steps)
    print(f"{len(configs)} replicas of this as one batched model: {' '.join(configs)}", flush=True)
    if dry_run:
        return
    trainers = [_new_trainer(each, data[0], ranks, total_steps) for each in configs.values()]
    with contextlib.ExitStack() as stack:
        folders = [stack.enter_context(RunFolder(config.out / name)) for name in configs]
        step = _resume(trainers, folders, data[0], size)
        if step >= total_steps and all((folder.path / "summary.json").exists() for folder in folders):
            print(
                f"{folders[0].path.parent} is complete; next: python launch/compare.py --runs {folders[0].path.parent}/*"
            )
            return
        stop.deferred = True  # from here on there may be something to save
        runs: dict[str, Run] = {}
        for name, folder, trainer, order in zip(configs, folders, trainers, orders, strict=True):
            if not step or not records(folder, configs[name]):
                write_config(folder, configs[name], data[0])
            (folder.path / "preempted").unlink(missing_ok=True)
            monitor = Monitor(
                folder.path,
                active=True,
                resume_step=step,
                total_steps=total_steps,
                name=name,
                shows_progress=not runs,
            )
            stack.enter_context(monitor)
            runs[name] = Run(configs[name], ranks, folder, *data, order, total_steps, trainer, monitor, stop, step)
        Replicas(runs, ReplicaTrainer(trainers)).train()
