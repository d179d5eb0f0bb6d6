"""Runs of a comparison: their records, whose types are checked because they may come from other programs, and labels."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, PositiveInt, ValidationError, model_validator

from launch.console.terminal import one_line
from launch.machine import files
from launch.results.run import SavedRun, Weights, open_run
from launch.training import checkpoint
from launch.training.folder import settings
from metrics.measure import Measure

SCORES_FORMAT = 1  # newest format of scores.json that this version reads
LONGEST_NAME = 80  # longest name from a file, in characters
LONGEST_FACTOR = 32  # longest name of a factor, which labels an axis


def clean(name: str, longest: int = LONGEST_NAME) -> str:
    """Shorten a name from a file to printable characters that fit a terminal, a figure and a page."""
    shown = one_line(name)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


class Record(BaseModel, extra="allow", strict=True):
    """A JSON object whose listed fields have the right type; other fields are allowed."""


class _Protocol(Record):
    split: str
    images: int | None
    seed: int
    full_grid: bool


class _Named(Record):
    name: str


class _HeldOut(Record):
    elbo: FiniteFloat | None = None
    rate: FiniteFloat | None = None
    distortion: FiniteFloat | None = None
    bits_per_dim: FiniteFloat | None = None
    psnr: FiniteFloat | None = None
    active_units: FiniteFloat | None = None


class _ReducedRow(Record):
    kind: str
    dim: int
    num_latents: int
    mig: FiniteFloat | None


class _Reduced(Record):
    rows: list[_ReducedRow]


class _Groups(Record):
    matrix: list[list[FiniteFloat]]
    conditional_gain: list[list[FiniteFloat]]
    entropy: list[FiniteFloat]
    kept: list[NonNegativeInt]
    threshold: FiniteFloat | None = None

    @model_validator(mode="after")
    def _fits(self) -> _Groups:
        width = len(self.entropy)
        for table in (self.matrix, self.conditional_gain):
            if len(table) != len(self.matrix) or any(len(row) != width for row in table):
                raise ValueError("tables of groups and factors differ in shape")
        if not self.matrix or not width or len(self.kept) != width:
            raise ValueError("the table of groups and factors is empty or its factors are not named")
        return self


class _Uncertainty(Record):
    interval: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]
    chance: FiniteFloat


class _NoInterval(Record):
    interval: None
    halves_std: FiniteFloat
    chance: FiniteFloat


class _Score(Record):
    score: FiniteFloat | None = None
    uncertainty: _Uncertainty | _NoInterval | None = None


class _Nearest(Record):
    score: FiniteFloat
    median_distance: FiniteFloat
    within: int
    coverage: list[FiniteFloat] = []


class _Samples(Record):
    samples: _Nearest
    reconstructions: _Nearest


class Scores(Record):
    """Part of scores.json that a comparison reads."""

    format: int = 1
    scores: dict[str, dict[str, Any]]
    untrained: dict[str, dict[str, Any]] | None
    protocol: _Protocol
    held_out: _HeldOut | None
    data: _Named
    num_images: PositiveInt
    code: str
    step: NonNegativeInt
    weights: Weights
    num_parameters: PositiveInt
    factor_names: list[str]
    group_shapes: list[Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]]
    kl_of_units: list[FiniteFloat]
    checkpoint_sha256: str
    samples: _Samples | None = None

    @model_validator(mode="after")
    def _fits(self) -> Scores:
        if not 1 <= self.format <= SCORES_FORMAT:
            raise ValueError(f"format {self.format}, this program reads up to {SCORES_FORMAT}")
        for scores in (self.scores, self.untrained or {}):
            for name, kind in (("reduced", _Reduced), ("groups", _Groups)):
                if name in scores:
                    kind.model_validate(scores[name])
            for score in scores.values():
                _Score.model_validate(score)
        if "groups" in self.scores and len(self.scores["groups"]["matrix"]) != len(self.kl_of_units):
            raise ValueError("groups and their KL differ in number")
        if "groups" in self.scores and len(self.group_shapes) not in (1, len(self.kl_of_units)):
            raise ValueError("groups and their shapes differ in number")
        if self.samples is not None and len(self.samples.samples.coverage) != len(self.factor_names):
            raise ValueError("samples do not cover the factors of the data")
        if not self.group_shapes:
            raise ValueError("there are no groups")
        return self


class Summary(Record):
    """Part of summary.json that a comparison reads."""

    seconds: FiniteFloat | None = None
    cpu_seconds: FiniteFloat | None = None
    images_seen: FiniteFloat | None = None
    step: NonNegativeInt | None = None


def read_record(kind: type[Record], path: Path) -> dict[str, Any]:
    """Read a record and check the types of the fields that a comparison uses.

    Raises:
        ValueError: the file is missing or damaged, or a field is missing or of the wrong type (the message names it).
    """
    record = files.read_json(path)
    try:
        kind.model_validate(record)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors()[:3]]
        raise ValueError(f"{path} is damaged ({', '.join(faults)}); score the run again") from error
    return record


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores."""

    saved: SavedRun
    record: dict[str, Any]  # content of scores.json
    summary: dict[str, Any]  # content of summary.json, {} if the run did not reach its end
    elbo: dict[int, float]  # ELBO in nats of single images, by row of the split
    config: dict[str, Any]  # settings of a configuration by dotted name, without seed and paths
    label: str = ""  # name of its configuration

    @property
    def path(self) -> Path:
        """Run folder."""
        return self.saved.folder

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.saved.config.run.seed

    @property
    def unit(self) -> str:
        """Unit of the rows of the group table: "group", or "latent" if a model has one group of latents."""
        return "group" if len(self.record["group_shapes"]) > 1 else "latent"

    @property
    def unit_names(self) -> list[str]:
        """Names of the rows of the group table: groups with their resolution, or latents."""
        if self.unit == "group":
            return [f"{i} ({h}x{w})" for i, (_, h, w) in enumerate(self.record["group_shapes"])]
        return [f"z{i}" for i in range(len(self.record["kl_of_units"]))]

    @property
    def factor_names(self) -> list[str]:
        """Names of the columns of the group table."""
        names, kept = self.record["factor_names"], self.record["scores"]["groups"]["kept"]
        return [clean(names[k], LONGEST_FACTOR) if k < len(names) else f"factor {k}" for k in kept]

    @property
    def has_groups(self) -> bool:
        """True if the group table was computed."""
        return "groups" in self.record["scores"]

    @property
    def epochs(self) -> float | None:
        """Passes over the training images; None if the run did not reach its end."""
        seen, there = self.summary.get("images_seen"), self.saved.record["data"].get("num_images")
        return seen / there if seen and isinstance(there, int) and there > 0 else None

    @property
    def seconds(self) -> float | None:
        """Duration of the training on the wall clock; None if the run did not reach its end."""
        return self.summary.get("seconds")

    @property
    def cpu_seconds(self) -> float | None:
        """CPU time of a training without a GPU, which other work on the machine does not lengthen; None if it is not known."""
        hardware = self.saved.record.get("hardware")
        on_cpu = isinstance(hardware, dict) and hardware.get("gpu", "unknown") is None
        return self.summary.get("cpu_seconds") if on_cpu else None

    def reduced(self, kind: str, dim: int, *, untrained: bool = False) -> float | None:
        """Return the MIG of a reduction; None if it was not computed or does not reach the dimension."""
        scores = self.record["untrained"] if untrained else self.record["scores"]
        rows = (scores or {}).get("reduced", {}).get("rows", [])
        found = (r["mig"] for r in rows if r["kind"] == kind and r["dim"] == dim and r["num_latents"] == dim)
        return next(found, None)

    def score(self, name: str, *, untrained: bool = False) -> float | None:
        """Return the number of a score; None if it was not computed."""
        scores = self.record["untrained" if untrained else "scores"] or {}
        score: float | None = scores.get(name, {}).get("score")
        return score

    @property
    def uncertain(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """Scores by name, each with its ``chance`` level and its ``interval`` over images, None if it would not cover."""
        found = self.record["scores"].items()
        return {
            n: (s["score"], s["uncertainty"]) for n, s in found if s.get("uncertainty") and s.get("score") is not None
        }

    @property
    def measure(self) -> Measure:
        """The kind of numbers that its evaluation gave."""
        measure: Measure = self.saved.family.measure(self.saved.config, self.saved.spec)
        return measure

    def held_out(self, name: str) -> float | None:
        """Return one of the held-out numbers; None for those that mean nothing for the model, such as an autoencoder's ELBO."""
        value = (self.record["held_out"] or {}).get(name) if self.measure.shows(name) else None
        return float(value) if value is not None else None


def likelihood_of(saved: SavedRun) -> str:
    """Name the likelihood, with the edges of a mixture; numbers of two likelihoods are not comparable."""
    model = getattr(saved.config, "model", None)
    name = str(getattr(model, "likelihood", "auto"))
    if name == "auto":
        name = "bernoulli" if saved.spec.num_bits == 1 else "mixture"
    return f"mixture, {getattr(model, 'likelihood_edges', 'exact')} edges" if name == "mixture" else name


def images_of(saved: SavedRun) -> str:
    """Size and bits of the images that a model was made for."""
    spec = saved.spec
    return f"{spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bit"


def _configuration(saved: SavedRun, summary: dict[str, Any]) -> dict[str, Any]:
    """List the settings of a configuration by dotted name, without the seed.

    Two settings that a resumed run may change still distinguish configurations: the number of images per step, over all
    processes, and the run that gave the first weights.
    """
    run, seen, steps = saved.config.run, summary.get("images_seen"), summary.get("step")
    typed = saved.record.get("global_batch") or run.batch_size * saved.config.optim.accumulation
    found = settings(saved.config) | {"run.batch": round(seen / steps) if seen and steps else typed}
    del found["run.seed"]
    return found | ({"run.init_from": str(run.init_from)} if run.init_from else {})


def _per_image(path: Path, record: dict[str, Any]) -> dict[int, float]:
    """Read the ELBO of each row; none if the file is missing or belongs to other scores than ``record``."""
    if not path.exists():
        return {}
    arrays = files.read_npz(path)
    try:
        of = json.loads(str(arrays["of"])) if "of" in arrays else {}
        if any(record.get(name) != value for name, value in of.items()):
            return {}
        elbo = arrays["log_likelihood"].astype(np.float64) - arrays["kl"].astype(np.float64).sum(axis=1)
        if elbo.ndim != 1 or not np.isfinite(elbo).all():
            raise ValueError("numbers that are not finite")
        return dict(zip(arrays["rows"].astype(np.int64).tolist(), elbo.tolist(), strict=True))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:60]}); score the run again") from error


def _is_current(saved: SavedRun, record: dict[str, Any]) -> bool:
    """True if scores belong to the newest checkpoint with a checksum, or if the run has no checkpoint."""
    for path in checkpoint.find(saved.files.checkpoints):
        with contextlib.suppress(ValueError):  # no checksum, so no script reads this checkpoint
            return checkpoint.recorded_sha256(path) == record.get("checkpoint_sha256")
    return True


def read_run(path: Path, score: Callable[[Path], Any] | None) -> ScoredRun:
    """Read a run and its scores; call ``score`` if they are missing or belong to an older checkpoint.

    Raises:
        ValueError: the run must be left out; the message gives the reason in one line.
    """
    saved, scores = open_run(path), path / "scores.json"
    if score is not None and not (scores.is_file() and _is_current(saved, files.read_json(scores))):
        score(path)
    elif not scores.is_file():
        raise ValueError(f"{path} has no scores.json; run: python launch/score.py --run {path}")
    record = read_record(Scores, scores)
    if not isinstance(saved.record.get("data"), dict) or not isinstance(saved.record["data"].get("name"), str):
        raise ValueError(f"{path / 'config.json'} does not name its data; restore it")
    summary = read_record(Summary, path / "summary.json") if (path / "summary.json").is_file() else {}
    elbo = (
        _per_image(path / "scores.npz", record) if saved.family.measure(saved.config, saved.spec).shows("elbo") else {}
    )
    return ScoredRun(saved, record, summary, elbo, _configuration(saved, summary))


def read_runs(paths: Sequence[Path], score: Callable[[Path], Any] | None) -> tuple[list[ScoredRun], list[str]]:
    """Read the runs; return those that can be read and are not given twice, and the reason for each of the others."""
    skipped, kept = list[str](), dict[str, ScoredRun]()
    for path in dict.fromkeys(paths):
        try:
            run = read_run(path, score)
            identity = _identity(run)
            other = kept.setdefault(identity, run)
            if path.resolve() != other.path.resolve():
                best, worse = (run, other) if _progress(run) > _progress(other) else (other, run)
                kept[identity] = best
                said = (
                    f"the same configuration and seed as {best.path}, step {best.record['step']:,}, so no second value"
                )
                skipped.append(one_line(f"{worse.path}: {said}"))
        except (ValueError, OSError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("; ")[0] or type(error).__name__
            skipped.append(one_line(f"{path}: {reason}"))
    return _labelled(list(kept.values())), skipped


def _identity(run: ScoredRun) -> str:
    """Serialise what no two runs of a comparison may share: configuration, seed, data and the scored images."""
    record, trained = run.record, run.saved.record["data"]
    scored = [record["data"], record["protocol"], record["num_images"], record["weights"]]
    return json.dumps([run.saved.family.name, run.config, run.seed, trained, scored], sort_keys=True, default=str)


def _progress(run: ScoredRun) -> tuple[bool, int]:
    """Order runs by how far they came: those that reached their end last."""
    return bool(run.summary), int(run.record["step"])


def _labelled(runs: list[ScoredRun]) -> list[ScoredRun]:
    """Label each run by family, preset and objective, and runs that share these by the settings in which they differ."""
    bases = [clean(run.saved.family.label(run.saved.config)) for run in runs]
    telling = {base: _telling([run for run, b in zip(runs, bases, strict=True) if b == base]) for base in set(bases)}
    named = []
    for run, base in zip(runs, bases, strict=True):
        more = clean("; ".join(_in_words(key, run.config.get(key)) for key in telling[base]))
        named.append(replace(run, label=f"{base} ({more})" if more else base))
    return named


def _in_words(key: str, value: object) -> str:
    """A setting in a label: model.groups_per_scale of [2, 1] becomes 'groups per scale 2, 1'."""
    name = key.rsplit(".", 1)[-1].replace("_", " ")
    return f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"


def _telling(alike: Sequence[ScoredRun]) -> list[str]:
    """Choose a few settings that distinguish all configurations, greedily: each separates as many as possible."""

    def parts(keys: Sequence[str]) -> int:
        return len({json.dumps([run.config.get(key) for key in keys]) for run in alike})

    keys = sorted({key for run in alike for key in run.config if not key.startswith("data.")})
    differing, chosen = [key for key in keys if parts([key]) > 1], list[str]()
    while parts(chosen) < parts(differing):
        chosen.append(max(differing, key=lambda key: parts([*chosen, key])))
    return sorted(chosen)
