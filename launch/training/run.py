"""One training run on one rank: its checkpoints, records, evaluations and figures, and the ways to stop."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import datasets
from datasets.spec import to_float
from launch.console import errors, figures
from launch.console.config import SharedConfig, differences, to_json
from launch.families import family_of
from launch.machine import files, noise
from launch.training import checkpoint, evaluation, memory
from launch.training.folder import RunFolder
from launch.training.records import Monitor
from launch.training.step import StepReport, Trainer, TrainState
from metrics import elbo
from metrics.model import VAE

SAMPLE_TEMPERATURES = (0.7, 0.8, 0.9, 1.0)
FIGURE_POOL = 1000  # number of images for figures of a whole distribution
FIGURE_POOL_PIXELS = 2**26  # bound on their number of pixels: a quarter of a GiB as floats
HEADLINES = ("bits_per_dim", "elbo", "rate", "distortion", "psnr")

SETTINGS = ("preset", "objective.", "model.", "optim.", "data.", "run.")  # in the order of TensorBoard's columns

Score = Callable[..., dict[str, float]]


def _settings(config: SharedConfig) -> dict[str, Any]:
    """Settings that differ from the defaults, the most influential first; those of the logs are left out."""
    found = {name: value for name, value, _ in differences(config, type(config)())}
    return {name: found[name] for start in SETTINGS for name in found if name.startswith(start)}


@dataclass(kw_only=True)
class Run:
    """A training run: its parts, and all work between its steps.

    Args:
        name: distinguishes the runs of one process; empty for a single run.
        score: cheap scores of a model's codes by tag, for ``--score-every``.
        saved_step: step of the newest checkpoint known to be on disk.
    """

    name: str
    folder: RunFolder
    train_data: datasets.Dataset
    valid_data: datasets.Dataset
    order: datasets.Batches
    trainer: Trainer
    monitor: Monitor
    stop: errors.StopRequest
    score: Score | None = None
    saved_step: int = 0
    lost_at: int | None = field(default=None, init=False)
    """Step at which the run diverged."""

    def __post_init__(self) -> None:
        self.config, self.ranks, self.total_steps = self.trainer.config, self.trainer.ranks, self.trainer.total_steps
        self.measure = family_of(self.config).measure(self.config, self.valid_data.spec)

    @property
    def state(self) -> TrainState:
        """The training state."""
        return self.trainer.state

    @property
    def is_lost(self) -> bool:
        """True if the run diverged."""
        return self.lost_at is not None

    @property
    def end(self) -> int:
        """Step at which this process stops."""
        return min(self.total_steps, self.config.run.stop_at_step or self.total_steps)

    # --- Actions after a step ---------------------------------------------------------------------------------

    def logs_at(self, step: int) -> bool:
        """True if scalars are recorded after ``step``."""
        return step % self.config.log.log_every == 0 or step == self.end

    def saves_at(self, step: int) -> bool:
        """True if a checkpoint is written after ``step``; by default after every twentieth of the run."""
        return step % self.config.run.save_every(self.total_steps) == 0 or step == self.end

    def evaluates_at(self, step: int) -> bool:
        """True if held-out images are evaluated after ``step``; by default every tenth of the run."""
        every = self.config.log.eval_every or max(1, self.total_steps // 10)
        return 0 < step < self.total_steps and step % every == 0

    def scores_at(self, step: int) -> bool:
        """True if codes are scored after ``step``."""
        every = self.config.log.score_every
        return every is not None and step > 0 and step % every == 0

    # --- Checkpoints ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint from rank 0. A full disk is reported, and training continues with the older ones.

        Raises:
            OSError: the run folder was moved or deleted.
        """
        if not self.ranks.is_main:
            return
        if not self.folder.config_path.exists():
            raise OSError(
                f"the run folder {self.folder.path} was moved or deleted during training; move it back and continue with "
                "--resume auto"
            )
        content = {
            **self.state.state_dict(),
            "config": to_json(self.config),
            "world_size": self.ranks.world_size,
            "global_batch": self.order.batch_size,
            "num_images": self.order.num_images,
            "recipe": self.train_data.recipe,
            "noise_drawn_by": self.ranks.device_name,
        }
        keep = self.config.run.keep_checkpoints + bool(self.state.num_bad_in_a_row)  # never displace a good one
        try:
            checkpoint.save(self.folder.checkpoints, self.state.step, content, keep=keep)
            self.saved_step = self.state.step
        except OSError as error:
            self.monitor.say(
                f"warning: the checkpoint of step {self.state.step} could not be written ({error.strerror or error}); "
                f"training continues and earlier checkpoints are kept; make room in {self.folder.checkpoints}"
            )

    def require_saved(self) -> None:
        """Make sure that the newest weights are on disk, with another attempt if the last one failed.

        Raises:
            OSError: the attempt failed; raised on every rank.
        """
        if self.saved_step != self.state.step:
            self.save()
        saved_step = self.ranks.from_main(self.saved_step)
        if saved_step != self.state.step:
            raise OSError(
                f"the weights of step {self.state.step} are not on disk, the newest checkpoint is of step {saved_step}; "
                f"make room in {self.folder.checkpoints} and repeat the command with --resume auto"
            )

    # --- Records --------------------------------------------------------------------------------------------------

    def log_step(self, report: StepReport, seconds: float, steps: int) -> None:
        """Record the scalars of a training step, averaged over the ranks; ``steps`` were taken in ``seconds``."""
        names = sorted(report.terms)
        values = torch.stack([report.terms[n].double() for n in names] + [report.grad_norm.double()])
        stacked = torch.cat([values, report.kl_per_group.double()]).cpu()
        mean = torch.stack(self.ranks.gather(stacked)).mean(0).tolist()
        terms = dict(zip(names, mean, strict=False))
        scalars = {f"train/{n}": v for n, v in terms.items()}
        scalars["train/negative_elbo"] = -terms["elbo"]
        scalars["train/bits_per_dim"] = float(elbo.bits_per_dim(-terms["elbo"], self.valid_data.spec.num_dims))
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
        shown = {"loss": terms["loss"]}
        if self.measure.has_rate:
            bits = scalars["train/bits_per_dim"]
            shown |= {self.measure.unit: self.measure.per_dim(bits), "KL": terms["rate"]}
        self.monitor.progress(self.state.step, {**shown, "images/s": rate})

    def evaluate(self, *, final: bool = False) -> dict[str, Any]:
        """Evaluate held-out images, record the numbers and draw the figures.

        Raises:
            Stopped: asked to stop during the evaluation.
        """
        log, model, measure = self.config.log, self.state.averaged, self.measure
        result = evaluation.evaluate(
            model,
            self.valid_data,
            self.ranks,
            batch_size=log.eval_batch_size,
            seed=self.config.run.seed,
            num_images=log.final_eval_images if final else log.eval_images,
            importance_draws=log.iw_samples if final and measure.has_rate else 0,
            at_means=not measure.has_rate,
            should_stop=lambda: self.stop.asked,
        ).summary()
        scalars = {f"val/{k}": v for k, v in result.items() if isinstance(v, float) and not k.endswith("_95")}
        scalars["val/negative_elbo"] = -result["elbo"]
        scalars["val/active_units"] = float(result["active_units"])
        scalars |= {f"kl_group/{i:02d}": v for i, v in enumerate(result["kl_group"])}
        self.monitor.scalars(self.state.step, scalars)
        self.monitor.say(f"step {self.state.step} held out: {evaluation.describe(result, measure)}")
        self._warn_of_collapse(result)
        if self.ranks.is_main:
            self.draw(model, result["kl_group"])
        self.monitor.flush()
        return result

    def record_scores(self) -> None:
        """Record cheap scores of the codes of some held-out images."""
        if self.score is not None:
            size, seed = self.config.log.eval_batch_size, self.config.run.seed
            scores = self.score(self.state.averaged, self.valid_data, self.ranks, batch_size=size, seed=seed)
            self.monitor.scalars(self.state.step, scores)

    def _warn_of_collapse(self, result: Mapping[str, Any]) -> None:
        if not self.measure.has_rate:
            return
        if result["rate"] < 0.05 or result["active_units"] == 0:
            self.monitor.say(
                f"warning: posterior collapse: KL {result['rate']:.3g} nats, {result['active_units']} of "
                f"{result['num_units']} latent units active; the latents carry almost no information about the image"
            )

    @torch.no_grad()
    def draw(self, model: VAE, kl_group: list[float]) -> None:
        """Draw samples at several temperatures, reconstructions, the KL of each group, and the family's own figures."""
        count, step, device = self.config.log.figure_images, self.state.step, self.ranks.device
        family, pictures = family_of(self.config), {}
        title = f"{family.label(self.config)} on {self.config.data.dataset}, step {step:,}"
        for temperature in SAMPLE_TEMPERATURES:
            source = noise.generator(device, noise.FIGURES, self.config.run.seed)
            pictures[f"samples_t{temperature}"] = figures.grid(
                model.sample(count, temperature, generator=source),
                title=f"{title}: samples at temperature {temperature}",
            )
        x = self._spread_images(count)
        pictures["reconstruction"] = figures.pairs(x, model.reconstruct(x), title=f"{title}: held-out images")
        if len(kl_group) > 1:
            pictures["kl_per_group"] = figures.kl_bars(kl_group, title=title)
        pool = self._spread_images(FIGURE_POOL)
        pictures |= family.figures(model, pool, self.config.run.seed, title)
        for name, picture in pictures.items():
            self.monitor.image(step, f"images/{name}", picture)
            with self.monitor.best_effort(f"figure {name}"):
                figures.save(picture, self.folder.figures / f"{name}.png")

    def _spread_images(self, count: int) -> torch.Tensor:
        """Held-out images as floats, evenly spread over the split: ``count``, or fewer if they are large."""
        data = self.valid_data
        count = max(1, min(count, len(data), FIGURE_POOL_PIXELS // data.spec.num_dims))
        return to_float(data.images(datasets.choose_rows(len(data), count)), data.spec, self.ranks.device)

    # --- Ways to stop ---------------------------------------------------------------------------------------------

    def save_for_later(self) -> None:
        """Save unsaved steps and mark the folder as preempted."""
        self.trainer.settle()
        if self.saved_step != self.state.step:
            self.save()
        self.mark_preempted()

    def mark_preempted(self) -> None:
        """Leave a marker in the folder of a run that was asked to stop."""
        if self.ranks.is_main:
            with self.monitor.best_effort("marker preempted"):
                files.write_text(self.folder.path / "preempted", f"{self.saved_step}\n")

    def says_stopped(self) -> str:
        """The message when a run is stopped on request."""
        step, saved = self.state.step, self.saved_step
        newest = "checkpoint saved" if saved == step else f"the newest checkpoint is of step {saved}"
        return f"stopped on request at step {step}, {newest}; continue with --resume auto"

    def note(self, batch: datasets.Batch, report: StepReport) -> None:
        """Print the notes of a settled step, and diagnose a run that has just diverged."""
        for text in report.notes:
            self.monitor.say(f"warning: {text}")
        if self.is_lost or self.state.num_bad_in_a_row < self.config.run.max_bad_steps:
            return
        self.lost_at = report.step + 1
        rows = self.ranks.gather({"indices": batch.indices.tolist(), "loss": float(report.terms["loss"])})
        if not self.ranks.is_main:
            return
        good = os.path.basename(str(checkpoint.path_of(self.folder.checkpoints, self.saved_step)))
        diagnosis = {
            "step": report.step + 1,
            "epoch": batch.epoch,
            "ranks": rows,
            "terms": {k: float(v) for k, v in report.terms.items()},
            "kl_per_group": [float(v) for v in report.kl_per_group],
            "last_good_checkpoint": good if self.saved_step else None,
        }
        with self.monitor.best_effort("diagnosis diverged.json"):
            self.folder.write_json("diverged.json", diagnosis)

    def says_diverged(self) -> str:
        """The message when a run has diverged."""
        return (
            f"{self.state.num_bad_in_a_row} steps in a row were not finite, up to step {self.lost_at}; see "
            f"{self.folder.path / 'diverged.json'}, then continue with --resume auto and a lower --lr, or --grad-clip, or "
            "--precision fp32"
        )

    def finish(self) -> None:
        """Evaluate a run that reached its last step, write its summary, and print the next commands.

        Raises:
            FloatingPointError: the evaluation is not finite, or every step was skipped; no summary is written.
        """
        spent = self.monitor.spent()
        result = self.evaluate(final=True)
        self.require_saved()  # before the summary, which says that the run is complete
        evaluation.require_finite(result)
        if self.state.num_skipped >= self.total_steps:
            raise FloatingPointError(
                f"all {self.total_steps} steps were skipped, so the weights never moved; lower --lr, raise --grad-skip, "
                "or use --precision fp32"
            )
        summary = {
            "step": self.state.step,
            "images_seen": self.state.step * self.order.batch_size,
            **spent,
            "skipped_steps": self.state.num_skipped,
            "num_parameters": sum(p.numel() for p in self.trainer.parameters),
            "valid": result,
        }
        if all(math.isfinite(result[name]) for name in HEADLINES):
            self.monitor.hparams(_settings(self.config), [f"val/{n}" for n in HEADLINES if self.measure.shows(n)])
        if self.ranks.is_main:
            self.folder.write_json("summary.json", summary)
            path = self.folder.path
            say = functools.partial(self.monitor.say, file=sys.stdout)
            say(f"done: {evaluation.describe(result, self.measure)}")
            say(f"look at  {path / 'figures'}/reconstruction.png and samples_t0.8.png")
            say(f"watch    tensorboard --logdir {path.parent}")
            say(f"next     python launch/evaluate.py --run {path}   python launch/sample.py --run {path}")
