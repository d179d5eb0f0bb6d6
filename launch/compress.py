"""Compress images losslessly with a trained VAE, and compare the file's size with the ELBO.

Examples:
  python launch/compress.py --run runs/celeba-nvae-tiny-seed0 --split test --images 500 --out celeba.strata
  python launch/compress.py --run runs/celeba-nvae-tiny-seed0 --decompress celeba.strata --out images

Runs in float32 on one CPU thread: both directions must compute the same floats, so decompress with the same PyTorch
on the same kind of processor.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import launch  # noqa: F401  # first, to set how OpenMP's threads wait before torch is loaded

# isort: split
import numpy as np
import torch

import datasets
from datasets.files import read_bytes
from launch.console import errors, figures
from launch.console.flags import parse
from launch.console.terminal import say
from launch.machine import distributed, files
from launch.report.tables import Table
from launch.results import bits_back
from launch.results.container import Header, from_bytes, pack, unpack
from launch.results.run import RunFlags, SavedRun
from launch.training import checkpoint, evaluation

LARGEST_FILE = 1 << 34
PREVIEWED = 64


@dataclass(frozen=True, kw_only=True)
class CompressConfig(RunFlags):
    """Settings of a compression or decompression."""

    out: Path
    """File to write; with --decompress a folder for images.npy (uint8 [N, C, H, W]) and preview.png."""
    decompress: Path | None = None
    """File to decompress."""
    split: str = "test"
    """train, valid or test."""
    images: int | None = None
    """Number of images, evenly spread over the split; default all."""
    seed: int = 0
    """Seed of the initial bits and of the posterior samples of the reported ELBO."""

    def __post_init__(self) -> None:
        if (self.images is not None and self.images < 1) or self.seed < 0:
            raise ValueError(
                f"--images {self.images} --seed {self.seed}; give 1 or more images and a seed of 0 or more"
            )


def _checkpoint_of(run: SavedRun, header: Header, where: Path) -> Path:
    for path in checkpoint.find(run.files.checkpoints):
        if files.sha256(path).startswith(header.checkpoint):
            return path
    raise ValueError(
        f"{where} was compressed with checkpoint {header.checkpoint[:12]}, which is not in {run.files.checkpoints}; "
        "give the run that compressed it"
    )


def report(content: bytes, coded: bits_back.Coded, negative_elbo: float, num_dims: int) -> Table:
    """Compare the measured bits/dim of ``num_dims`` values with the negative ELBO of the same images."""
    rows = {
        "negative ELBO": negative_elbo,
        "measured": coded.net_bits / num_dims,
        "measured with the initial bits": coded.bits / num_dims,
        "the file, header included": 8 * len(content) / num_dims,
    }
    cells = [[name, f"{bits:.5f}", f"{bits / negative_elbo:.4f}"] for name, bits in rows.items()]
    return Table(["", "bits/dim", "ratio"], cells)


def _compress(config: CompressConfig, run: SavedRun) -> None:
    if config.out.is_dir():
        raise ValueError(f"{config.out} is a folder; give --out a file to write")
    model = run.model
    bits_back.check_codable(model)
    split = run.data(config.split)
    data = datasets.Subset(split, datasets.choose_rows(len(split), config.images))
    ranks = distributed.start("cpu")
    result = evaluation.evaluate(model, data, ranks, batch_size=64, seed=config.seed, both_edges=True).summary()
    negative_elbo = float(result.get("exact_bits_per_dim", result["bits_per_dim"]))  # the coder uses exact edges
    content, coded = pack(model, data, seed=config.seed, digest=files.sha256(run.checkpoint), weights=config.weights)
    restored = unpack(content, model, str(config.out))
    assert np.array_equal(restored, data.images(np.arange(len(data))).numpy())
    config.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(config.out, content)
    say(f"{config.run}, step {run.step:,}: {len(data):,} images of {data.name}, {config.split} split, in {config.out}")
    print(report(content, coded, negative_elbo, len(data) * data.spec.num_dims).text())
    print("verified: decompression restores every pixel")


def _decompress(config: CompressConfig, run: SavedRun, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give one that compress.py wrote")
    content = read_bytes(file, LARGEST_FILE)
    header, _ = from_bytes(content, str(file))
    path = _checkpoint_of(run, header, file)
    images = unpack(content, replace(run, weights=header.weights, asked_checkpoint=path).model, str(file))
    config.out.mkdir(parents=True, exist_ok=True)
    shown = datasets.to_float(torch.from_numpy(images[:PREVIEWED]), run.spec)
    title = f"The first {len(shown)} images of {file.name}, decompressed by {run.title}"
    figures.save(figures.grid(shown, title=title), config.out / "preview.png")
    files.write_atomically(config.out / "images.npy", lambda target: np.save(target, images, allow_pickle=False))
    say(f"{len(images):,} images of {header.data}: {config.out / 'images.npy'}, the first ones in preview.png")


def main(arguments: list[str]) -> None:
    """Parse, then compress or decompress."""
    config = parse(CompressConfig, None, arguments, prog="compress.py", description=__doc__ or "")
    torch.set_num_threads(1)
    run = config.open()
    if config.decompress is not None:
        _decompress(config, run, config.decompress)
    else:
        _compress(config, run)


if __name__ == "__main__":
    errors.main(main)
