"""Scoring of a run, or of codes from another program: encode once, compute the scores, write scores.json."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
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
from launch.results import encoding, image_scores, scores
from launch.results.codes_file import CodesFile, grid_of, read_codes
from launch.results.encoding import Encoded, Int64, Protocol
from launch.results.image_scores import score_folders
from launch.results.run import SavedRun, open_run
from launch.results.scores import Scored
from launch.training import checkpoint, evaluation
from launch.training.folder import provenance
from metrics.hierarchy import DIMS
from metrics.model import VAE

SCORES, PER_IMAGE = "scores.json", "scores.npz"


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
    """Number of samples whose nearest real image is searched, if the data set is complete (dSprites); 0 leaves it
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
            raise ValueError(f"--dims {self.dims}; give numbers from 1, e.g. 5 10 20 50")
        check_timeout(self.timeout_minutes)

    @property
    def protocol(self) -> Protocol:
        """Choice of the images."""
        num_images = None if isinstance(self.images, Path) else self.images
        return Protocol(split=self.split, images=num_images, seed=self.seed, full_grid=self.full_grid)


def _check_grid(data: datasets.Dataset) -> None:
    """Refuse --full-grid if the images are not all combinations of the factors in order."""
    total = math.prod(data.factor_sizes) if data.factor_names else 0
    ordered = total == len(data) and np.array_equal(
        np.ravel_multi_index(tuple(data.factors(range(len(data))).numpy().T), data.factor_sizes), np.arange(total)
    )
    if not ordered:
        raise ValueError(f"{data.name} does not hold every combination of its factors; leave --full-grid out")


def _available(data: datasets.Dataset, config: ScoreConfig, model: VAE) -> dict[scores.Need, str | None]:
    no_factors = f"{data.name} has no ground-truth factors; choose metrics that need none, such as total_correlation"
    return {
        "factors": None if data.factor_names else no_factors,
        "classes": None,
        "few units": None,
        "grid": None if config.full_grid else "needs every combination of the factors; add --full-grid",
        "variances": None
        if encoding.is_one_vector(model.group_shapes)
        else "needs a model with a single vector of latents; leave it out",
    }


def scored_from(encoded: Encoded, factors: Int64 | None, grid_sizes: tuple[int, ...], config: ScoreConfig) -> Scored:
    """Input of the scores from encoded images; a hierarchy's code is ``moments`` at the headline dimension."""
    dim = 10 if 10 in config.dims else config.dims[0]
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
    return Scored(
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
        seed=config.seed,
        dims=config.dims,
        shuffles=config.shuffles,
        group_shuffles=config.group_shuffles,
        resamples=config.resamples,
    )


def _say(what: str) -> None:
    print(f"scoring: {what}", file=sys.stderr, flush=True)


def _elbo_rows(rows: Int64, config: ScoreConfig) -> Int64:
    """Choose the images of the held-out ELBO, evenly spread over those that are scored."""
    return rows[datasets.choose_rows(len(rows), config.elbo_images)]


def _held_out(run: SavedRun, data: datasets.Dataset, rows: Int64, config: ScoreConfig, ranks: Ranks) -> Any:
    """ELBO terms of some of the images, or None if they were not requested."""
    if not config.elbo_images:
        return None
    some = datasets.Subset(data, _elbo_rows(rows, config))
    means = not run.family.measure(run.config).has_rate
    return evaluation.evaluate(run.model, some, ranks, batch_size=config.batch_size, seed=config.seed, at_means=means)


def score_run(path: Path, config: ScoreConfig, ranks: Ranks) -> dict[str, Any] | None:
    """Score a run; write scores.json and scores.npz (per-image ELBO) to its folder; None on ranks other than 0.

    Raises:
        ValueError: the run cannot be scored; raised before anything is encoded.
    """
    run = open_run(
        path, device=ranks.device, weights=config.weights, data_root=config.data_root, other_data=config.other_data
    )
    data = run.data(config.protocol.open_split())
    if config.full_grid:
        _check_grid(data)
    with torch.device("meta"):  # the checks need only shapes; the weights are read later
        shape = run.new_model()
    names, skipped = scores.choose(config.metrics, _available(data, config, shape))
    model = run.model
    digest = checkpoint.recorded_sha256(run.checkpoint)
    started = time.monotonic()
    encoded = _encoded(model, data, run, config, ranks, f"{digest} {config.weights}")
    rows = config.protocol.rows(len(data))
    held_out = _held_out(run, data, rows, config, ranks)
    fresh = _encoded_untrained(run, data, config, ranks) if config.untrained else None
    if encoded is None:
        return None
    factors = data.factors(encoded.rows).numpy() if data.factor_names else None
    sizes = tuple(data.factor_sizes) if config.full_grid else ()
    scored = scored_from(encoded, factors, sizes, config)
    record = {
        "format": 1,
        "family": run.family.name,
        "seed": config.seed,
        **_made_with(),
        "checkpoint": run.checkpoint.name,
        "checkpoint_sha256": digest,
        "weights": config.weights,
        "step": run.step,
        "data": {"name": data.name, "recipe": data.recipe},
        "protocol": config.protocol.as_json(),
        "num_images": len(encoded.rows),
        "factor_names": list(data.factor_names),
        "code": scored.code_name,
        "group_shapes": [list(shape) for shape in encoding.shapes_of(model)],
        "max_side": encoded.max_side,
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "kl_at_means": encoded.kl.mean(0, dtype=np.float64).tolist(),
        "kl_of_units": encoded.kl_of_units,
        "active_units": encoded.active_latents,
        "held_out": None if held_out is None else held_out.summary(),
        "samples": image_scores.score_samples(run, data, num=config.samples, seed=config.seed)
        if config.samples
        else None,
        "scores": scores.compute(names, scored, _say),
        "skipped": skipped,
        "untrained": None,
    }
    if fresh is not None:
        of_fresh = scored_from(fresh, factors, sizes, config)
        record["untrained"] = scores.compute(names, of_fresh, lambda name: _say(f"{name}, untrained"))
    record["seconds"] = time.monotonic() - started
    if held_out is not None:
        _save_per_image(run.folder / PER_IMAGE, held_out, _elbo_rows(rows, config))
    files.write_json(config.out or run.folder / SCORES, record)
    return record


def _encoded(
    model: VAE, data: datasets.Dataset, run: SavedRun, config: ScoreConfig, ranks: Ranks, key: str
) -> Encoded | None:
    return encoding.encode_once(
        model,
        data,
        config.protocol,
        ranks,
        run.folder / "codes",
        model_key=key,
        batch_size=config.batch_size,
        max_gib=config.max_gib,
    )


def _encoded_untrained(run: SavedRun, data: datasets.Dataset, config: ScoreConfig, ranks: Ranks) -> Encoded | None:
    """Codes of the same architecture with fresh weights from the run's seed, in float32."""
    torch.manual_seed(run.config.run.seed)
    module = run.new_model().to(ranks.device).eval().requires_grad_(False)
    architecture = hashlib.sha256(json.dumps(run.record["config"]["model"], sort_keys=True).encode()).hexdigest()
    key = f"untrained {architecture} seed {run.config.run.seed}"
    return _encoded(module, data, run, config, ranks, key)


def _save_per_image(path: Path, held_out: evaluation.Evaluation, rows: Int64) -> None:
    arrays: dict[str, Any] = {
        "rows": rows,
        "log_likelihood": held_out.log_likelihood.numpy(),
        "kl": held_out.kl.numpy(),
    }
    files.write_atomically(path, lambda file: np.savez(file, **arrays))


def _made_with() -> dict[str, Any]:
    """Commit and versions, so that the result can be reproduced."""
    made = provenance()
    more = {name: version(name) for name in ("scipy", "scikit-learn")}
    return {"commit": made["commit"], "versions": made["versions"] | more}


# --- Codes from elsewhere -------------------------------------------------------------------------------------------


def scores_path(config: ScoreConfig) -> Path:
    """Return the file that the scores are written to."""
    if config.out is not None:
        return config.out
    if config.run is not None:
        return config.run / SCORES
    if config.codes is not None:
        return config.codes.with_name(f"{config.codes.stem}.{SCORES}")
    assert isinstance(config.images, Path)
    return config.images / SCORES


def score_codes(path: Path, config: ScoreConfig) -> dict[str, Any]:
    """Score codes without a model and write <name>.scores.json beside them."""
    read = read_codes(path)
    grid, sizes = grid_of(read.codes, read.factors)
    names, skipped = scores.choose(config.metrics, _available_in(read, path, has_grid=grid is not None))
    num_points, num_latents = read.codes.shape
    scored = Scored(
        codes=read.codes,
        code_name="as given",
        code_factors=read.factors,
        variances=read.variances,
        groups=[read.codes],
        units=[read.codes[:, d : d + 1] for d in range(num_latents)],
        resolution=[1] * num_latents,
        factors=None if read.factors is None else metrics.quantile_classes(read.factors),
        grid_codes=grid,
        grid_sizes=sizes,
        seed=config.seed,
        dims=config.dims,
        shuffles=config.shuffles,
        group_shuffles=config.group_shuffles,
        resamples=config.resamples,
    )
    record = {
        "format": 1,
        "codes": path.name,
        "codes_sha256": read.sha256,
        "seed": config.seed,
        **_made_with(),
        "protocol": {"dims": list(config.dims), "shuffles": config.shuffles, "resamples": config.resamples},
        "num_images": num_points,
        "num_latents": num_latents,
        "code": scored.code_name,
        "factor_names": [] if read.factors is None else list(read.factors.names),
        "ignored_columns": list(read.ignored),
        "scores": scores.compute(names, scored, _say),
        "skipped": skipped,
        "untrained": None,
    }
    files.write_json(scores_path(config), record)
    return record


def _available_in(read: CodesFile, path: Path, *, has_grid: bool) -> dict[scores.Need, str | None]:
    """For each need of a score, None or a message about what the file lacks and what to do."""
    no_factors = f"{path} holds no factors; add the key 'factors' to the npz, or columns to the table"
    continuous = [] if read.factors is None else [read.factors.names[k] for k in read.factors.continuous]
    numbers = (
        f"needs classes, and these factors are continuous: {', '.join(continuous[:8])}; "
        "choose mcc, linear_r2, cca, infomec or sap_r2"
    )
    units = f"probes {read.codes.shape[1]} latents one by one and together; request it with --metrics groups"
    return {
        "factors": None if read.factors is not None else no_factors,
        "classes": numbers if continuous else None,
        "grid": None if has_grid else "needs a code of every combination of the factors; choose factor_vae_rows",
        "variances": None if read.variances is not None else "the file has no posterior variances; add them",
        "few units": None if read.codes.shape[1] <= scores.MOST_UNITS else units,
    }


def score_images(config: ScoreConfig) -> dict[str, Any]:
    """Score a folder of images against another, and write scores.json to it."""
    assert isinstance(config.images, Path)
    assert config.reference is not None, "the configuration requires both folders"
    record = score_folders(config.images, config.reference, config.inception, seed=config.seed) | _made_with()
    files.write_json(scores_path(config), record)
    return record
