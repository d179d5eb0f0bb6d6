"""The flat family and its recipes: those of the papers, of the two studies, and a tiny one for two CPU cores.

Sources: Burgess et al. 2018, Kim & Mnih 2018, Chen et al. 2018 with the settings (lr 5e-4, batch 64, 30 epochs) of the
trained models used for comparison; Locatello et al. 2019; the Grouped-VAE report; the thesis on Frey Faces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from flat_vae import BETA_FORMS as BETA_FORMS
from flat_vae import FlatVAE, FlatVAEConfig, ObjectiveConfig, Replicas, betas, build_objective, describe
from flat_vae.config import Initialisation as Initialisation
from launch.console.config import DataConfig, LogConfig, OptimConfig, RunConfig, SharedConfig, at_least
from launch.console.flags import typed_value
from launch.families import flat_figures
from launch.families.family import Family, Preset
from metrics.likelihoods import ImageSpec
from metrics.measure import Measure, quantity

C = TypeVar("C", bound="FlatTrainConfig")
PLAIN_ADAM = OptimConfig(
    optimizer="adam",
    lr=5e-4,
    lr_schedule="constant",
    lr_warmup=0.0,
    weight_decay=0.0,
    optimizer_eps=1e-8,
    ema_decay=0.0,
)


@dataclass(frozen=True, kw_only=True)
class FlatTrainConfig(SharedConfig):
    """Train a flat VAE."""

    optim: OptimConfig = PLAIN_ADAM
    model: FlatVAEConfig = field(default_factory=FlatVAEConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


@dataclass(frozen=True, kw_only=True)
class ReplicatedTrainConfig(FlatTrainConfig):
    """Train a flat VAE, or several of them at once."""

    replicas: int = 1
    """Number of seeds (--seed, --seed + 1, ...) to train at once as one batched model, each with a run folder in --run-dir."""
    replica_betas: tuple[float, ...] = ()
    """Values of --beta trained at once in the same way, each with every seed."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be batched, and batches that the objective does not take."""
        at_least(1, self, "replicas")
        if self.run.batch_size < (least := self.objective.row.smallest_batch):
            raise ValueError(
                f"--batch-size {self.run.batch_size} is too small for --objective {self.objective.objective}; "
                f"give a --batch-size from {least}"
            )
        names = [f"{beta:g}" for beta in self.replica_betas]
        if len(set(names)) < len(names):
            raise ValueError(f"--replica-betas {' '.join(names)}; give each value once")
        if not self.is_batched:
            return
        objective, optimizer, run = self.objective.objective, self.optim.optimizer, self.run
        cannot = {
            "--objective factor, because its discriminator has an optimiser of its own": objective == "factor",
            f"--optimizer {optimizer}, whose step counter all replicas would share": "fused_" in optimizer,
            "--precision fp16, whose loss scale all replicas would share": run.precision == "fp16",
            "--keep-checkpoints 1, because a kill can leave the replicas at different steps": run.keep_checkpoints == 1,
        }
        for what, is_asked in cannot.items():
            if is_asked:
                raise ValueError(f"replicas can't be trained with {what}; change it or use launch/sweep.py")

    @property
    def is_batched(self) -> bool:
        """True if this configures more than one run."""
        return self.replicas > 1 or bool(self.replica_betas)

    @property
    def single(self) -> FlatTrainConfig:
        """Configuration that all replicas share, as a single run's."""
        return FlatTrainConfig(**{f.name: getattr(self, f.name) for f in fields(FlatTrainConfig)})

    @property
    def out(self) -> Path:
        """Folder of the run folders."""
        return self.run.run_dir or Path("runs") / f"{self.data.dataset}-{self.preset}-replicas"

    def members(self, arguments: list[str]) -> dict[str, FlatTrainConfig] | None:
        """Configurations of the single runs by name, as launch/sweep.py names them; None for one run.

        Raises:
            ValueError: ``arguments`` give another form of beta beside --replica-betas.
        """
        if not self.is_batched:
            return None
        for flag in [form.replace("_", "-") for form in BETA_FORMS]:
            if self.replica_betas and typed_value(flag, arguments) is not None:
                raise ValueError(f"--{flag} and --replica-betas both set beta; give one of them")
        return {name: resolved(run) for name, run in self.runs().items()}

    def runs(self) -> dict[str, FlatTrainConfig]:
        """Configurations of the single runs by name, with the weights as typed."""
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


def resolved(config: C) -> C:
    """Fill in every weight of the objective, so that the record of a run is complete."""
    return replace(config, objective=config.objective.resolved())


DSPRITES = DataConfig(dataset="dsprites")


def _burgess(name: str, **objective: Any) -> FlatTrainConfig:
    return FlatTrainConfig(
        preset=name,
        data=DSPRITES,
        model=FlatVAEConfig(network="burgess", likelihood="bernoulli"),
        objective=ObjectiveConfig(**objective),
        run=RunConfig(epochs=30, batch_size=64),
        log=LogConfig(log_every=100),
    )


def _mlp(name: str, **objective: Any) -> FlatTrainConfig:
    """The Grouped-VAE report does not state its number of epochs; 30 is our choice."""
    return replace(
        _burgess(name, **objective),
        model=FlatVAEConfig(network="mlp", latent_dim=6, likelihood="bernoulli"),
        optim=replace(PLAIN_ADAM, lr=1e-4),
    )


def _locatello() -> FlatTrainConfig:
    return replace(
        _burgess("locatello", objective="beta"),
        model=FlatVAEConfig(network="conv", likelihood="bernoulli"),
        optim=replace(PLAIN_ADAM, lr=1e-4),
        run=RunConfig(max_steps=300_000, batch_size=64),
    )


def _frey() -> FlatTrainConfig:
    """Grey pixels under a Bernoulli: a cross entropy, as in the thesis. The optimiser's settings are our assumption.

    Weights and RMSprop are Keras' defaults: with torch's, runs on 1,415 frames can stick at the mean face. Keras' epsilon
    of 1e-7 belongs to a loss averaged over 560 pixels; ours is summed over them.
    """
    return FlatTrainConfig(
        preset="frey",
        data=DataConfig(dataset="frey"),
        model=FlatVAEConfig(network="frey", latent_dim=2, likelihood="bernoulli", init="glorot"),
        objective=ObjectiveConfig(objective="beta", beta_pixel_mean=1e-3),
        optim=replace(PLAIN_ADAM, optimizer="rmsprop", lr=1e-3, rmsprop_decay=0.9, optimizer_eps=560 * 1e-7),
        run=RunConfig(epochs=10, batch_size=16),
        log=LogConfig(log_every=20),
    )


def _small() -> FlatTrainConfig:
    return FlatTrainConfig(
        preset="small",
        model=FlatVAEConfig(network="conv", latent_dim=32),
        run=RunConfig(epochs=30, batch_size=64),
        log=LogConfig(log_every=50),
    )


def _tiny() -> FlatTrainConfig:
    return FlatTrainConfig(
        preset="tiny",
        optim=replace(PLAIN_ADAM, lr=1e-3),
        run=RunConfig(max_steps=600, batch_size=32),
        log=LogConfig(log_every=20, eval_images=256),
    )


def _photos() -> FlatTrainConfig:
    """Preset for a few hundred or more images of a user (docs/benchmarks/2026-11-28-newcomer.md).

    - A fixed number of steps: 30 epochs of 200 images are 60 steps, after which a model still outputs the mean image.
    - One logistic for each pixel and channel. The mixture predicts green and blue from red, so that for a thousand
      steps the latents learn nothing about colour; with few images, overfitting begins before they learn it.
    - Batches of 8: a step takes half as long as with 16.
    - Images are resized to 64x64, because photographs differ in size, and mirrored at random, because there are few.
    """
    return FlatTrainConfig(
        preset="photos",
        data=DataConfig(dataset="folder", image_size=(64,), hflip=True),
        model=FlatVAEConfig(network="conv", latent_dim=32, likelihood="logistic"),
        optim=replace(PLAIN_ADAM, lr=1e-3),
        run=RunConfig(max_steps=2000, batch_size=8),
        log=LogConfig(log_every=100, eval_images=256),
    )


FLAT_PRESETS: dict[str, Preset[FlatTrainConfig]] = {
    "burgess": Preset("dSprites: VAE, Burgess' conv net, 10 latents", lambda: _burgess("burgess")),
    "beta4": Preset("dSprites: beta-VAE, beta 4, same network", lambda: _burgess("beta4", objective="beta")),
    "capacity": Preset(
        "dSprites: capacity rising to 25 nats, gamma 100", lambda: _burgess("capacity", objective="capacity")
    ),
    "factor": Preset("dSprites: FactorVAE, gamma 6.4", lambda: _burgess("factor", objective="factor")),
    "tc": Preset("dSprites: beta-TCVAE, beta 6.4", lambda: _burgess("tc", objective="tc")),
    "grouped": Preset("dSprites: Grouped-VAE, 2 x 3 latents, MLP 1200", lambda: _mlp("grouped", objective="grouped")),
    "mlp-beta1": Preset("dSprites: VAE with the same MLP, 6 latents", lambda: _mlp("mlp-beta1")),
    "mlp-beta5": Preset("the same, beta 5", lambda: _mlp("mlp-beta5", objective="beta", beta=5.0)),
    "mlp-beta10": Preset("the same, beta 10", lambda: _mlp("mlp-beta10", objective="beta", beta=10.0)),
    "locatello": Preset("dSprites: beta-VAE of the large study, 300,000 steps", _locatello),
    "frey": Preset("Frey Faces: the thesis' network, 2 latents, beta 1e-3 (pixel mean)", _frey),
    "photos": Preset("your own images at 64x64: 2,000 steps; one CPU core, minutes", _photos),
    "small": Preset("any data: conv net, 32 latents, the likelihood of NVAE", _small),
    "tiny": Preset("any data: 600 steps of 32 images; two CPU cores, a minute", _tiny),
}


def _without_conflicts(config: FlatTrainConfig, arguments: Sequence[str]) -> FlatTrainConfig:
    """Drop the preset's weights of other objectives than the typed one, and other forms of a typed beta."""
    objective = config.objective
    name = typed_value("objective", arguments)
    if name is not None and name != objective.objective:
        objective = ObjectiveConfig()
    if any(typed_value(form.replace("_", "-"), arguments) for form in BETA_FORMS):
        objective = replace(objective, beta=None, beta_norm=None, beta_pixel_mean=None)
    return replace(config, objective=objective)


def _setting(config: FlatTrainConfig) -> str:
    """The objective, with beta if one was chosen."""
    chosen = config.objective
    return chosen.objective if chosen.beta is None else f"{chosen.objective} {chosen.beta:g}"


def _numbers(config: FlatTrainConfig, spec: ImageSpec) -> dict[str, float]:
    """The normalised beta of Higgins et al. 2017, if the objective has a beta."""
    if not config.objective.has_beta:
        return {}
    return {"beta_norm": betas(config.objective, spec, config.model.latent_dim).beta_norm}


FAMILY = Family(
    name="flat_vae",
    title="flat VAE",
    config=FlatTrainConfig,
    presets=FLAT_PRESETS,
    preset_of={"dsprites": "burgess", "frey": "frey", "folder": "photos"},
    without_conflicts=_without_conflicts,
    build_model=lambda config, spec: FlatVAE(config.model, spec),
    build_objective=lambda config, model, total_steps, num_images: build_objective(
        config.objective, model, total_steps, num_images
    ),
    setting=_setting,
    describe=lambda config, spec: [f"loss   {describe(config.objective, spec, config.model.latent_dim)}"],
    numbers=_numbers,
    measure=lambda config, spec: Measure(
        quantity(config.model.likelihood, spec.num_bits), has_rate=config.objective.row.has_rate
    ),
    figures=flat_figures.draw,
    batch=Replicas,
)
