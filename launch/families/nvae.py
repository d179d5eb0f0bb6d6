"""The NVAE family and its recipes: the six that NVAE published, variants for one GPU, and small ones for CPUs.

A preset is a function that returns a complete configuration. Sources: Vahdat & Kautz 2020, table 6 and the commands
published with it; the tiny recipe is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from launch.console.config import DataConfig, LogConfig, OptimConfig, RunConfig, SharedConfig
from launch.families.family import Family, Preset
from metrics.measure import Measure, quantity
from nvae import NVAE as NVAE
from nvae import NVAEConfig, NVAEObjective, ObjectiveConfig
from nvae import official as official  # for launch/import_official.py


@dataclass(frozen=True, kw_only=True)
class NVAETrainConfig(SharedConfig):
    """Train a hierarchical VAE."""

    model: NVAEConfig = field(default_factory=NVAEConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)


def _published(
    name: str,
    data: DataConfig,
    model: dict[str, Any],
    *,
    epochs: int,
    batch_size: int,
    warmup_epochs: int = 5,
    lr: float = 1e-2,
    spectral: float = 1e-2,
    spectral_initial: float | None = None,
) -> NVAETrainConfig:
    return NVAETrainConfig(
        preset=name,
        data=data,
        model=NVAEConfig(**model),
        objective=ObjectiveConfig(spectral_weight=spectral, spectral_weight_initial=spectral_initial),
        optim=OptimConfig(lr=lr, lr_warmup=warmup_epochs / epochs, ema_decay=0.9999),
        run=RunConfig(epochs=epochs, batch_size=batch_size),
        log=LogConfig(log_every=100),
    )


def _mnist() -> NVAETrainConfig:
    model = {"num_scales": 2, "num_groups": 10, "channels_enc": 32, "channels_dec": 32}
    blocks = {"preprocess_blocks": 2, "preprocess_cells": 3, "postprocess_blocks": 2, "postprocess_cells": 3}
    return _published("mnist", DataConfig(dataset="mnist"), model | blocks, epochs=400, batch_size=200)


def _cifar10() -> NVAETrainConfig:
    model = {"num_scales": 1, "num_groups": 30, "channels_enc": 128, "channels_dec": 128, "num_flows": 1}
    return _published("cifar10", DataConfig(dataset="cifar10", hflip=True), model, epochs=400, batch_size=32)


def _celeba64() -> NVAETrainConfig:
    model = {"num_scales": 3, "num_groups": 20, "channels_enc": 64, "channels_dec": 64, "num_flows": 1}
    data = DataConfig(dataset="celeba", hflip=True)
    return _published("celeba64", data, model, epochs=90, batch_size=16, spectral=1e-1)


def _imagenet32() -> NVAETrainConfig:
    model = {"num_scales": 1, "num_groups": 28, "channels_enc": 192, "channels_dec": 192, "num_flows": 1}
    data = DataConfig(dataset="folder", image_size=(32,), hflip=True)
    return _published("imagenet32", data, model, epochs=45, batch_size=24, warmup_epochs=1, spectral_initial=1.0)


def _faces256(name: str, *, epochs: int, lr: float, spectral: float) -> NVAETrainConfig:
    model = {"num_scales": 5, "num_groups": 16, "min_groups": 4, "channels_enc": 30, "channels_dec": 30, "num_flows": 2}
    data = DataConfig(dataset="folder", image_size=(256,), num_bits=5, hflip=True)
    return _published(name, data, model, epochs=epochs, batch_size=4, lr=lr, spectral=spectral, spectral_initial=1.0)


TINY_MODEL = NVAEConfig(
    num_scales=3,
    groups_per_scale=(2, 1, 1),
    latent_channels=8,
    channels_enc=16,
    channels_dec=16,
    preprocess_cells=1,
    postprocess_cells=1,
    cells_per_group_enc=1,
    cells_per_group_dec=1,
    num_mixtures=3,
    cell_arch="res_bnswish",
)


def _tiny() -> NVAETrainConfig:
    return NVAETrainConfig(
        preset="tiny",
        model=TINY_MODEL,
        optim=OptimConfig(ema_decay=0.99),
        run=RunConfig(max_steps=600, batch_size=16),
        log=LogConfig(log_every=10, eval_images=256, eval_batch_size=32, final_eval_images=1024),
    )


def _dsprites() -> NVAETrainConfig:
    """dSprites on one CPU core, found by short trials (docs/studies/recipes.md).

    - Patches of 4 pixels: cells at full resolution made a step four times as long.
    - All groups at 4x4: a group at 8x8 learnt faster and took nine tenths of the information, and samples fell apart.
    - Residual cells of 3x3 convolutions: depthwise 5x5 ones are slow on a CPU.
    - Batches of 32: smaller ones are mostly overhead, larger ones learn less per image.
    - A spectral weight of 0.01 with one power iteration: the model is shallow, and four took a sixth of a step.
    - A long warm-up of the KL: balancing spreads information over the groups, but acts only during the warm-up.
    """
    return NVAETrainConfig(
        preset="dsprites",
        data=DataConfig(dataset="dsprites"),
        model=replace(
            TINY_MODEL,
            patch_size=4,
            num_scales=1,
            groups_per_scale=(4,),
            latent_channels=4,
            preprocess_blocks=2,
            postprocess_blocks=2,
        ),
        objective=ObjectiveConfig(kl_anneal_portion=0.25, spectral_weight=1e-2, num_power_iterations=1),
        optim=OptimConfig(lr_warmup=0.02, ema_decay=0.999),
        run=RunConfig(max_steps=40_000, batch_size=32),
        log=LogConfig(log_every=50, eval_images=1024, eval_batch_size=128),
    )


def _celeba64_cpu() -> NVAETrainConfig:
    """CelebA at 64x64 on one CPU core (docs/studies/recipes.md).

    - Model tiny: patches of 2 pixels with twice the channels made a step slower and did not lower the loss.
    - Batches of 8: a step takes two thirds as long as with 16, and after equal time the loss is lower.
    - Weights averaged over about a thousand steps: a run has twenty times as many steps as preset tiny.
    """
    return replace(
        _tiny(),
        preset="celeba64-cpu",
        data=DataConfig(dataset="celeba"),
        optim=OptimConfig(ema_decay=0.999),
        run=RunConfig(max_steps=12_000, batch_size=8),
        log=LogConfig(log_every=50, eval_images=256, eval_batch_size=32),
    )


def _small() -> NVAETrainConfig:
    model = NVAEConfig(num_groups=8, channels_enc=32, channels_dec=32, preprocess_cells=2, postprocess_cells=2)
    return NVAETrainConfig(
        preset="small",
        model=model,
        optim=OptimConfig(ema_decay=0.9995),
        run=RunConfig(epochs=100, batch_size=64),
        log=LogConfig(log_every=50),
    )


PUBLISHED: dict[str, Preset[NVAETrainConfig]] = {
    "celeba64": Preset("CelebA 64x64, published (8 GPUs x 16 images, 90 epochs)", _celeba64),
    "mnist": Preset("MNIST, dynamically binarised, published (2 GPUs x 200, 400 epochs)", _mnist),
    "cifar10": Preset("CIFAR-10, published (8 GPUs x 32, 400 epochs)", _cifar10),
    "imagenet32": Preset("ImageNet 32x32 from a folder, published (24 GPUs x 24, 45 epochs)", _imagenet32),
    "celebahq256": Preset(
        "CelebA-HQ 256x256, 5 bits, from a folder, published (24 GPUs x 4, 300 epochs)",
        lambda: _faces256("celebahq256", epochs=300, lr=1e-2, spectral=1e-2),
    ),
    "ffhq256": Preset(
        "FFHQ 256x256, 5 bits, from a folder, published (24 GPUs x 4, 200 epochs)",
        lambda: _faces256("ffhq256", epochs=200, lr=8e-3, spectral=1e-1),
    ),
}


def _on_one_gpu(name: str, batch_size: int, accumulation: int) -> Preset[NVAETrainConfig]:
    """A published recipe with the same global batch, by recomputing cells and accumulating gradients."""

    def build() -> NVAETrainConfig:
        config = PUBLISHED[name].build()
        return replace(
            config,
            preset=f"{name}-1gpu",
            model=replace(config.model, checkpointing=True),
            run=replace(config.run, batch_size=batch_size),
            optim=replace(config.optim, accumulation=accumulation),
        )

    return Preset(f"{name} with its global batch of {batch_size * accumulation} on one GPU", build)


ONE_GPU = {  # images per step and number of steps that are accumulated
    **{"celeba64": (32, 4), "mnist": (200, 2), "cifar10": (64, 4)},
    **{"imagenet32": (64, 9), "celebahq256": (8, 12), "ffhq256": (8, 12)},
}
NVAE_PRESETS: dict[str, Preset[NVAETrainConfig]] = {
    **PUBLISHED,
    **{f"{name}-1gpu": _on_one_gpu(name, *sizes) for name, sizes in ONE_GPU.items()},
    "dsprites": Preset("dSprites: 4 groups at 4x4, 16 channels; one CPU core, an hour and a half", _dsprites),
    "celeba64-cpu": Preset("CelebA 64x64: the model of tiny; one CPU core, two hours", _celeba64_cpu),
    "small": Preset("any data: 3 scales, 14 groups, 32 channels; one GPU, hours", _small),
    "tiny": Preset("any data: 3 scales, 4 groups, 16 channels; two CPU cores, minutes", _tiny),
}
FAMILY = Family(
    name="nvae",
    title="NVAE",
    config=NVAETrainConfig,
    presets=NVAE_PRESETS,
    preset_of={"celeba": "celeba64", "dsprites": "dsprites", "mnist": "mnist", "cifar10": "cifar10", "frey": "tiny"},
    build_model=lambda config, spec: NVAE(config.model, spec),
    build_objective=lambda config, model, total_steps, num_images: NVAEObjective(config.objective, model, total_steps),
    measure=lambda config, spec: Measure(quantity(config.model.likelihood, spec.num_bits)),
)
