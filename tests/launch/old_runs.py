"""Run folders in tests/fixtures/runs, written by commit 32c0d67 on the toy data of toy.py, and the flags that made them.

Events, figures and codes are left out: nothing reads them. Every run has two checkpoints, at steps 8 and 16 of 16.
"""

from __future__ import annotations

STEPS = 16
DISCRIMINATOR_UNITS = 8
TOY = [
    "--dataset",
    "toy",
    "--max-steps",
    str(STEPS),
    "--checkpoint-every",
    "8",
    "--eval-every",
    "8",
    "--log-every",
    "1",
]
TOY += ["--batch-size", "8", "--figure-images", "4", "--iw-samples", "2", "--preset", "tiny"]
SMALL_NVAE = ["--num-scales", "1", "--groups-per-scale", "2", "--latent-channels", "1"]
SMALL_NVAE += ["--channels-enc", "2", "--channels-dec", "2"]
SMALL_FLAT = ["--conv-channels", "1", "--latent-dim", "3", "--lr", "0.003", "--optimizer", "rmsprop"]

TRAIN: dict[str, tuple[str, str, list[str]]] = {
    "nvae": ("train_nvae", "nvae", [*TOY, *SMALL_NVAE]),
    "flat": ("train_flat_vae", "flat", [*TOY, *SMALL_FLAT, "--objective", "tc"]),
    "factor": ("train_flat_vae", "factor", [*TOY, *SMALL_FLAT, "--objective", "factor"]),
    "sweep": ("train_flat_vae", "sweep", [*TOY, *SMALL_FLAT, "--objective", "beta", "--replica-betas", "0.1", "1"]),
}
EVALUATE = ["--iw-samples", "4"]
SCORE = ["--elbo-images", "54", "--dims", "2", "3", "--shuffles", "2"]
