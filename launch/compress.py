"""Compress images losslessly with a trained VAE, and see that its bits per dimension are real.

Examples:
  python launch/compress.py --run runs/celeba-nvae-tiny-seed0 --split test --images 500 --out celeba.strata
  python launch/compress.py --run runs/celeba-nvae-tiny-seed0 --decompress celeba.strata --out images

Runs in float32 on one CPU thread: both directions must compute the same floats, so decompress with the same PyTorch
on the same kind of processor.
"""

from __future__ import annotations

import hashlib
import json
import platform
import struct
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch
from tqdm import tqdm

import datasets
from datasets.files import read_bytes
from launch.console import errors, figures
from launch.console.flags import parse
from launch.machine import distributed, files, noise
from launch.results import bits_back
from launch.results.run import SavedRun, Weights, open_run
from launch.training import checkpoint, evaluation
from metrics.model import VAE

MAGIC = b"STRATA-BITS-BACK"
FORMAT = 1
MOST_HEADER_BYTES = 1 << 24
LARGEST_FILE = 1 << 34
SURVEYED = 32  # images that the latents' grids are chosen by
PREVIEWED = 64
DIGEST_CHARACTERS = 32


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """What to compress or to decompress."""

    run: Path
    """Run folder."""
    out: Path
    """File to write; with --decompress a folder for images.npy (uint8 [N, C, H, W]) and preview.png."""
    decompress: Path | None = None
    """File to decompress."""
    split: str = "test"
    """train, valid or test."""
    images: int | None = None
    """Only so many images, evenly spread over the split; default all of it."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""
    data_root: Path | None = None
    """Where the data is now, if it moved since training."""
    other_data: bool = False
    """Use the data even if they differ from those that the run was trained on."""
    seed: int = 0
    """Of the initial bits and of the reported ELBO's draws."""

    def __post_init__(self) -> None:
        if (self.images is not None and self.images < 1) or self.seed < 0:
            raise ValueError(
                f"--images {self.images} --seed {self.seed}; give 1 or more images and a seed of 0 or more"
            )


@dataclass(frozen=True)
class Header:
    """What a compressed file says of itself."""

    checkpoint: str  # digest of the weights that compressed
    weights: Weights
    arithmetic: str  # of the floats that they compute here
    torch: str
    processor: str
    data: str
    count: int
    halvings: list[list[int]]
    seed: int
    num_initial: int
    num_words: int
    words: str  # digest
    pixels: str  # digest


def _digest(content: bytes) -> str:
    """128 bits of SHA-256 in hexadecimal: against damage and mistakes."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]


def _pixels(images: Sequence[bits_back.Ints]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.stack(images).astype(np.uint8)


@torch.no_grad()
def arithmetic(model: VAE) -> str:
    """A digest of what the model computes of a fixed image: equal where encoder and decoder see the same floats."""
    spec = model.spec
    source = torch.Generator().manual_seed(0)
    x = torch.randint(2**spec.num_bits, (1, spec.channels, spec.height, spec.width), generator=source).float()
    drawn = noise.standard_normal(model.group_shapes, source, local=1)
    output = model(x / (2**spec.num_bits - 1), drawn)
    beliefs = [t for g in output.groups for t in (g.posterior.mean, g.posterior.std, g.prior.mean, g.prior.std)]
    return _digest(b"".join(t.numpy().tobytes() for t in (*beliefs, output.likelihood.mean)))


def to_bytes(header: Header, words: bits_back.Words) -> bytes:
    """A compressed file: magic, format and header's length (little-endian), header (JSON), words (little-endian)."""
    text = json.dumps(asdict(header), separators=(",", ":")).encode()
    return MAGIC + struct.pack("<II", FORMAT, len(text)) + text + words.astype("<u4").tobytes()


def from_bytes(content: bytes, where: str) -> tuple[Header, bits_back.Words]:
    """The inverse of :func:`to_bytes`.

    Raises:
        ValueError: no such file, of another format, truncated or damaged.
    """
    start = len(MAGIC) + 8
    if not content.startswith(MAGIC) or len(content) < start:
        raise ValueError(f"{where} is no file of compress.py; give one that it wrote")
    version, size = struct.unpack("<II", content[len(MAGIC) : start])
    if version != FORMAT:
        raise ValueError(f"{where} has format {version}, this program reads {FORMAT}; use the Strata that wrote it")
    if len(content) < start + size or size > MOST_HEADER_BYTES:
        raise ValueError(f"{where} is truncated within its header; restore it")
    try:
        header = Header(**json.loads(content[start : start + size]))
        num_words = int(header.num_words)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{where} has a damaged header; restore it") from error
    payload = content[start + size :]
    if len(payload) != 4 * num_words:
        raise ValueError(
            f"{where} holds {len(payload):,} bytes of images instead of {4 * num_words:,}, it was truncated or "
            "extended; restore it"
        )
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    if _digest(payload) != header.words:
        raise ValueError(f"{where} is damaged, its bytes do not match its checksum; restore it")
    return header, words


def _checkpoint_of(run: SavedRun, header: Header, where: Path) -> Path:
    for path in checkpoint.find(run.files.checkpoints):
        if files.sha256(path).startswith(header.checkpoint):
            return path
    raise ValueError(
        f"{where} was compressed with checkpoint {header.checkpoint[:12]}, which is none of {run.files.checkpoints}; "
        "give the run that compressed it"
    )


def _codec(model: VAE, halvings: bits_back.Halvings, seed: int) -> bits_back.BitsBack:
    bits_back.check_codable(model)
    if [len(group) for group in halvings] != [shape[0] for shape in model.group_shapes]:
        raise ValueError("the file's header does not fit the model's groups; restore it")
    return bits_back.BitsBack(model, halvings, seed)


def unpack(content: bytes, model: VAE, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The images, uint8 [N, C, H, W], of a compressed file's ``content``; ``model`` must be the one that wrote it.

    Raises:
        ValueError: a damaged file, or other arithmetic than that of the encoder.
    """
    header, words = from_bytes(content, where)
    codec = _codec(model, header.halvings, header.seed)
    if arithmetic(model) != header.arithmetic:
        raise ValueError(
            f"{where} was compressed with PyTorch {header.torch} on {header.processor}, whose floats differ from those "
            f"here (PyTorch {torch.__version__}, {platform.machine()}); decompress it there"
        )
    coded = bits_back.Coded(words, header.num_initial)
    images = _pixels(bits_back.decode(codec, coded, header.count, lambda n: tqdm(n, "unpacking", disable=None)))
    if _digest(images.tobytes()) != header.pixels:
        raise ValueError(
            f"the images of {where} did not come out as they went in; decompress on the machine it is from"
        )
    return images


@dataclass(frozen=True)
class Packed:
    """A compressed file and its sizes in bits."""

    content: bytes
    bits: int
    net_bits: int


def pack(model: VAE, data: datasets.Subset, *, seed: int, digest: str, weights: Weights) -> Packed:
    """Compress all images of ``data`` with ``model``, whose checkpoint's SHA-256 is ``digest``."""
    levels = data.images(np.arange(len(data)))
    sample = datasets.to_float(levels[:SURVEYED], data.spec, torch.device("cpu"))
    halvings = bits_back.choose_halvings(model, sample, torch.Generator().manual_seed(seed))
    images = [image.numpy().astype(np.int32) for image in levels]
    coded = bits_back.encode(_codec(model, halvings, seed), images, lambda n: tqdm(n, "packing", disable=None))
    header = Header(
        checkpoint=digest[:DIGEST_CHARACTERS],
        weights=weights,
        arithmetic=arithmetic(model),
        torch=torch.__version__,
        processor=platform.machine(),
        data=data.name,
        count=len(images),
        halvings=halvings,
        seed=seed,
        num_initial=coded.num_initial,
        num_words=len(coded.words),
        words=_digest(coded.words.astype("<u4").tobytes()),
        pixels=_digest(_pixels(images).tobytes()),
    )
    return Packed(to_bytes(header, coded.words), coded.bits, coded.net_bits)


def report(packed: Packed, negative_elbo: float, count: int, num_dims: int) -> str:
    """Measured bits/dim beside the negative ELBO of the same images."""
    total = count * num_dims
    rows = [
        ("negative ELBO", negative_elbo),
        ("measured", packed.net_bits / total),
        ("measured with the initial bits", packed.bits / total),
        ("the file, header included", 8 * len(packed.content) / total),
    ]
    lines = [f"{'':32}{'bits/dim':>10}{'ratio':>9}"]
    lines += [f"{name:32}{bits:>10.5f}{bits / negative_elbo:>9.4f}" for name, bits in rows]
    return "\n".join(lines)


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _compress(config: CompressConfig, run: SavedRun) -> None:
    if config.out.is_dir():
        raise ValueError(f"{config.out} is a folder; give --out a file to write")
    model = run.model
    bits_back.check_codable(model)
    split = run.data(config.split)
    data = datasets.Subset(split, datasets.choose_rows(len(split), config.images))
    ranks = distributed.start("cpu")
    result = evaluation.evaluate(model, data, ranks, batch_size=64, seed=config.seed, both_edges=True).summary()
    negative_elbo = float(result.get("exact_bits_per_dim", result["bits_per_dim"]))  # codes are of exact edges
    packed = pack(model, data, seed=config.seed, digest=files.sha256(run.checkpoint), weights=config.weights)
    restored = unpack(packed.content, model, str(config.out))
    assert np.array_equal(restored, data.images(np.arange(len(data))).numpy())
    config.out.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(config.out, lambda file: _write(file, packed.content))
    print(
        f"{config.run}, step {run.step:,}: {len(data):,} images of {data.name}, {config.split} split, in {config.out}"
    )
    print(report(packed, negative_elbo, len(data), data.spec.num_dims))
    print("decompressed again: every pixel is as it was")


def _decompress(config: CompressConfig, run: SavedRun, file: Path) -> None:
    if not file.is_file():
        raise ValueError(f"there is no file {file}; give one that compress.py wrote")
    content = read_bytes(file, LARGEST_FILE)
    header, _ = from_bytes(content, str(file))
    path = _checkpoint_of(run, header, file)
    images = unpack(content, replace(run, weights=header.weights, asked_checkpoint=path).model, str(file))
    config.out.mkdir(parents=True, exist_ok=True)
    shown = datasets.to_float(torch.from_numpy(images[:PREVIEWED]), run.spec, torch.device("cpu"))
    figures.save(figures.grid(shown), config.out / "preview.png")
    files.write_atomically(config.out / "images.npy", lambda target: np.save(target, images, allow_pickle=False))
    print(f"{len(images):,} images of {header.data}: {config.out / 'images.npy'}, the first ones in preview.png")


def main(arguments: list[str]) -> None:
    """Parse, then compress or decompress."""
    config = parse(CompressConfig, None, arguments, prog="compress.py", description=__doc__ or "")
    torch.set_num_threads(1)
    run = open_run(config.run, weights=config.weights, data_root=config.data_root, other_data=config.other_data)
    if config.decompress is not None:
        _decompress(config, run, config.decompress)
    else:
        _compress(config, run)


if __name__ == "__main__":
    errors.main(main)
