"""One training run on one rank: steps, and between them logs, checkpoints, evaluations, figures and the ways to stop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch

import datasets
from launch.console import errors, figures
from launch.console.config import SharedConfig, to_json
from launch.families import family_of
from launch.machine import compiling, files, noise
from launch.machine.distributed import Ranks
from launch.results import encoding
from launch.training import checkpoint, evaluation, feeding, memory
from launch.training.folder import RunFolder
from launch.training.model import VAE
from launch.training.records import Monitor
from launch.training.step import StepReport, Trainer, TrainState
from metrics import elbo

SAMPLE_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
FIGURE_POOL = 1000  # images that figures of a whole distribution are drawn from
FIGURE_POOL_PIXELS = 2**26  # and what they may take, a quarter GiB as floats


class Due(NamedTuple):
    """What is to be done after a step."""

    log: bool
    save: bool
    evaluate: bool
    score: bool


@dataclass
class Run:
    """One training run on one rank: its parts, and what happens on the way."""

    config: SharedConfig
    ranks: Ranks
    folder: RunFolder
    train_data: datasets.Dataset
    valid_data: datasets.Dataset
    order: datasets.Batches
    total_steps: int
    trainer: Trainer
    monitor: Monitor
    stop: errors.StopRequest
    saved_step: int = 0
    """Step of the newest checkpoint that is known to be on the disk."""

    @property
    def state(self) -> TrainState:
        """What is trained."""
        return self.trainer.state

    def every(self, typed: int | None, default: int) -> int:
        """An interval in steps."""
        return typed or max(1, default)

    def save(self) -> None:
        """Write a checkpoint from rank 0; a full disk is reported and training goes on with the older ones."""
        if not self.ranks.is_main:
            return
        content = {
            **self.state.state_dict(),
            "config": to_json(self.config),
            "world_size": self.ranks.world_size,
            "global_batch": self.order.batch_size,
            "num_images": self.order.num_images,
            "recipe": self.train_data.recipe,
        }
        keep = self.config.run.keep_checkpoints + bool(self.state.num_bad_in_a_row)  # it must not push out a good one
        try:
            checkpoint.save(self.folder.checkpoints, self.state.step, content, keep=keep)
            self.saved_step = self.state.step
        except OSError as error:
            self.monitor.say(
                f"warning: the checkpoint of step {self.state.step} could not be written ({error.strerror or error}); "
                f"training goes on, earlier checkpoints are kept; make room in {self.folder.checkpoints}"
            )

    def require_saved(self) -> None:
        """Try once more where the last checkpoint was refused, and do not end as if it were there.

        Raises:
            OSError: on every rank.
        """
        if self.saved_step != self.state.step:
            self.save()
        saved_step = self.ranks.from_main(self.saved_step)
        if saved_step != self.state.step:
            raise OSError(
                f"the weights of step {self.state.step} are on no disk, the newest checkpoint is of step {saved_step}; "
                f"make room in {self.folder.checkpoints} and run this again with --resume auto"
            )

    def log_step(self, report: StepReport, seconds: float, steps: int) -> None:
        """Scalars of a training step, averaged over the ranks."""
        names = sorted(report.terms)
        values = torch.stack([report.terms[n].double() for n in names] + [report.grad_norm.double()])
        stacked = torch.cat([values, report.kl_per_group.double()]).cpu()
        mean = torch.stack(self.ranks.gather(stacked)).mean(0).tolist()
        terms = dict(zip(names, mean, strict=False))
        num_dims = self.valid_data.spec.num_dims
        scalars = {f"train/{n}": v for n, v in terms.items()}
        scalars["train/negative_elbo"] = -terms["elbo"]
        scalars["train/bits_per_dim"] = float(elbo.bits_per_dim(-terms["elbo"], num_dims))
        scalars |= {f"kl_group_train/{i:02d}": v for i, v in enumerate(mean[len(names) + 1 :])}
        rate = self.order.batch_size * steps / max(seconds, 1e-9)
        scalars |= {
            "optim/lr": report.lr,
            "optim/grad_norm": mean[len(names)],
            "optim/skipped_steps": self.state.num_skipped,
            "speed/images_per_s": rate,
            "speed/images_seen": float(self.state.step * self.order.batch_size),
        }
        if self.ranks.device.type == "cuda":
            scalars["memory/peak_GiB"] = torch.cuda.max_memory_allocated() / memory.GIB
        self.monitor.scalars(self.state.step, scalars)
        shown = {
            "loss": terms["loss"],
            "bits/dim": scalars["train/bits_per_dim"],
            "KL": terms["rate"],
            "images/s": rate,
        }
        self.monitor.progress(self.state.step, shown)

    def evaluate(self, *, final: bool = False) -> dict[str, Any]:
        """Held-out numbers into the records; figures beside them."""
        log, model = self.config.log, self.state.averaged
        try:
            result = evaluation.evaluate(
                model,
                self.valid_data,
                self.ranks,
                batch_size=log.eval_batch_size,
                seed=self.config.run.seed,
                num_images=log.final_eval_images if final else log.eval_images,
                importance_draws=log.iw_samples if final else 0,
                should_stop=lambda: self.stop.asked,
            ).summary()
        except evaluation.Stopped:
            self.preempted()
        scalars = {f"val/{k}": v for k, v in result.items() if isinstance(v, float) and not k.endswith("_95")}
        scalars["val/negative_elbo"] = -result["elbo"]
        scalars["val/active_units"] = float(result["active_units"])
        scalars |= {f"kl_group/{i:02d}": v for i, v in enumerate(result["kl_group"])}
        self.monitor.scalars(self.state.step, scalars)
        self.monitor.say(f"step {self.state.step} held out: {evaluation.describe(result)}")
        self._warn_of_collapse(result)
        if self.ranks.is_main:
            self.draw(model, result["kl_group"])
        self.monitor.flush()
        return result

    def score(self) -> dict[str, float]:
        """Cheap scores of the code of some held-out images."""
        size, seed = self.config.log.eval_batch_size, self.config.run.seed
        return encoding.cheap_scores(self.state.averaged, self.valid_data, self.ranks, batch_size=size, seed=seed)

    def _warn_of_collapse(self, result: Mapping[str, Any]) -> None:
        if result["rate"] < 0.05 or result["active_units"] == 0:
            self.monitor.say(
                f"warning: posterior collapse, KL {result['rate']:.3g} nats, {result['active_units']} of "
                f"{result['num_units']} latent units active: the latents say next to nothing about the image"
            )

    @torch.no_grad()
    def draw(self, model: VAE, kl_group: list[float]) -> None:
        """Samples at several temperatures, reconstructions, and the KL of each group."""
        count, step, device = self.config.log.figure_images, self.state.step, self.ranks.device
        pictures = {}
        for temperature in SAMPLE_TEMPERATURES:
            source = noise.generator(device, noise.FIGURES, self.config.run.seed)
            pictures[f"samples_t{temperature}"] = figures.grid(model.sample(count, temperature, generator=source))
        x = self.spread_images(count)
        pictures["reconstruction"] = figures.pairs(x, model.reconstruct(x))
        pictures["kl_per_group"] = figures.kl_bars(kl_group)
        spread = self.spread_images(FIGURE_POOL)
        pictures |= family_of(self.config).figures(model, spread, self.config.run.seed)
        for name, picture in pictures.items():
            self.monitor.image(step, f"images/{name}", picture)
            with self.monitor.best_effort(f"figure {name}"):
                figures.save(picture, self.folder.figures / f"{name}.png")

    def spread_images(self, count: int) -> torch.Tensor:
        """Up to ``count`` held-out images as floats, evenly spread over the split, fewer where they are large."""
        data = self.valid_data
        count = max(1, min(count, len(data), FIGURE_POOL_PIXELS // data.spec.num_dims))
        return evaluation.to_float(data.images(datasets.spread(len(data), count)), data.spec, self.ranks.device)

    def loop(self) -> None:
        """Train from the state's step to the end, or to a stop.

        Raises:
            Preempted: asked to stop; a checkpoint is saved.
            FloatingPointError: too many steps in a row were not finite.
        """
        end = min(self.total_steps, self.config.run.stop_at_step or self.total_steps)
        step = self.state.step
        if self._due(step, end).evaluate and not self.ranks.from_main(self.monitor.evaluated):
            self.evaluate()  # the run was stopped between this step and its evaluation
        if step >= end:
            return
        unread: deque[tuple[datasets.Batch, StepReport]] = deque()
        device = self.ranks.device
        kept = feeding.keep(self.config.run, self.train_data, device)
        with feeding.loader(self.train_data, self.order, step, end - step, device, kept) as batches:
            since, last_logged = time.monotonic(), step
            for batch in batches:
                report = self._step(batch)
                unread.append((batch, report))
                step = self.state.step
                due = self._due(step, end)
                if any(due):
                    self.trainer.settle()
                stop = self._look_at(unread)
                if due.log:
                    self.log_step(report, time.monotonic() - since, step - last_logged)
                    since, last_logged = time.monotonic(), step
                if due.save and (not self.state.num_bad_in_a_row or step == end):
                    self.save()  # between steps that are not finite none is saved: rotation keeps the good ones
                if stop and step < end:
                    self.preempted()
                if due.evaluate:
                    self.evaluate()
                if due.score:
                    self.monitor.scalars(step, self.score())
                if due.evaluate or due.score:
                    since, last_logged = time.monotonic(), step

    def _due(self, step: int, end: int) -> Due:
        """What follows ``step``, of a loop that ends at ``end``."""
        log, total = self.config.log, self.total_steps
        save_every = self.every(self.config.run.checkpoint_every, min(1000, total // 20))
        return Due(
            log=step % log.log_every == 0 or step == end,
            save=step % save_every == 0 or step == end,
            evaluate=0 < step < total and step % self.every(log.eval_every, total // 10) == 0,
            score=log.score_every is not None and step % log.score_every == 0,
        )

    def _step(self, batch: datasets.Batch) -> StepReport:
        """Train on a batch.

        Raises:
            Preempted: what asked for a stop ended the compiler too; that step is lost.
            ValueError: the compiler failed.
        """
        try:
            return self.trainer.train_step(batch.on(self.ranks.device), stop=self.stop.asked)
        except RuntimeError as error:
            if not compiling.failed(error):
                raise
            if self.stop.asked:
                self._mark_preempted()
                raise errors.Preempted(
                    f"stopped on request while compiling, the last checkpoint is of step {self.saved_step}; "
                    "go on with --resume auto"
                ) from error
            first = str(error).strip().splitlines()[0][:200].replace("; ", ", ")
            raise ValueError(f"torch.compile failed ({first}); leave out --compile, or see --debug") from error

    def _look_at(self, unread: deque[tuple[datasets.Batch, StepReport]]) -> bool:
        """Say what settled steps have to say; whether they ask to stop."""
        stop = False
        while unread and unread[0][1].settled:
            batch, report = unread.popleft()
            for note in report.notes:
                self.monitor.say(f"warning: {note}")
            self.stop_when_diverged(batch, report)
            stop = stop or report.stop
        return stop

    def preempted(self) -> NoReturn:
        """Save what is not saved yet, mark the folder, and stop."""
        self.trainer.settle()
        step = self.state.step
        if self.saved_step != step:
            self.save()
        self._mark_preempted()
        saved = "checkpoint saved" if self.saved_step == step else f"the last checkpoint is of step {self.saved_step}"
        raise errors.Preempted(f"stopped on request at step {step}, {saved}; go on with --resume auto")

    def _mark_preempted(self) -> None:
        if self.ranks.is_main:
            with self.monitor.best_effort("marker preempted"):
                files.write_text(self.folder.path / "preempted", f"{self.saved_step}\n")

    def stop_when_diverged(self, batch: datasets.Batch, report: StepReport) -> None:
        """Leave a diagnosis and stop where too many steps in a row were not finite."""
        if self.state.num_bad_in_a_row < self.config.run.max_bad_steps:
            return
        newest = checkpoint.find(self.folder.checkpoints)
        rows = self.ranks.gather({"indices": batch.indices.tolist(), "loss": float(report.terms["loss"])})
        if self.ranks.is_main:
            diagnosis = {
                "step": report.step + 1,
                "epoch": batch.epoch,
                "ranks": rows,
                "terms": {k: float(v) for k, v in report.terms.items()},
                "kl_per_group": [float(v) for v in report.kl_per_group],
                "last_good_checkpoint": newest[0].name if newest else None,
            }
            with self.monitor.best_effort("diagnosis diverged.json"):
                self.folder.write_json("diverged.json", diagnosis)
        raise FloatingPointError(
            f"{self.state.num_bad_in_a_row} steps in a row were not finite, up to step {report.step + 1}; see "
            f"{self.folder.path / 'diverged.json'}, then go on with --resume auto and a lower --lr, or --grad-clip, "
            "or --precision fp32"
        )
