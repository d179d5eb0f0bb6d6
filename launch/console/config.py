"""A run's configuration: frozen dataclasses that become flags (tyro), JSON (pydantic) and back.

Precedence: defaults < preset < flags typed by the user. The configuration of a model or an objective is defined beside
the class that it builds; this module has the parts that all models share.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

import datasets
from datasets import ImageSpec, recipes

C = TypeVar("C")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    dataset: str = "celeba"
    """celeba, frey, dsprites, mnist, cifar10, or folder for your own images."""
    data_root: Path | None = None
    """Folder of the data set; default data/<dataset>."""
    image_size: tuple[int, ...] | None = None
    """Image size in pixels: one number, or height and width (celeba, folder); default the data set's."""
    num_bits: int | None = None
    """Bits per pixel and channel, 1 to 8; default the data set's (celeba, folder)."""
    channels: Literal[1, 3] | None = None
    """1 reads images as greyscale, 3 as RGB (folder); default 1 if nearly all images are grey."""
    hflip: bool | None = None
    """Flip half of the training images left to right (celeba, cifar10, folder)."""
    binarise: bool | None = None
    """Draw each pixel as 0 or 1 at random in every epoch, as is done for published models (mnist); default yes."""
    num_valid: int | None = None
    """Hold out this many training images, the last ones, as the valid split (mnist, cifar10); default none."""
    split_by: Literal["auto", "folders", "content", "path"] | None = None
    """Rule that splits the images (folder). folders: sub-folders train, valid, test; content: a hash of each file; auto:
    sub-folders if there are any, else content; path: the rule of older runs."""
    labels: Path | None = None
    """CSV file with a row of factors for each image (folder); its first column names the images."""
    dsprites_source: Literal["auto", "official", "rendered"] | None = None
    """The official npz, or images rendered in seconds; auto takes the official file if it exists (dsprites)."""
    cache_dir: Path | None = None
    """Folder for decoded images; default beside the data."""
    skip_bad: bool = False
    """Skip unreadable and missing images and record which, instead of stopping."""
    download: bool = False
    """Download the data set if it is missing."""

    def options(self) -> dict[str, Any]:
        """Chosen settings as options of ``datasets.open_dataset``.

        Raises:
            ValueError: the data set does not have a chosen option.
        """
        size: Any = self.image_size
        if size is not None and len(size) == 1:
            size = size[0]
        chosen = {
            "size": size,
            "num_bits": self.num_bits,
            "channels": self.channels,
            "binarise": self.binarise,
            "num_valid": self.num_valid,
            "split_by": self.split_by,
            "labels": self.labels,
            "source": self.dsprites_source,
            "cache_dir": self.cache_dir,
            "skip_bad": self.skip_bad or None,
            "download": self.download or None,
        }
        options = {name: value for name, value in chosen.items() if value is not None}
        for name in options.keys() - set(datasets.option_names(self.dataset)):
            flag = {"size": "image-size", "source": "dsprites-source"}.get(name, name.replace("_", "-"))
            raise ValueError(f"{self.dataset} has no option --{flag}; leave it out")
        return options

    def open(
        self, split: str, *, seed: int = 0, recorded: Mapping[str, Any] | None = None, spec: ImageSpec | None = None
    ) -> datasets.Dataset:
        """Open a split of the data set.

        Args:
            split: train, valid or test.
            seed: seed of the flips and binarised pixels, which differ in each epoch of training. Held-out
                images use seed 0 in every run, so that runs of several seeds are compared on the same images.
            recorded: recipe of an earlier run, whose rules for splits are kept.
            spec: target shape for images of any size and colour (folder).
        """
        taken = datasets.option_names(self.dataset)
        options = self.options()
        if spec is not None and self.dataset == "folder":
            options |= {"size": (spec.height, spec.width), "channels": spec.channels}
        if split == "train":
            options |= ({"hflip": True} if self.hflip else {}) | ({"seed": seed} if "seed" in taken else {})
        kept = recipes.options_of(recorded or {})
        options |= {name: value for name, value in kept.items() if name != "seed" or split == "train"}
        return datasets.open_dataset(self.dataset, self.data_root, split, **options)

    def open_held_out(self, *, recorded: Mapping[str, Any] | None = None) -> datasets.Dataset:
        """Open the images for evaluations during training: split valid, or test if the data have no valid split."""
        try:
            return self.open("valid", recorded=recorded)
        except datasets.NoSuchSplit as error:
            if "test" not in error.splits:
                raise
            return self.open("test", recorded=recorded)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its learning rate, and the averaged weights."""

    optimizer: Literal["adamax", "adam", "adamw", "rmsprop", "fused_adam", "fused_lamb"] = "adamax"
    """NVAE uses adamax; fused_* need NVIDIA's apex, built from its repository."""
    lr: float = 1e-2
    """Learning rate after the warm-up."""
    lr_min: float = 1e-4
    """Learning rate at the end of the cosine."""
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    """Schedule of the learning rate after the warm-up."""
    lr_warmup: float = 0.05
    """Fraction of the run over which the learning rate rises linearly from 0."""
    weight_decay: float = 3e-4
    """L2 penalty on all parameters (decoupled for adamw)."""
    optimizer_eps: float = 1e-3
    """The optimiser's epsilon; NVAE uses 1e-3, inside Adamax' infinity norm."""
    rmsprop_decay: float = 0.99
    """Decay of RMSprop's mean of squared gradients; torch uses .99, Keras .9. The first steps have
    length lr / sqrt(1 - decay)."""
    grad_clip: float = 0.0
    """Largest norm of the gradient; 0 turns clipping off."""
    grad_skip: float = 0.0
    """Skip and count steps whose gradient norm exceeds this; 0 skips none."""
    accumulation: int = 1
    """Number of batches whose gradients are averaged into one step."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are evaluated and sampled; shorter at the start of a run; 0 turns it off."""

    def __post_init__(self) -> None:
        at_least(1, self, "accumulation")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"--ema-decay {self.ema_decay}; give a number in [0, 1)")
        if not 0.0 <= self.rmsprop_decay < 1.0:
            raise ValueError(f"--rmsprop-decay {self.rmsprop_decay}; give a number in [0, 1)")
        if not 0.0 <= self.lr_warmup <= 1.0:
            raise ValueError(f"--lr-warmup {self.lr_warmup}; give a fraction of the run, in [0, 1]")
        for name in ("lr", "optimizer_eps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}; give a positive number")
        at_least(0, self, "lr_min", "weight_decay", "grad_clip", "grad_skip")


def at_least(minimum: int, config: Any, *names: str) -> None:
    """Refuse fields that are below ``minimum`` or not finite; None, which stands for a default, is accepted."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not minimum <= value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value}; give {minimum} or more")


def check_timeout(minutes: float) -> None:
    """Refuse a time-out that is not a positive number or is too large for a clock."""
    if not 0.0 < minutes <= 1e6:
        raise ValueError(f"--timeout-minutes {minutes}; give a positive number, up to 1e6")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, folder and hardware of a run."""

    run_dir: Path | None = None
    """Folder of this run; default runs/<dataset>-<family>-<preset>-<objective>-seed<seed>."""
    resume: Literal["never", "auto"] = "never"
    """auto continues from the newest valid checkpoint, or starts a new run if there is none."""
    init_from: Path | None = None
    """Start from the weights of this run (its averages, if it has them), with other data or settings."""
    seed: int = 0
    """Seed of the weights, of the order of images, and of the noise."""
    epochs: int = 90
    """Length of the run in epochs."""
    max_steps: int | None = None
    """Length of the run in optimiser steps, instead of --epochs; all schedules scale with it."""
    stop_at_step: int | None = None
    """Save and stop at this step without changing the schedules; --resume auto continues."""
    batch_size: int = 16
    """Images per process and forward pass; the global batch is this x processes x accumulation."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of convolutions; auto is bf16 on GPUs that support it, else fp32. Likelihoods and statistics stay fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes GPUs if there are any."""
    data_on_device: Literal["auto", "yes", "no"] = "auto"
    """Keep the training images on the device; auto does so on a GPU if they take at most a tenth of its memory."""
    compile: bool = False
    """Use torch.compile, once for each kind of cell; needs a C++ compiler. Losses differ by rounding."""
    cuda_graph: Literal["auto", "always", "never"] = "auto"
    """Capture NVAE's training step on a GPU once and replay it, which saves launching its kernels one by one."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; default a twentieth of the run, at most 1,000."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep, the newest ones."""
    max_bad_steps: int = 20
    """Consecutive non-finite steps after which the run stops with a diagnosis."""
    timeout_minutes: float = 30.0
    """Minutes that a rank waits for another before the run ends."""

    def __post_init__(self) -> None:
        at_least(1, self, "epochs", "batch_size", "keep_checkpoints", "max_bad_steps")
        at_least(1, self, "max_steps", "stop_at_step", "checkpoint_every")
        check_timeout(self.timeout_minutes)
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"--seed {self.seed}; give a number in [0, 2^31)")

    def num_steps(self, steps_per_epoch: int) -> int:
        """Length of the run in optimiser steps; the schedules scale with it."""
        return self.max_steps or self.epochs * steps_per_epoch

    def save_every(self, total_steps: int) -> int:
        """Steps between checkpoints of a run of ``total_steps``; the last step is always saved."""
        return self.checkpoint_every or max(1, min(1000, total_steps // 20))


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Measurements during training."""

    log_every: int = 50
    """Steps between scalars."""
    eval_every: int | None = None
    """Steps between evaluations on the valid split; default a tenth of the run."""
    eval_images: int = 1024
    """Number of images of an evaluation during training."""
    final_eval_images: int | None = None
    """Number of images of the final evaluation; default all of the split."""
    eval_batch_size: int = 64
    """Images per evaluation batch and process."""
    iw_samples: int = 10
    """Samples of the importance-weighted bound in the final evaluation."""
    score_every: int | None = None
    """Steps between cheap scores of codes of the valid split (MIG, JEMMIG, MCC, linear R2, active latents); default never."""
    figure_images: int = 16
    """Images in each grid of samples and reconstructions."""

    def __post_init__(self) -> None:
        at_least(1, self, "log_every", "eval_every", "eval_images", "eval_batch_size", "iw_samples")
        at_least(1, self, "score_every", "figure_images")


@dataclass(frozen=True, kw_only=True)
class SharedConfig:
    """Settings that every run has; each family's configuration adds ``model`` and ``objective``."""

    preset: str = ""
    """Preset that sets the defaults of all other flags; listed above."""
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    log: LogConfig = field(default_factory=LogConfig)


def to_json(config: Any) -> dict[str, Any]:
    """A configuration as plain data."""
    kind: Any = type(config)
    result = _adapter(kind).dump_python(config, mode="json")
    assert isinstance(result, dict)
    return result


def from_json(kind: type[C], data: Any, where: str) -> C:
    """A configuration from plain data.

    Raises:
        ValueError: fields are missing, unknown or of the wrong type; the message names them and the file ``where``.
    """
    untyped: Any = kind
    try:
        config: C = _adapter(untyped).validate_python(data)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5]]
        raise ValueError(
            f"{where} holds no valid {kind.__name__} ({', '.join(faults)}); restore it or start a new run"
        ) from error
    return config


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Reader and writer of a configuration; cached, because building one takes a seventh of a second."""
    return TypeAdapter(_strict(kind))


def _strict(kind: type[C]) -> type[C]:
    """Tell pydantic to refuse unknown fields, in this dataclass and in nested ones."""
    for f in fields(kind):  # type: ignore[arg-type]
        if is_dataclass(f.default_factory):
            _strict(f.default_factory)
    kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    return kind


def differences(config: Any, default: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(name, value, default) for each field whose value differs."""
    rows: list[tuple[str, Any, Any]] = []
    for f in fields(config):
        value, other = getattr(config, f.name), getattr(default, f.name)
        if is_dataclass(value) and not isinstance(value, type):
            rows += differences(value, other, f"{prefix}{f.name}.")
        elif value != other:
            rows.append((prefix + f.name, value, other))
    return rows
