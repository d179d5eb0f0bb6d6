"""Reading batches, sampling, and evaluation by importance sampling."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import datasets
from benchmarks import counting, harness
from benchmarks.harness import Case, Row
from benchmarks.steps import CELEBA64, CPU_SHAPE, random_images
from datasets import to_float
from datasets.arrays import ArrayDataset
from datasets.views import Views
from launch.families.nvae import NVAE_PRESETS
from launch.machine import noise
from metrics.elbo import log_weight
from nvae import NVAE

READ = 8192
BATCHES = 64


def data(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Time uint8 batches in random order from a memory map of ``options.images`` images on one core, and its start-up."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npy"
        images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(options.images, 3, 64, 64))
        for start in range(0, options.images, 1024):
            images[start : start + 1024] = np.random.default_rng(start).integers(0, 256, (1, 3, 64, 64), np.uint8)
        images.flush()
        del images
        start_up = time.perf_counter()
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        rows = np.arange(len(array))
        plain = ArrayDataset(name="plain", array=array, rows=rows, recipe={})
        order = datasets.Batches(len(plain), options.batch_size)
        plain.images(order.indices(0)[1])
        start_up = time.perf_counter() - start_up
        flipped = ArrayDataset(name="flipped", array=array, rows=rows, recipe={}, views=Views(hflip=True))
        packed = datasets_dsprites(options.images)
        for dataset in (plain, flipped, packed):  # the page cache is warm from here on
            for first in range(0, len(dataset), READ):
                dataset.images(np.arange(first, min(first + READ, len(dataset))))

        def read(dataset: datasets.Dataset) -> None:
            for step in range(BATCHES):
                dataset.images(order.indices(step % order.steps_per_epoch)[1])

        def load(dataset: datasets.Dataset, *, mirror: bool = False) -> None:
            pin = device.type == "cuda"
            with datasets.Loader(dataset, order, 0, BATCHES, pin_memory=pin) as loader:
                for batch in loader:
                    if mirror:
                        batch.on(device)

        count = BATCHES * options.batch_size
        cases = [
            Case("cache", lambda: read(plain), count, {"start_up_s": start_up}),
            Case("cache, mirrored by the CPU", lambda: read(flipped), count),
            Case("loader", lambda: load(plain), count),
            Case("loader, to be mirrored", lambda: load(flipped), count),
            Case(f"loader, mirrored on {device.type}", lambda: load(flipped, mirror=True), count),
            Case("dSprites, bits unpacked", lambda: read(packed), count),
        ]
        seconds = harness.interleave(cases, options.rounds, device)
        return [harness.timing_row("data", c, seconds[c.variant]) for c in cases]


def datasets_dsprites(num: int) -> datasets.Dataset:
    """A bit-packed grid of ``num`` images, read as dSprites is."""
    grid = np.random.default_rng(0).integers(0, 256, (num, 512), np.uint8)
    return datasets.dsprites.DSprites(name="packed", grid=grid, rows=np.arange(num), recipe={})


def _model(options: argparse.Namespace, device: torch.device) -> NVAE:
    config = CPU_SHAPE if options.preset is None else NVAE_PRESETS[options.preset].build().model
    torch.manual_seed(0)
    return NVAE(config, CELEBA64).to(device).eval()


def sample(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Compare sampling many images in one pass with sampling them one at a time."""
    model = _model(options, device)

    def one_by_one() -> None:
        for _ in range(options.batch_size):
            model.sample(1, 0.7)

    cases = [
        Case("batched", lambda: model.sample(options.batch_size, 0.7), options.batch_size),
        Case("one by one", one_by_one, options.batch_size),
    ]
    for case in cases:
        case.counts = {
            "gflop": counting.flops(case.step) / 1e9,
            "operations": counting.count(case.step).operations,
            "peak_mib": harness.peak_memory_mib(case.step, device),
        }
    seconds = harness.interleave(cases, options.rounds, device)
    rows = [harness.timing_row("sample", c, seconds[c.variant]) for c in cases]
    return [*rows, harness.ratio_row("sample", "batched", "one by one", seconds)]


@torch.no_grad()
def evaluate(options: argparse.Namespace, device: torch.device) -> list[Row]:
    """Compare K importance draws that share one bottom-up pass with a whole pass for each draw."""
    model, draws = _model(options, device), options.draws
    x = to_float(random_images(CELEBA64, options.batch_size), CELEBA64, device)

    def noises(count: int) -> list[torch.Tensor]:
        return noise.standard_normal(model.group_shapes, noise.generator(device, "benchmark"), local=count)

    def shared() -> None:
        features = model.bottom_up(x)
        for _ in range(draws):
            log_weight(model.from_features(features, noises(len(x))), x)

    def repeated() -> None:
        output = model.from_features(model.bottom_up(x).repeat(draws), noises(len(x) * draws))
        log_weight(output, x.repeat_interleave(draws, 0))

    def whole() -> None:
        for _ in range(draws):
            log_weight(model(x, noises(len(x))), x)

    cases = [
        Case("shared, draw by draw", shared, len(x)),
        Case("shared, draws batched", repeated, len(x)),
        Case("bottom-up per draw", whole, len(x)),
    ]
    for case in cases:
        case.counts = {
            "draws": draws,
            "gflop": counting.flops(case.step) / 1e9,
            "peak_mib": harness.peak_memory_mib(case.step, device),
        }
    seconds = harness.interleave(cases, options.rounds, device)
    rows = [harness.timing_row("evaluate", c, seconds[c.variant]) for c in cases]
    return rows + [harness.ratio_row("evaluate", c.variant, cases[-1].variant, seconds) for c in cases[:-1]]
