"""Codes of an evaluation set: all that a score sees of a model, encoded once and cached in the run folder."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import datasets
import metrics
from datasets import to_float
from launch.console.terminal import one_line, say
from launch.machine.distributed import Ranks
from launch.machine.files import read_npz, write_atomically
from launch.training import evaluation
from launch.training.evaluation import ImageSet
from metrics.edits import residual_parameters
from metrics.elbo import ACTIVE_UNIT_NATS
from metrics.model import VAE

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
FORMAT = 1
CHEAP_IMAGES = 2000
CHEAP_SCORES = ("mig", "jemmig", "mcc", "linear_r2")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Choice of the images to encode; scores of two runs are comparable if it and the data agree."""

    split: str = "test"
    images: int | None = 10_000
    """Size of a random subset of the split, drawn with ``seed``; None takes all."""
    seed: int = 0
    full_grid: bool = False
    """Encode every combination of the factors instead of ``split`` and ``images``."""

    def open_split(self) -> str:
        """The split that holds the images."""
        return "all" if self.full_grid else self.split

    def rows(self, num_images: int) -> Int64:
        """Choose images of a split, ascending."""
        return datasets.choose_rows(num_images, None if self.full_grid else self.images, seed=self.seed)


@dataclass(frozen=True)
class Encoded:
    """Posteriors of N images, each group at its posterior mean given the means of the groups above; top group first."""

    residuals: list[Float32]  # per group (mu_q - mu_p) / sigma_p, [N, C, H, W]
    means: list[Float32]  # per group mu_q, [N, C, H, W]
    variance: Float32 | None  # [N, D] of the posterior of a model with one vector of latents
    kl: Float32  # [N, L] in nats, given the means above, of the posterior before any flow
    kl_per_channel: list[Float32]  # per group [C], nats per image
    resolution: list[int]  # per group, height of the latents in the model (maps may be kept smaller)
    rows: Int64  # [N], indices of the images in the split
    max_side: int  # larger maps were averaged down to this side, so that N images fit the allowed memory

    @property
    def kl_of_units(self) -> list[float]:
        """Mean KL in nats of each of ``units``, given the means above."""
        if self.variance is None:
            return [float(v) for v in self.kl.mean(0, dtype=np.float64)]
        return [float(v) for v in self.kl_per_channel[0]]

    @property
    def active_latents(self) -> int:
        """Number of latent channels that carry more than a tenth of a nat on average."""
        return int(sum((kl > ACTIVE_UNIT_NATS).sum() for kl in self.kl_per_channel))

    @property
    def units(self) -> list[Float32]:
        """Groups for :func:`metrics.group_information`: a single vector counts as D groups of one latent."""
        if self.variance is None:
            return self.residuals
        flat = self.residuals[0].reshape(len(self.rows), -1)
        return [flat[:, d : d + 1] for d in range(flat.shape[1])]


def shapes_of(model: VAE) -> list[tuple[int, int, int]]:
    """(C, H, W) of each group's maps; a group [B, D] has D channels at one position."""
    return [(s[0], s[1], s[2]) if len(s) == 3 else (s[0], 1, 1) for s in model.group_shapes]


def is_one_vector(shapes: Sequence[Sequence[int]]) -> bool:
    """True if a model has a single group at a single position; its units are then its latents, not its groups."""
    return len(shapes) == 1 and math.prod(shapes[0][1:]) == 1


def _map(latents: Tensor) -> Tensor:
    """View latents of any shape [B, C, ...] as [B, C, H, W]."""
    return latents.reshape(*latents.shape, *[1] * (4 - latents.dim()))


def largest_side(shapes: Sequence[tuple[int, int, int]], num_images: int, max_gib: float) -> int:
    """Largest side of maps, at least 1, with which means and residuals take at most ``max_gib``."""
    side = max(max(h, w) for _, h, w in shapes)
    while side > 1:
        numbers = sum(c * min(h, side) * min(w, side) for c, h, w in shapes)
        if 2 * 4 * numbers * num_images <= max_gib * 2**30:
            break
        side = 2 ** (math.ceil(math.log2(side)) - 1)
    return side


def _pooled(values: Tensor, side: int) -> Tensor:
    height, width = values.shape[-2:]
    if max(height, width) <= side:
        return values
    return F.adaptive_avg_pool2d(values, (min(height, side), min(width, side)))


def _encode_block(model: VAE, x: Tensor, side: int) -> dict[str, Float32]:
    part: dict[str, Tensor] = {}
    kl = []
    for i, group in enumerate(model.groups_at_means(x)):
        posterior = group.posterior
        elementwise = _map(posterior.kl(group.prior))
        kl.append(elementwise.flatten(1).sum(1))
        part[f"residual{i}"] = _pooled(_map(residual_parameters(group).mean), side)
        part[f"mean{i}"] = _pooled(_map(posterior.mean), side)
        part[f"channel_kl{i}"] = elementwise.flatten(2).sum(2)
        if is_one_vector(model.group_shapes):
            part["variance"] = posterior.std.square().flatten(1)
    part["kl"] = torch.stack(kl, dim=1)
    return {name: value.float().cpu().numpy() for name, value in part.items()}


@torch.no_grad()
def encode(model: VAE, data: ImageSet, rows: Int64, ranks: Ranks, *, batch_size: int, max_gib: float) -> Encoded:
    """Encode images ``rows`` of ``data`` in float32; blocks are dealt to the ranks, and every rank returns all codes.

    The model must be in eval mode. Rank 0 shows a progress bar.
    """
    shapes = shapes_of(model)
    side = largest_side(shapes, len(rows), max_gib)
    parts: list[tuple[int, dict[str, Float32]]] = []
    shown = ranks.is_main and sys.stderr.isatty()
    with tqdm(total=len(rows), unit="img", desc="encoding", disable=not shown, dynamic_ncols=True) as bar:
        for block, positions in evaluation.blocks(len(rows), ranks, batch_size):
            x = to_float(data.images(rows[positions]), data.spec, ranks.device)
            parts.append((block, _encode_block(model, x, side)))
            bar.update(min(len(positions) * ranks.world_size, len(rows) - bar.n))
    gathered = sorted((part for own in ranks.gather(parts) for part in own), key=lambda part: part[0])
    whole: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([part[name] for _, part in gathered]) for name in gathered[0][1]
    }
    for i in range(len(shapes)):
        whole[f"channel_kl{i}"] = whole[f"channel_kl{i}"].mean(0, dtype=np.float64).astype(np.float32)
    resolution = np.array([height for _, height, _ in shapes], dtype=np.int64)
    return _from_arrays(whole | {"rows": rows, "resolution": resolution, "max_side": np.array(side)})


# --- The cache ------------------------------------------------------------------------------------------------------


def save(path: Path, encoded: Encoded) -> None:
    """Write codes as a plain npz, atomically."""
    arrays: dict[str, Any] = {
        "kl": encoded.kl,
        "rows": encoded.rows,
        "resolution": np.array(encoded.resolution, dtype=np.int64),
        "max_side": np.array(encoded.max_side, dtype=np.int64),
    }
    for i, residual in enumerate(encoded.residuals):
        arrays |= {f"residual{i}": residual, f"mean{i}": encoded.means[i], f"channel_kl{i}": encoded.kl_per_channel[i]}
    if encoded.variance is not None:
        arrays["variance"] = encoded.variance
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: np.savez(file, **arrays))


def load(path: Path) -> Encoded | None:
    """Read codes; None if there are none or the file is damaged, so that they are encoded again."""
    if not path.exists():
        return None
    try:
        return _from_arrays(read_npz(path))
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        say(f"warning: {path} is damaged ({one_line(error)[:80]}): encoding again", file=sys.stderr)
        return None


def _from_arrays(arrays: dict[str, npt.NDArray[Any]]) -> Encoded:
    """Inverse of the conversion in :func:`save`.

    Raises:
        ValueError, LookupError, TypeError, OverflowError: an array is missing or has the wrong type or shape.
    """
    resolution = [int(r) for r in arrays["resolution"]]
    count, rows = range(len(resolution)), arrays["rows"]
    encoded = Encoded(
        residuals=[arrays[f"residual{i}"] for i in count],
        means=[arrays[f"mean{i}"] for i in count],
        variance=arrays.get("variance"),
        kl=arrays["kl"],
        kl_per_channel=[arrays[f"channel_kl{i}"] for i in count],
        resolution=resolution,
        rows=rows,
        max_side=int(arrays["max_side"]),
    )
    variance = [] if encoded.variance is None else [encoded.variance]
    floats = [*encoded.residuals, *encoded.means, *encoded.kl_per_channel, encoded.kl, *variance]
    if not count or rows.dtype != np.int64 or rows.ndim != 1 or any(values.dtype != np.float32 for values in floats):
        raise ValueError("its arrays have the wrong types")
    for residual, mean, kl in zip(encoded.residuals, encoded.means, encoded.kl_per_channel, strict=True):
        if residual.ndim != 4 or residual.shape != mean.shape or kl.shape != residual.shape[1:2]:
            raise ValueError("its arrays do not belong together")
    if any(len(values) != len(rows) for values in (*encoded.residuals, encoded.kl, *variance)):
        raise ValueError("its arrays have different numbers of images")
    if encoded.kl.ndim != 2 or any(values.ndim != 2 for values in variance):
        raise ValueError("its arrays have the wrong shapes")
    return encoded


def encode_once(
    model: VAE,
    data: datasets.Dataset,
    protocol: Protocol,
    ranks: Ranks,
    folder: Path,
    *,
    model_key: str,
    batch_size: int,
    max_gib: float,
) -> Encoded | None:
    """Codes from ``folder``, or encoded now by all ranks and stored there; None on ranks other than 0.

    ``model_key`` identifies the weights (a checkpoint's hash).
    """
    made_of = [FORMAT, model_key, data.recipe, asdict(protocol), max_gib]  # everything that determines the codes
    path = folder / f"{hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:20]}.npz"
    found = load(path) if ranks.is_main else None
    if ranks.from_main(found is not None):
        return found
    rows = protocol.rows(len(data))
    if ranks.is_main and not sys.stderr.isatty():
        say(f"encoding {len(rows):,} images", file=sys.stderr)
    encoded = encode(model, data, rows, ranks, batch_size=batch_size, max_gib=max_gib)
    if not ranks.is_main:
        return None
    save(path, encoded)
    return encoded


def cheap_scores(
    model: VAE, data: datasets.Dataset, ranks: Ranks, *, batch_size: int, seed: int, images: int = CHEAP_IMAGES
) -> dict[str, float]:
    """Scores at d = 10 (``moments`` of residual means, scored on one half) and active latents, by tag."""
    encoded = encode(
        model, data, Protocol(images=images, seed=seed).rows(len(data)), ranks, batch_size=batch_size, max_gib=1.0
    )
    reduced = metrics.reduce_groups(encoded.residuals, "moments", dim=10, seed=seed)
    factors = data.factors(encoded.rows[reduced.rows])
    found = {f"score/{name}_d10": float(getattr(metrics, name)(reduced.codes, factors).score) for name in CHEAP_SCORES}
    return {**found, "score/active_latents": float(encoded.active_latents)}
