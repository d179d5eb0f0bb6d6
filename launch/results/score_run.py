"""Scoring of a run or of a folder of images: encode once, compute the scores, write scores.json."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import datasets
import metrics
from launch.console.config import check_timeout
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.results import encoding, scores
from launch.results.encoding import Encoded, Int64, Protocol
from launch.results.run import SavedRun, open_run
from launch.training import checkpoint, evaluation
from launch.training.folder import provenance
from metrics.hierarchy import DIMS

SCORES, PER_IMAGE = "scores.json", ".npz"
OF_THE_ELBO = ("checkpoint_sha256", "weights", "data", "protocol")  # entries by which a record recognises its ELBOs
AT_ONCE = 4096  # images of a data set that are read at once


@dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings of scoring."""

    run: Path | None = None
    """Run folder, of any family."""
    codes: Path | None = None
    """Instead of a run: an npz with codes [N, D], factors [N, K] and variances [N, D], or a csv or parquet table with the
    columns z0, z1, ... and one for each factor, from any framework."""
    reference: Path | None = None
    """Folder of reference images for the images of folder --images: FID, KID, precision and recall."""
    inception: Path | None = None
    """File with the state dict of torchvision's inception_v3, for --reference."""
    metrics: tuple[str, ...] | None = None
    """Names of metrics, see docs/metrics; default all cheap ones that the data allow."""
    split: str = "test"
    """train, valid, test or all."""
    images: int | Path | None = 10_000
    """Size of a random subset of the split; with --reference a folder of images."""
    resamples: int = 100
    """Number of random halves of the rows for intervals of cheap scores; fewer above a million rows x latents; 0:
    none."""
    full_grid: bool = False
    """Encode every combination of the factors (dSprites: 737,280 images): for beta_vae and factor_vae."""
    seed: int = 0
    """Seed of the subset, halves, shuffles and draws."""
    untrained: bool = False
    """Also score the same architecture with fresh weights, as the baseline that a trained model must beat."""
    elbo_images: int = 1000
    """Number of images for the held-out ELBO; 0 leaves it out."""
    samples: int = 500
    """Number of samples whose nearest real image is looked up, if the data set is complete (dSprites); 0 leaves it
    out."""
    dims: tuple[int, ...] = DIMS
    """Dimensions to which every code, hierarchical or flat, is reduced."""
    shuffles: int = 20
    """Number of shuffles for the baselines of reduced codes."""
    group_shuffles: int = 0
    """Number of shuffles for the group table's baseline; each takes as long as the table. Held-out probes score
    noise as 0."""
    max_gib: float = 1.0
    """Largest size of the codes; larger codes are reduced to coarser maps, as the table notes."""
    batch_size: int = 64
    """Images per batch and process."""
    weights: Literal["auto", "raw"] = "auto"
    """auto: the averaged weights if the run has them."""
    data_root: Path | None = None
    """Folder of the data, if it moved since training."""
    other_data: bool = False
    """Accept data that differ from those that the run was trained on."""
    out: Path | None = None
    """JSON file; default scores.json in the run folder, or beside the codes."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes GPUs if there are any."""
    timeout_minutes: float = 30.0
    """Minutes to wait for another rank before all ranks stop and the missing one is named."""

    def __post_init__(self) -> None:
        if isinstance(self.images, Path) != (self.reference is not None):
            raise ValueError("--images FOLDER and --reference FOLDER go together; give both, or --images NUMBER")
        if isinstance(self.images, int) and self.images < 8:
            raise ValueError(f"--images {self.images}; give at least 8")
        for name in ("elbo_images", "samples", "group_shuffles", "resamples"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name.replace('_', '-')} {getattr(self, name)}; give 0 or more")
        if self.shuffles < 1 or self.batch_size < 1 or not self.max_gib > 0:
            raise ValueError("--shuffles, --batch-size and --max-gib must be positive; change them")
        if not self.dims or min(self.dims) < 1:
            raise ValueError(f"--dims {self.dims}; give numbers of 1 or more, e.g. 5 10 20 50")
        if self.out is not None and self.out.suffix != ".json":
            raise ValueError(f"--out {self.out} is not a JSON file; give one that ends in .json")
        check_timeout(self.timeout_minutes)

    @property
    def protocol(self) -> Protocol:
        """Choice of the images."""
        num_images = None if isinstance(self.images, Path) else self.images
        return Protocol(split=self.split, images=num_images, seed=self.seed, full_grid=self.full_grid)

    @property
    def how(self) -> dict[str, Any]:
        """The settings that a :class:`launch.results.scores.Scored` holds."""
        return {name: getattr(self, name) for name in ("seed", "dims", "shuffles", "group_shuffles", "resamples")}

    @property
    def record_path(self) -> Path:
        """File that the scores are written to."""
        if self.out is not None:
            return self.out
        if self.codes is not None:
            return self.codes.with_name(f"{self.codes.stem}.{SCORES}")
        folder = self.images if self.reference is not None else self.run
        assert isinstance(folder, Path), "score.py requires one of --run, --codes and --reference"
        return folder / SCORES


def score_run(path: Path, config: ScoreConfig, ranks: Ranks) -> dict[str, Any] | None:
    """Score a run; write scores.json, and beside it scores.npz (per-image ELBO); None on ranks other than 0.

    Raises:
        ValueError: the run cannot be scored; raised before anything is encoded.
    """
    run = open_run(
        path, device=ranks.device, weights=config.weights, data_root=config.data_root, other_data=config.other_data
    )
    data = run.data(config.protocol.open_split())
    names, skipped = scores.choose(config.metrics, _unmet(run, data, config))
    started = time.monotonic()
    encode = partial(
        encoding.encode_once,
        data=data,
        protocol=config.protocol,
        ranks=ranks,
        folder=run.folder / "codes",
        batch_size=config.batch_size,
        max_gib=config.max_gib,
    )
    digest = checkpoint.recorded_sha256(run.checkpoint)  # now: a run in progress may delete the file
    encoded = encode(run.model, model_key=f"{digest} {config.weights}")
    held_out = _held_out(run, data, config, ranks) if config.elbo_images else None
    fresh = _encode_untrained(run, ranks, encode) if config.untrained else None
    if encoded is None:
        return None
    scored, is_default, left_out = scored_from(encoded, data, config), config.metrics is None, dict[str, str]()
    record = {
        **_about(run, digest, data, config, encoded, scored.code_name),
        "held_out": None if held_out is None else held_out[1].summary(),
        "samples": score_samples(run, data, num=config.samples, seed=config.seed) if config.samples else None,
        "scores": scores.compute(names, scored, announce, skipped if is_default else None),
        "skipped": skipped,
        "untrained": None
        if fresh is None
        else scores.compute(
            names,
            scored_from(fresh, data, config),
            lambda name: announce(f"{name}, untrained"),
            left_out if is_default else None,
        ),
        "seconds": time.monotonic() - started,
    }
    skipped |= {f"{name}, untrained": reason for name, reason in left_out.items() if name not in skipped}
    out = config.out or run.folder / SCORES
    if held_out is not None:
        rows, terms = held_out
        arrays: dict[str, Any] = {"log_likelihood": terms.log_likelihood.numpy(), "kl": terms.kl.numpy()}
        arrays["of"] = np.array(json.dumps({name: record[name] for name in OF_THE_ELBO}))
        files.write_atomically(out.with_suffix(PER_IMAGE), lambda file: np.savez(file, rows=rows, **arrays))
    files.write_json(out, record)
    return record


def _unmet(run: SavedRun, data: datasets.Dataset, config: ScoreConfig) -> dict[scores.Need, str]:
    """The needs of scores that the run does not meet.

    Raises:
        ValueError: --full-grid, and the images are not all combinations of the factors in order.
    """
    unmet: dict[scores.Need, str] = {}
    if not data.factor_names:
        unmet["factors"] = (
            f"{data.name} has no ground-truth factors; choose metrics that need none, such as total_correlation"
        )
    if not config.full_grid:
        unmet["grid"] = "needs every combination of the factors; add --full-grid"
    elif math.prod(data.factor_sizes) != len(data) or not np.array_equal(
        np.ravel_multi_index(tuple(data.factors(range(len(data))).numpy().T), data.factor_sizes), np.arange(len(data))
    ):
        raise ValueError(f"{data.name} does not hold every combination of its factors; leave --full-grid out")
    with torch.device("meta"):  # only shapes are needed; the weights are read later
        shapes = run.new_model().group_shapes
    if not encoding.is_one_vector(shapes):
        unmet["variances"] = "needs a model with a single vector of latents; leave it out"
    return unmet


def scored_from(encoded: Encoded, data: datasets.Dataset, config: ScoreConfig) -> scores.Scored:
    """Input of the scores from encoded images; a hierarchy's code is ``moments`` at the headline dimension."""
    factors = data.factors(encoded.rows).numpy() if data.factor_names else None
    grid_sizes = tuple(data.factor_sizes) if config.full_grid else ()
    dim = scores.headline_dim(config.dims)
    grid: scores.Floats | None = None
    if encoded.variance is not None:
        codes: scores.Floats = encoded.means[0].reshape(len(encoded.rows), -1)
        rows, name = np.arange(len(codes)), "posterior means"
        grid = codes if grid_sizes else None
    else:
        reduced = metrics.reduce_groups(encoded.residuals, "moments", dim=dim, seed=config.seed)
        codes, rows, name = reduced.codes, reduced.rows, f"moments of residual means, d = {reduced.codes.shape[1]}"
        grid = scores.most_varying_channels(encoded.residuals, dim) if grid_sizes else None
    units = encoded.units
    return scores.Scored(
        codes=codes,
        code_name=name,
        code_factors=None if factors is None else factors[rows],
        variances=encoded.variance,
        groups=encoded.residuals,
        units=units,
        resolution=encoded.resolution if len(encoded.resolution) == len(units) else [1] * len(units),
        factors=factors,
        grid_codes=grid,
        grid_sizes=grid_sizes,
        **config.how,
    )


def announce(what: str) -> None:
    """Tell a waiting user which score is computed."""
    print(f"scoring: {what}", file=sys.stderr, flush=True)


def _encode_untrained(run: SavedRun, ranks: Ranks, encode: Callable[..., Encoded | None]) -> Encoded | None:
    """Codes of the same architecture with fresh weights from the run's seed, in float32."""
    seed = run.config.run.seed
    torch.manual_seed(seed)
    model = run.new_model().to(ranks.device).eval().requires_grad_(False)
    architecture = hashlib.sha256(json.dumps(run.record["config"]["model"], sort_keys=True).encode()).hexdigest()
    return encode(model, model_key=f"untrained {architecture} seed {seed}")


def _held_out(
    run: SavedRun, data: datasets.Dataset, config: ScoreConfig, ranks: Ranks
) -> tuple[Int64, evaluation.Evaluation]:
    """Rows of images that are spread evenly over those that are scored, and their ELBO terms."""
    rows = config.protocol.rows(len(data))
    rows = rows[datasets.choose_rows(len(rows), config.elbo_images)]
    some, at_means = datasets.Subset(data, rows), not run.family.measure(run.config, run.spec).has_rate
    return rows, evaluation.evaluate(
        run.model, some, ranks, batch_size=config.batch_size, seed=config.seed, at_means=at_means
    )


def _about(
    run: SavedRun, digest: str, data: datasets.Dataset, config: ScoreConfig, encoded: Encoded, code: str
) -> dict[str, Any]:
    """The part of a record that says what was scored, and how."""
    return {
        "format": 1,
        "family": run.family.name,
        "seed": config.seed,
        **made_with(),
        "checkpoint": run.checkpoint.name,
        "checkpoint_sha256": digest,
        "weights": config.weights,
        "step": run.step,
        "data": {"name": data.name, "recipe": data.recipe},
        "protocol": asdict(config.protocol),
        "num_images": len(encoded.rows),
        "factor_names": list(data.factor_names),
        "code": code,
        "group_shapes": [list(shape) for shape in encoding.shapes_of(run.model)],
        "max_side": encoded.max_side,
        "num_parameters": sum(p.numel() for p in run.model.parameters()),
        "kl_at_means": encoded.kl.mean(0, dtype=np.float64).tolist(),
        "kl_of_units": encoded.kl_of_units,
        "active_units": encoded.active_latents,
    }


def made_with() -> dict[str, Any]:
    """Commit and versions, so that the result can be reproduced."""
    made = provenance()
    more = {name: version(name) for name in ("scipy", "scikit-learn")}
    return {"commit": made["commit"], "versions": made["versions"] | more}


# --- Images ---------------------------------------------------------------------------------------------------------


def score_samples(run: SavedRun, held_out: datasets.Dataset, *, num: int, seed: int) -> dict[str, Any] | None:
    """Score samples at temperature 1, reconstructions, and held-out images by their nearest image of the data set.

    There are ``num`` of each. The model's pixel means are rounded, which avoids the noise of drawing each pixel
    independently.

    Returns:
        Plain results by name, or None if the data set is not one of which every image is known: binary, and with one
        image for each combination of its factors.
    """
    data = run.data("all") if held_out.factor_names else None
    if data is None or data.spec.num_bits > 1 or data.spec.num_dims % 64 or math.prod(data.factor_sizes) != len(data):
        return None
    bank = _bank_of(data)
    real = held_out.images(datasets.choose_rows(len(held_out), min(num, len(held_out))))
    pictures = {"samples": run.sample(num, seed=seed), "reconstructions": run.reconstruct(real), "held_out": real}
    found = {}
    for name, images in pictures.items():
        nearest = bank.nearest(images.round())
        found[name] = metrics.to_plain(metrics.nearest_scores(nearest, data.factors(nearest.index), data.factor_sizes))
    return found


def _bank_of(data: datasets.Dataset) -> metrics.ImageBank:
    """Prepare all images of ``data`` for exact searches; those of a packed cache are not read."""
    storage = getattr(data, "storage", None)
    if storage is not None and storage.is_packed and np.array_equal(storage.rows, np.arange(len(storage.array))):
        return metrics.ImageBank(np.asarray(storage.array))
    blocks = [data.images(range(start, min(start + AT_ONCE, len(data)))) for start in range(0, len(data), AT_ONCE)]
    return metrics.ImageBank(np.concatenate([np.packbits(b.numpy().reshape(len(b), -1), axis=1) for b in blocks]))


def score_folders(generated: Path, reference: Path, config: ScoreConfig) -> dict[str, Any]:
    """Score all images below ``generated`` against all below ``reference``; write scores.json into the former.

    Raises:
        ValueError: no weights, a folder without images, or fewer than two images in one.
    """
    if config.inception is None:
        raise ValueError(
            "FID, KID and precision/recall need an extractor; give --inception FILE, a state dict of torchvision's "
            "inception_v3"
        )
    folders = {"generated": generated, "reference": reference}
    opened = {name: datasets.open_dataset("folder", folder, "all") for name, folder in folders.items()}
    images = {n: datasets.to_float(data.images(range(len(data))), data.spec) for n, data in opened.items()}
    found = metrics.image_scores(images["reference"], images["generated"], config.inception, seed=config.seed)
    record = {
        "format": 1,
        **{name: {"folder": str(folder), "num_images": len(images[name])} for name, folder in folders.items()},
        "extractor": {"file": config.inception.name, "sha256": files.sha256(config.inception)},
        "seed": config.seed,
        "scores": {"images": metrics.to_plain(found)},
        **made_with(),
    }
    files.write_json(config.record_path, record)
    return record
