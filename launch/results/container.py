"""The file format of compress.py: a JSON header, validated on reading, and the words of the coder."""

from __future__ import annotations

import hashlib
import json
import platform
import struct
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from tqdm import tqdm

import datasets
from launch.machine import noise
from launch.results import bits_back
from launch.results.run import Weights
from metrics.model import VAE

MAGIC = b"STRATA-BITS-BACK"
FORMAT = 1
MOST_HEADER_BYTES = 1 << 24
SURVEYED = 32  # number of images from which the latents' grids are chosen
DIGEST_CHARACTERS = 32
LEAST_BITS = 1  # per image, which bounds the number of images in a file

Count = Annotated[int, Field(ge=0)]
Digest = Annotated[str, Field(max_length=64)]
Version = Annotated[str, Field(max_length=64)]
Halving = Annotated[int, Field(ge=0, le=bits_back.MOST_HALVINGS)]


@dataclass(frozen=True)
class Header:
    """Header of a compressed file."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    checkpoint: Digest  # of the checkpoint that compressed the images
    weights: Weights
    arithmetic: Digest  # of the floats that the model computes for a fixed image
    torch: Version  # of the PyTorch that compressed the images
    processor: Version  # kind of processor that compressed the images
    data: str  # name of the data set
    count: Annotated[int, Field(ge=1)]  # images
    halvings: list[list[Halving]]  # for each group and channel, the h of its grid's step 2^-h
    seed: Annotated[int, Field(ge=0, lt=2**63)]  # of offsets and initial bits
    num_initial: Count  # initial words, at the bottom of the stack
    num_words: Count  # all words
    words: Digest  # of the words
    pixels: Digest  # of the images


def _digest(content: bytes) -> str:
    """128 bits of SHA-256 in hexadecimal, to detect damage and mistakes."""
    return hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]


@torch.no_grad()
def arithmetic(model: VAE) -> str:
    """Digest the model's output for a fixed image; equal digests mean that encoder and decoder see the same floats."""
    spec = model.spec
    source = torch.Generator().manual_seed(0)
    x = torch.randint(2**spec.num_bits, (1, spec.channels, spec.height, spec.width), generator=source).float()
    drawn = noise.standard_normal(model.group_shapes, source, local=1)
    output = model(x / (2**spec.num_bits - 1), drawn)
    moments = [t for g in output.groups for t in (g.posterior.mean, g.posterior.std, g.prior.mean, g.prior.std)]
    return _digest(b"".join(t.numpy().tobytes() for t in (*moments, output.likelihood.mean)))


def to_bytes(header: Header, words: bits_back.Words) -> bytes:
    """Serialise: magic, format and length of the header (little-endian), header (JSON), words (little-endian)."""
    text = json.dumps(asdict(header), separators=(",", ":")).encode()
    return MAGIC + struct.pack("<II", FORMAT, len(text)) + text + words.astype("<u4").tobytes()


def from_bytes(content: bytes, where: str) -> tuple[Header, bits_back.Words]:
    """Read a file that :func:`to_bytes` wrote.

    Raises:
        ValueError: it is of another format, truncated or damaged.
    """
    start = len(MAGIC) + 8
    if not content.startswith(MAGIC) or len(content) < start:
        raise ValueError(f"{where} is not a file of compress.py; give one that it wrote")
    version, size = struct.unpack("<II", content[len(MAGIC) : start])
    if version != FORMAT:
        raise ValueError(f"{where} has format {version}, this version reads {FORMAT}; use the Strata that wrote it")
    if len(content) < start + size or size > MOST_HEADER_BYTES:
        raise ValueError(f"{where} is truncated within its header; restore it")
    try:
        header = TypeAdapter(Header).validate_json(content[start : start + size])
    except ValidationError as error:
        faults = ", ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
        raise ValueError(f"{where} has a damaged header ({faults}); restore it") from error
    num_words = header.num_words
    payload = content[start + size :]
    if len(payload) != 4 * num_words:
        raise ValueError(
            f"{where} holds {len(payload):,} bytes of images instead of {4 * num_words:,}, it was truncated or "
            "extended; restore it"
        )
    if header.num_initial > num_words or header.count * LEAST_BITS > 32 * num_words:
        raise ValueError(
            f"{where} has a damaged header: {header.count:,} images and {header.num_initial:,} initial words do not fit "
            f"into {num_words:,} words; restore it"
        )
    words = np.frombuffer(payload, "<u4").astype(np.uint32)
    if _digest(payload) != header.words:
        raise ValueError(f"{where} is damaged, its bytes do not match its checksum; restore it")
    return header, words


def _codec(model: VAE, halvings: bits_back.Halvings, seed: int) -> bits_back.BitsBack:
    bits_back.check_codable(model)
    if [len(group) for group in halvings] != [shape[0] for shape in model.group_shapes]:
        raise ValueError("the file's header does not fit the model's groups; restore it")
    return bits_back.BitsBack(model, halvings, seed)


def unpack(content: bytes, model: VAE, where: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decompress a file to images, uint8 [N, C, H, W]; the model must be the one that wrote it.

    Raises:
        ValueError: the file is damaged, or the floats here differ from those of the encoder.
    """
    header, words = from_bytes(content, where)
    codec = _codec(model, header.halvings, header.seed)
    if arithmetic(model) != header.arithmetic:
        raise ValueError(
            f"{where} was compressed with PyTorch {header.torch} on {header.processor}, whose floats differ from those "
            f"here (PyTorch {torch.__version__}, {platform.machine()}); decompress it there"
        )
    coded = bits_back.Coded(words, header.num_initial)
    levels = bits_back.decode(codec, coded, header.count, lambda n: tqdm(n, "unpacking", disable=None))
    images = np.stack(levels).astype(np.uint8)
    if _digest(images.tobytes()) != header.pixels:
        raise ValueError(f"the images decoded from {where} are wrong; decompress on the machine that compressed them")
    return images


def pack(
    model: VAE, data: datasets.Subset, *, seed: int, digest: str, weights: Weights
) -> tuple[bytes, bits_back.Coded]:
    """Compress all images of ``data`` with ``model``, whose checkpoint's SHA-256 is ``digest``; return file and stack."""
    levels = data.images(np.arange(len(data)))
    sample = datasets.to_float(levels[:SURVEYED], data.spec)
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
        pixels=_digest(levels.numpy().tobytes()),
    )
    return to_bytes(header, coded.words), coded
