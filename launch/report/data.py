"""Runs of a comparison: reading and checking, labels, and grouping into comparable sets."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from launch.console.terminal import one_line
from launch.machine import files
from launch.report import records
from launch.report.statistics import Float64
from launch.results.run import SavedRun, open_run
from launch.training import checkpoint
from launch.training.resume import may_change
from metrics.measure import Measure

HEADLINE_KIND = "moments"
LONGEST_NAME = 80  # longest name from a file, in characters
LONGEST_FACTOR = 32  # longest name of a factor, which labels an axis
# Keys of a data set's recipe that describe the training split, not the images.
OF_THE_SPLIT = ("split", "split_rule", "count", "rows_sha256", "images_sha256", "rules", "seed")


def clean(name: str, longest: int = LONGEST_NAME) -> str:
    """Shorten a name from a file to printable characters that fit a terminal, a figure and a page."""
    shown = one_line(name)
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores.

    Args:
        saved: the run.
        record: content of scores.json.
        summary: content of summary.json, {} if the run did not reach its end.
        elbo: ELBO in nats of single images, by row of the split.
        config: settings of a configuration by dotted name, without seed and paths.
        label: name of its configuration.
    """

    saved: SavedRun
    record: dict[str, Any]
    summary: dict[str, Any]
    elbo: dict[int, float]
    config: dict[str, Any]
    label: str = ""

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
        names = self.record["factor_names"]
        kept = self.record["scores"]["groups"]["kept"]
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

    def trained(self, name: str) -> float | None:
        """Return a number of summary.json."""
        value = self.summary.get(name)
        return None if value is None else float(value)

    def reduced(self, kind: str, dim: int, *, untrained: bool = False) -> float | None:
        """Return the MIG of a reduction; None if it was not computed or does not reach the dimension."""
        scores = self.record["untrained"] if untrained else self.record["scores"]
        rows = (scores or {}).get("reduced", {}).get("rows", [])
        found = (r["mig"] for r in rows if r["kind"] == kind and r["dim"] == dim and r["num_latents"] == dim)
        return next(found, None)

    def score(self, name: str) -> float | None:
        """Return the number of a score."""
        value = self.record["scores"].get(name, {}).get("score")
        return float(value) if isinstance(value, int | float) else None

    @property
    def with_uncertainty(self) -> list[str]:
        """Names of the scores that have a chance level and, if one would cover, an interval over images."""
        found = self.record["scores"].items()
        return [name for name, result in found if result.get("uncertainty") and self.score(name) is not None]

    def uncertainty(self, name: str) -> dict[str, Any] | None:
        """Return the ``interval``, None if the score has none, and the ``chance`` of a score."""
        found: dict[str, Any] | None = self.record["scores"].get(name, {}).get("uncertainty")
        return found

    @property
    def measure(self) -> Measure:
        """The kind of numbers that its evaluation gave."""
        measure: Measure = self.saved.family.measure(self.saved.config)
        return measure

    def held_out(self, name: str) -> float | None:
        """Return one of the held-out numbers; None for those that mean nothing for the model, such as an autoencoder's ELBO."""
        value = (self.record["held_out"] or {}).get(name) if self.measure.shows(name) else None
        return float(value) if value is not None else None


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """List nested settings by dotted name, without those that do not affect results."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if may_change(name):
            continue
        if isinstance(value, dict):
            found |= _flat(value, name + ".")
        elif name != "run.seed":
            found[name] = value
    return found


def _per_image(path: Path) -> dict[int, float]:
    if not path.exists():
        return {}
    arrays = files.read_npz(path)
    try:
        elbo = arrays["log_likelihood"].astype(np.float64) - arrays["kl"].astype(np.float64).sum(axis=1)
        if elbo.ndim != 1 or not np.isfinite(elbo).all():
            raise ValueError("numbers that are not finite")
        return dict(zip(arrays["rows"].astype(np.int64).tolist(), elbo.tolist(), strict=True))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:60]}); score the run again") from error


def is_current(saved: SavedRun, record: dict[str, Any]) -> bool:
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
    if score is not None and not (scores.is_file() and is_current(saved, files.read_json(scores))):
        score(path)
    elif not scores.is_file():
        raise ValueError(f"{path} has no scores.json; run: python launch/score.py --run {path}")
    record = records.read(records.Scores, scores)
    if not isinstance(saved.record.get("data"), dict) or not isinstance(saved.record["data"].get("name"), str):
        raise ValueError(f"{path / 'config.json'} does not name its data; restore it")
    summary = records.read(records.Summary, path / "summary.json") if (path / "summary.json").is_file() else {}
    has_elbo = saved.family.measure(saved.config).shows("elbo")
    elbo = _per_image(path / "scores.npz") if has_elbo else {}
    return ScoredRun(saved, record, summary, elbo, _flat(saved.record["config"]))


def read_runs(paths: Sequence[Path], score: Callable[[Path], Any] | None) -> tuple[list[ScoredRun], list[str]]:
    """Read the runs; return those that can be read, and for each of the others the reason why not."""
    runs, skipped = [], []
    for path in dict.fromkeys(paths):
        try:
            runs.append(read_run(path, score))
        except (ValueError, OSError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            reason = str(error).partition("; ")[0] or type(error).__name__
            skipped.append(one_line(f"{path}: {reason}"))
    return _labelled(runs), skipped


def _labelled(runs: list[ScoredRun]) -> list[ScoredRun]:
    """Label each run by family, preset, objective, and the settings that distinguish runs with the same of these."""
    bases = {id(run): clean(run.saved.family.label(run.saved.config)) for run in runs}
    telling = {base: _telling([run for run in runs if bases[id(run)] == base]) for base in bases.values()}
    named = []
    for run in runs:
        base = bases[id(run)]
        more = clean(", ".join(f"{key.rsplit('.', 1)[-1]} {run.config.get(key)}" for key in telling[base]))
        named.append(replace(run, label=f"{base} ({more})" if more else base))
    return named


def _telling(alike: Sequence[ScoredRun]) -> list[str]:
    """Choose a few settings that distinguish all configurations, greedily by the number that a setting separates."""

    def parts(keys: Sequence[str]) -> int:
        return len({json.dumps([run.config.get(key) for key in keys]) for run in alike})

    keys = sorted({key for run in alike for key in run.config if not key.startswith("data.")})
    differing, chosen = [key for key in keys if parts([key]) > 1], list[str]()
    while parts(chosen) < parts(differing):
        chosen.append(max(differing, key=lambda key: parts([*chosen, key])))
    return sorted(chosen)


# --- Comparable sets --------------------------------------------------------------------------------------------------


def likelihood_of(run: ScoredRun) -> str:
    """Name the likelihood, with the edges of a mixture; numbers of two likelihoods are not comparable."""
    model = getattr(run.saved.config, "model", None)
    name = str(getattr(model, "likelihood", "auto"))
    if name == "auto":
        name = "bernoulli" if run.saved.spec.num_bits == 1 else "mixture"
    return f"mixture, {getattr(model, 'likelihood_edges', 'exact')} edges" if name == "mixture" else name


def terms_of(run: ScoredRun) -> dict[str, str]:
    """List everything in which two runs must agree for their numbers to be comparable."""
    recipe = {k: v for k, v in (run.saved.record["data"].get("recipe") or {}).items() if k not in OF_THE_SPLIT}
    protocol = run.record["protocol"]
    spec = run.saved.spec
    where = "the full grid" if protocol["full_grid"] else f"{run.record['num_images']:,} {protocol['split']} images"
    return {
        "data": clean(run.saved.record["data"]["name"]),
        "recipe": json.dumps(recipe, sort_keys=True),
        "images": f"{spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bit",
        "likelihood": likelihood_of(run),
        "scored on": clean(f"{where} (seed {protocol['seed']})"),
    }


def describe_terms(terms: dict[str, str]) -> str:
    """Describe a set of runs in one line, without the recipe's hashes."""
    return ", ".join(value for name, value in terms.items() if name != "recipe")


@dataclass(frozen=True)
class Configuration:
    """Runs that differ only in their seed."""

    label: str
    runs: list[ScoredRun]

    @property
    def first(self) -> ScoredRun:
        """The run with the smallest seed, whose pictures are shown."""
        return min(self.runs, key=lambda run: run.seed)

    def values(self, measure: Callable[[ScoredRun], float | None]) -> Float64:
        """Apply ``measure`` to each run, [n]; runs without the number are left out."""
        return np.array([v for v in map(measure, self.runs) if v is not None and math.isfinite(v)], dtype=np.float64)

    def held_out(self, name: str) -> Float64:
        """Return a held-out number of each run, [n]."""
        return self.values(lambda run: run.held_out(name))

    def score(self, name: str) -> Float64:
        """Return a score of each run, [n]."""
        return self.values(lambda run: run.score(name))

    def reduced(self, kind: str, dim: int, *, untrained: bool = False) -> Float64:
        """Return the MIG of a reduction of each run, [n]."""
        return self.values(lambda run: run.reduced(kind, dim, untrained=untrained))

    def shares(self, key: str) -> Float64:
        """Return the group table in shares of each factor's entropy, [L, K], averaged over runs with tables of one shape."""
        found = [run.record["scores"]["groups"] for run in self.runs if run.has_groups]
        tables = [np.array(groups[key]) / np.maximum(np.array(groups["entropy"]), 1e-9) for groups in found]
        alike = [table for table in tables if table.shape == tables[0].shape]
        return np.asarray(np.mean(alike, axis=0), dtype=np.float64)

    def kl_of_units(self) -> Float64:
        """Return the KL in nats of each row of the group table, [L], with the groups above at their means; averaged over runs."""
        rows = [run.record["kl_of_units"] for run in self.runs if run.has_groups]
        return np.asarray(np.mean([row for row in rows if len(row) == len(rows[0])], axis=0), dtype=np.float64)


@dataclass(frozen=True)
class Comparable:
    """Configurations whose numbers are comparable; the first is the reference."""

    terms: dict[str, str]
    configurations: list[Configuration]

    @property
    def runs(self) -> list[ScoredRun]:
        """Runs of all configurations."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @property
    def with_uncertainty(self) -> list[str]:
        """Names of the scores with a chance level in at least one first run."""
        return list(dict.fromkeys(name for c in self.configurations for name in c.first.with_uncertainty))

    @cached_property
    def dims(self) -> list[int]:
        """Dimensions to which codes were reduced."""
        rows = [row for run in self.runs for row in run.record["scores"].get("reduced", {}).get("rows", [])]
        return sorted({int(row["dim"]) for row in rows})

    @property
    def headline_dim(self) -> int:
        """Dimension of the headline score: 10 if it was scored, else the smallest."""
        return 10 if 10 in self.dims or not self.dims else self.dims[0]


def comparable_sets(runs: Sequence[ScoredRun]) -> list[Comparable]:
    """Group runs into sets whose numbers are comparable, in the order given."""
    by_terms: dict[str, list[ScoredRun]] = {}
    for run in runs:
        by_terms.setdefault(json.dumps(terms_of(run), sort_keys=True), []).append(run)
    sets = []
    for members in by_terms.values():
        by_config: dict[str, list[ScoredRun]] = {}
        for run in members:
            by_config.setdefault(json.dumps(run.config, sort_keys=True) + run.saved.family.name, []).append(run)
        sets.append(Comparable(terms_of(members[0]), [Configuration(m[0].label, m) for m in by_config.values()]))
    return sets


def why_apart(one: dict[str, str], other: dict[str, str]) -> str:
    """Name the differences between two sets."""
    differing = [name for name in one if one[name] != other[name]]
    if differing == ["recipe"]:
        return "data recipe"
    return "; ".join(f"{n}: {one[n]} / {other[n]}" for n in differing if n != "recipe")
