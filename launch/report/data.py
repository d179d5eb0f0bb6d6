"""What a comparison knows: scored runs read from their folders, which of them compare, configurations, and intervals."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from launch.results.run import SavedRun, open_run
from launch.training import checkpoint
from launch.training.resume import MAY_CHANGE

Float64 = npt.NDArray[np.float64]
HEADLINE_KIND = "moments"
CONFIDENCE = 0.95
# What a data set's recipe says about the split that a run was trained on, not about the images.
OF_THE_SPLIT = ("split", "split_rule", "count", "rows_sha256", "images_sha256", "rules", "seed")
# What a comparison reads of scores.json.
NEEDED = {
    *("scores", "untrained", "protocol", "held_out", "data", "num_images", "code", "step", "weights", "num_parameters"),
    *("factor_names", "group_shapes", "kl_of_units", "checkpoint_sha256"),
}


@dataclass(frozen=True)
class ScoredRun:
    """A run with its scores.

    Args:
        saved: configuration and image spec.
        record: scores.json. summary: summary.json, {} where the run did not reach its end.
        elbo: {row of the split: ELBO in nats} of single images.
        config: the settings that make a configuration, flat, without seed and places.
    """

    saved: SavedRun
    record: dict[str, Any]
    summary: dict[str, Any]
    elbo: dict[int, float]
    config: dict[str, Any]
    label: str = ""

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.saved.folder

    @property
    def seed(self) -> int:
        """Of training."""
        return self.saved.config.run.seed

    @property
    def is_flat(self) -> bool:
        """One group of latents."""
        return self.saved.family.name == "flat_vae"

    def reduced(self, kind: str, dim: int, *, untrained: bool = False) -> float | None:
        """MIG of a reduction; None where it was not computed or does not reach the dimension."""
        scores = self.record["untrained"] if untrained else self.record["scores"]
        rows = (scores or {}).get("reduced", {}).get("rows", [])
        found = (r["mig"] for r in rows if r["kind"] == kind and r["dim"] == dim and r["num_latents"] == dim)
        return next(found, None)

    def score(self, name: str) -> float | None:
        """A score's number."""
        value = self.record["scores"].get(name, {}).get("score")
        return float(value) if isinstance(value, int | float) else None

    def held_out(self, name: str) -> float | None:
        """One of the held-out numbers."""
        value = (self.record["held_out"] or {}).get(name)
        return float(value) if value is not None else None


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name, without those that do not change what is computed."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if any(name == allowed or (allowed.endswith(".") and name.startswith(allowed)) for allowed in MAY_CHANGE):
            continue
        if isinstance(value, dict):
            found |= _flat(value, name + ".")
        elif name != "run.seed":
            found[name] = value
    return found


def _per_image(path: Path) -> dict[int, float]:
    try:
        with np.load(path, allow_pickle=False) as file:
            elbo = file["log_likelihood"].astype(np.float64) - file["kl"].astype(np.float64).sum(axis=1)
            return dict(zip(file["rows"].tolist(), elbo.tolist(), strict=True))
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({str(error)[:60]}); score the run again") from error


def is_current(saved: SavedRun, record: dict[str, Any]) -> bool:
    """Whether scores are of the newest checkpoint; also where the checkpoints are gone and only scores were kept."""
    newest = checkpoint.find(saved.files.checkpoints)
    return not newest or checkpoint.recorded_sha256(newest[0]) == record.get("checkpoint_sha256")


def read_run(path: Path, score: Callable[[Path], Any] | None) -> ScoredRun:
    """A run and its scores; where they are missing or of an older checkpoint, ``score`` makes them.

    Raises:
        ValueError: a reason in one line for leaving the run out.
    """
    saved = open_run(path)
    have = (path / "scores.json").is_file()
    if score is not None and (not have or not is_current(saved, saved.files.read_json("scores.json"))):
        score(path)
    elif not have:
        raise ValueError(f"{path} has no scores.json; run: python launch/score.py --run {path}")
    record = saved.files.read_json("scores.json")
    missing = NEEDED - set(record if isinstance(record, dict) else ())
    if missing:
        raise ValueError(f"{path / 'scores.json'} lacks {', '.join(sorted(missing))}; score the run again")
    summary = saved.files.read_json("summary.json") if (path / "summary.json").is_file() else {}
    return ScoredRun(saved, record, summary, _per_image(path / "scores.npz"), _flat(saved.record["config"]))


def read_runs(paths: Sequence[Path], score: Callable[[Path], Any] | None) -> tuple[list[ScoredRun], list[str]]:
    """The runs that can be read, and for each of the others why not; one broken run never stops the rest."""
    runs, skipped = [], []
    for path in dict.fromkeys(paths):
        try:
            runs.append(read_run(path, score))
        except (ValueError, OSError, KeyError, TypeError) as error:
            skipped.append(f"{path}: {str(error).partition('; ')[0] or type(error).__name__}")
    return _labelled(runs), skipped


def _objective_of(run: ScoredRun) -> str:
    """A flat VAE by preset and objective, with its beta where one was chosen."""
    beta = run.config.get("objective.beta")
    name = f"{run.config['objective.objective']}{f' {beta:g}' if beta is not None else ''}"
    return f"flat VAE {run.saved.config.preset}, {name}"


def _base(run: ScoredRun) -> str:
    """Family, preset and objective."""
    return _objective_of(run) if run.is_flat else f"NVAE {run.saved.config.preset}".strip()


def _labelled(runs: list[ScoredRun]) -> list[ScoredRun]:
    """Each configuration gets a name: family, preset, objective, and the settings that tell it from others called so."""
    telling = {base: _telling([run for run in runs if _base(run) == base]) for base in {_base(run) for run in runs}}
    named = []
    for run in runs:
        base = _base(run)
        more = ", ".join(f"{key.rsplit('.', 1)[-1]} {run.config.get(key)}" for key in telling[base])
        named.append(replace(run, label=f"{base} ({more})" if more else base))
    return named


def _telling(alike: Sequence[ScoredRun]) -> list[str]:
    """The few settings that tell all configurations apart: always the one next that parts most of them."""

    def parts(keys: Sequence[str]) -> int:
        return len({json.dumps([run.config.get(key) for key in keys]) for run in alike})

    keys = sorted({key for run in alike for key in run.config if not key.startswith("data.")})
    differing, chosen = [key for key in keys if parts([key]) > 1], list[str]()
    while parts(chosen) < parts(differing):
        chosen.append(max(differing, key=lambda key: parts([*chosen, key])))
    return sorted(chosen)


# --- What compares --------------------------------------------------------------------------------------------------


def likelihood_of(run: ScoredRun) -> str:
    """The likelihood by name, with the edges of a mixture: figures of two likelihoods do not compare."""
    model = run.saved.config.model  # type: ignore[attr-defined]
    name = model.likelihood
    if name == "auto":
        name = "bernoulli" if run.saved.spec.num_bits == 1 else "mixture"
    return f"mixture, {getattr(model, 'likelihood_edges', 'exact')} edges" if name == "mixture" else str(name)


def terms_of(run: ScoredRun) -> dict[str, str]:
    """All that two runs must share for their numbers to compare, in words."""
    recipe = {k: v for k, v in run.saved.record["data"]["recipe"].items() if k not in OF_THE_SPLIT}
    protocol = run.record["protocol"]
    spec = run.saved.spec
    where = "the full grid" if protocol["full_grid"] else f"{run.record['num_images']:,} {protocol['split']} images"
    return {
        "data": run.saved.record["data"]["name"],
        "recipe": json.dumps(recipe, sort_keys=True),
        "images": f"{spec.height}x{spec.width}x{spec.channels}, {spec.num_bits} bit",
        "likelihood": likelihood_of(run),
        "scored on": f"{where} (seed {protocol['seed']})",
    }


def describe_terms(terms: dict[str, str]) -> str:
    """One line, without the recipe's hashes."""
    return ", ".join(value for name, value in terms.items() if name != "recipe")


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in their seed only."""

    label: str
    runs: list[ScoredRun]

    @property
    def first(self) -> ScoredRun:
        """The run with the smallest seed: the one whose pictures are shown."""
        return min(self.runs, key=lambda run: run.seed)

    def values(self, measure: Callable[[ScoredRun], float | None]) -> Float64:
        """One number per run, [n]; runs that lack it are left out."""
        return np.array([v for v in map(measure, self.runs) if v is not None and math.isfinite(v)], dtype=np.float64)

    def held_out(self, name: str) -> Float64:
        """A held-out number of each run, [n]."""
        return self.values(lambda run: run.held_out(name))

    def score(self, name: str) -> Float64:
        """A score of each run, [n]."""
        return self.values(lambda run: run.score(name))

    def reduced(self, kind: str, dim: int, *, untrained: bool = False) -> Float64:
        """MIG of a reduction of each run, [n]."""
        return self.values(lambda run: run.reduced(kind, dim, untrained=untrained))


@dataclass(frozen=True)
class Comparable:
    """Configurations whose numbers compare, the first one given being the reference."""

    terms: dict[str, str]
    configurations: list[Configuration]

    @property
    def runs(self) -> list[ScoredRun]:
        """Of all configurations."""
        return [run for configuration in self.configurations for run in configuration.runs]

    @cached_property
    def factor_names(self) -> list[str]:
        """Of the data."""
        return list(self.runs[0].record.get("factor_names", []))


def comparable_sets(runs: Sequence[ScoredRun]) -> list[Comparable]:
    """Runs apart by what must agree, in the order given; the largest difference between sets can be read off ``terms``."""
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
    """What differs between two sets, in words."""
    differing = [name for name in one if one[name] != other[name]]
    if differing == ["recipe"]:
        return "data recipe"
    return "; ".join(f"{n}: {one[n]} / {other[n]}" for n in differing if n != "recipe")


# --- Intervals ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Value of one configuration minus that of the reference.

    Args:
        mean: the difference. half_width: of its 95 % interval; None where there is nothing to estimate it from.
        over: what the interval is over: "seeds" or "images".
    """

    mean: float
    half_width: float | None
    over: str = "seeds"
    counts: tuple[int, int] = field(default=(1, 1))

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width


def over_seeds(values: Float64, reference: Float64) -> Difference | None:
    """Difference of means with Welch's interval, which holds for few seeds where a bootstrap of few points does not.

    None where one side has no value; without an interval where one side has a single run.
    """
    if not len(values) or not len(reference):
        return None
    mean, counts = float(values.mean() - reference.mean()), (len(values), len(reference))
    if min(counts) < 2:
        return Difference(mean, None, "seeds", counts)
    errors = [float(v.var(ddof=1)) / len(v) for v in (values, reference)]
    if sum(errors) == 0.0:
        return Difference(mean, 0.0, "seeds", counts)
    freedom = sum(errors) ** 2 / sum(e**2 / (n - 1) for e, n in zip(errors, counts, strict=True))
    return Difference(mean, float(stats.t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(errors)), "seeds", counts)


def over_images(run: ScoredRun, reference: ScoredRun) -> Difference | None:
    """Mean ELBO difference on the images that both were scored on, paired, with its interval over images."""
    shared = sorted(run.elbo.keys() & reference.elbo.keys())
    if len(shared) < 2:
        return None
    paired = np.array([run.elbo[i] - reference.elbo[i] for i in shared])
    half_width = (
        float(stats.t.ppf(0.5 + CONFIDENCE / 2, len(paired) - 1)) * float(paired.std(ddof=1)) / math.sqrt(len(paired))
    )
    return Difference(float(paired.mean()), half_width, "images", (len(paired), len(paired)))
