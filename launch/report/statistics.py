"""Statistics over runs: spreads over seeds, effects with 95 % intervals, exact tests; configurations and comparable sets."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from launch.report.runs import ScoredRun, clean, images_of, likelihood_of

HEADLINE_KIND = "moments"
# Keys of a data set's recipe that describe the training split, not the images.
OF_THE_SPLIT = ("split", "split_rule", "count", "rows_sha256", "images_sha256", "rules", "seed")
CONFIDENCE = 0.95
POWER = 0.8
MIN_PAIRS = 2
MOST_SEEDS = 1000
Float64: TypeAlias = npt.NDArray[np.float64]
Numbers: TypeAlias = Sequence[float] | Float64


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of a few values; a single value has no standard deviation."""

    mean: float
    std: float | None
    num: int

    @classmethod
    def of(cls, values: Numbers) -> Spread:
        """Summarise at least one value."""
        std = float(np.std(values, ddof=1)) if len(values) > 1 else None
        return cls(float(np.mean(values)), std, len(values))

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; 0 for a single value, from which it cannot be estimated."""
        return 0.0 if self.std is None else self.std / math.sqrt(self.num)

    def text(self, digits: int = 2) -> str:
        """Format as 'mean ± standard deviation'."""
        mean = f"{self.mean:,.{digits}f}"
        return mean if self.std is None else f"{mean} ± {self.std:,.{digits}f}"


def spread(values: Numbers, digits: int = 3) -> str:
    """Format the mean and standard deviation of values for a table; a dash without values."""
    return Spread.of(values).text(digits) if len(values) else "-"


@dataclass(frozen=True)
class Estimate:
    """An effect or a difference with its 95 % interval."""

    mean: float
    half_width: float | None  # None if the interval cannot be estimated
    over: str = "seeds"  # or "images", the sample that the interval is over
    counts: tuple[int, ...] = (1, 1)  # number of values, one count for each side of a difference
    std: float | None = None  # standard deviation over seeds, the root mean square of both sides, if it is known
    p_value: float | None = None  # of the t-test whose interval this is

    @property
    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    def text(self, digits: int = 3, *, sign: bool = True) -> str:
        """Format as 'mean ± half width'."""
        mean = f"{self.mean:+,.{digits}f}" if sign else f"{self.mean:,.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:,.{digits}f}"


def mean_of(values: Numbers, over: str = "seeds") -> Estimate:
    """Estimate the mean of at least one value with Student's interval; a single value has no interval."""
    data, count = np.asarray(values, dtype=np.float64), len(values)
    if count < MIN_PAIRS:
        return Estimate(float(data.mean()), None, over, (count,))
    mean, error = float(data.mean()), float(stats.sem(data))
    half_width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1)) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, count - 1)) if error else float(mean == 0.0)
    return Estimate(mean, half_width, over, (count,), p_value=p_value)


def over_seeds(values: Numbers, reference: Numbers) -> Estimate | None:
    """Estimate the difference of two means with Welch's interval.

    Welch's interval holds for a few seeds; a bootstrap of so few points is too narrow.

    Args:
        values: one number for each seed of a configuration.
        reference: the same for the reference configuration.

    Returns:
        The difference; None if a side has no value, without an interval if a side has a single one or if all values of each
        side are equal.
    """
    one, other = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not len(one) or not len(other):
        return None
    mean, counts = float(one.mean() - other.mean()), (len(one), len(other))
    if min(counts) < MIN_PAIRS:
        return Estimate(mean, None, "seeds", counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds that agree in all digits
        test = stats.ttest_ind(one, other, equal_var=False)
        interval = test.confidence_interval(CONFIDENCE)
    std = math.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2)
    if std == 0.0:
        return Estimate(mean, None, "seeds", counts, std)
    return Estimate(mean, float(interval.high - interval.low) / 2, "seeds", counts, std, float(test.pvalue))


def seeds_needed(difference: float, std: float) -> int | None:
    """Number of values on each side with which a two-sided t-test finds a difference with probability ``POWER``.

    The power of the test is that of the noncentral t distribution (Cohen, Statistical Power Analysis, 1988, chapter 2).

    Args:
        difference: true difference of the means, here the estimate.
        std: standard deviation of both sides.

    Returns:
        The number; None if it exceeds ``MOST_SEEDS`` or the standard deviation is 0.
    """
    if not std > 0.0:
        return None
    num = np.arange(MIN_PAIRS, MOST_SEEDS + 1)
    degrees, shift = 2 * num - 2, abs(difference) / std * np.sqrt(num / 2)
    critical = stats.t.ppf(0.5 + CONFIDENCE / 2, degrees)
    enough = stats.nct.sf(critical, degrees, shift) + stats.nct.cdf(-critical, degrees, shift) >= POWER
    return int(num[enough.argmax()]) if enough.any() else None


def over_images(values: Mapping[int, float], reference: Mapping[int, float]) -> Estimate | None:
    """Estimate the mean difference over the images that both mappings hold, paired by row; None for fewer than two."""
    shared = sorted(values.keys() & reference.keys())
    if len(shared) < MIN_PAIRS:
        return None
    found = mean_of([values[i] - reference[i] for i in shared], "images")
    return replace(found, counts=(len(shared), len(shared)))


def sign_flip_test(differences: Numbers) -> float:
    """Exact two-sided p-value of the hypothesis that paired differences are 0 on average, over all flips of their signs."""
    result = stats.permutation_test(
        (np.asarray(differences, dtype=np.float64),),
        np.mean,
        permutation_type="samples",
        n_resamples=2 ** len(differences),
    )
    return float(result.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple testing (Holm 1979)."""
    order = np.argsort(p_values)
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def correlation(x: Numbers, y: Numbers) -> tuple[float, float, float]:
    """Compute Pearson's correlation of at least four pairs and the ends of its 95 % interval (Fisher's)."""
    with np.errstate(all="ignore"):
        found = stats.pearsonr(x, y)
        interval = found.confidence_interval(CONFIDENCE)
    return float(found.statistic), float(interval.low), float(interval.high)


# --- Runs that compare ------------------------------------------------------------------------------------------------


def terms_of(run: ScoredRun) -> dict[str, str]:
    """List everything in which two runs must agree for their numbers to be comparable."""
    trained, scored, protocol = run.saved.record["data"], run.record["data"], run.record["protocol"]
    names = trained["name"] if trained["name"] == scored["name"] else f"{trained['name']}, scored on {scored['name']}"
    where = "the full grid" if protocol["full_grid"] else f"{run.record['num_images']:,} {protocol['split']} images"
    return {
        "data": clean(names),
        "recipe": json.dumps([_of_the_images(trained), _of_the_images(scored)], sort_keys=True),
        "images": images_of(run.saved),
        "likelihood": likelihood_of(run.saved),
        "scored on": clean(f"{where} (seed {protocol['seed']})"),
        "weights": f"{run.record['weights']} weights",
    }


def _of_the_images(data: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a recorded recipe that older records have too, and that no choice of another split changes."""
    return {k: v for k, v in (data.get("recipe") or {}).items() if k not in OF_THE_SPLIT}


def describe_terms(terms: dict[str, str]) -> str:
    """Describe a set of runs in one line, without the recipe's hashes and the usual weights."""
    return ", ".join(value for name, value in terms.items() if name != "recipe" and value != "auto weights")


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

    def score(self, name: str, *, untrained: bool = False) -> Float64:
        """Return a score of each run, [n]."""
        return self.values(lambda run: run.score(name, untrained=untrained))

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
    def uncertain(self) -> list[str]:
        """Names of the scores with a chance level in at least one first run."""
        return list(dict.fromkeys(name for c in self.configurations for name in c.first.uncertain))

    @cached_property
    def dims(self) -> list[int]:
        """Dimensions to which codes were reduced."""
        rows = [row for run in self.runs for row in run.record["scores"].get("reduced", {}).get("rows", [])]
        return sorted({int(row["dim"]) for row in rows})

    @property
    def headline_dim(self) -> int:
        """Dimension of the headline score: 10 if it was scored, else the smallest."""
        return 10 if 10 in self.dims or not self.dims else self.dims[0]

    @property
    def headline(self) -> str:
        """Name of the score by which models are compared."""
        return f"MIG ({HEADLINE_KIND}, d = {self.headline_dim})"

    @cached_property
    def has_cpu_times(self) -> bool:
        """True if the CPU time of every run is known."""
        return all(run.cpu_seconds is not None for run in self.runs)

    @property
    def clock(self) -> str:
        """The kind of ``minutes``, as a heading."""
        return "CPU minutes" if self.has_cpu_times else "minutes"

    def minutes(self, run: ScoredRun) -> float | None:
        """Training time of a run, on the clock that all runs have."""
        seconds = run.cpu_seconds if self.has_cpu_times else run.seconds
        return None if seconds is None else seconds / 60

    @cached_property
    def differences(self) -> list[tuple[Configuration, Estimate | None, Estimate | None]]:
        """Each other configuration, with the differences of its ELBO and of its headline score from the reference."""
        reference, *others = self.configurations
        score = partial(Configuration.reduced, kind=HEADLINE_KIND, dim=self.headline_dim)
        return [(c, elbo_difference(c, reference), over_seeds(score(c), score(reference))) for c in others]


def comparable_sets(runs: Sequence[ScoredRun]) -> list[Comparable]:
    """Group runs into sets whose numbers are comparable, in the order given."""
    sets = []
    for members in _grouped(runs, terms_of):
        configurations = _grouped(members, lambda run: [run.saved.family.name, run.config])
        sets.append(Comparable(terms_of(members[0]), [Configuration(m[0].label, m) for m in configurations]))
    return sets


def _grouped(runs: Sequence[ScoredRun], key: Callable[[ScoredRun], object]) -> list[list[ScoredRun]]:
    groups: dict[str, list[ScoredRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(key(run), sort_keys=True), []).append(run)
    return list(groups.values())


def why_apart(one: dict[str, str], other: dict[str, str]) -> str:
    """Name the differences between two sets."""
    differing = [name for name in one if one[name] != other[name]]
    if differing == ["recipe"]:
        return "data recipe"
    return "; ".join(f"{n}: {one[n]} / {other[n]}" for n in differing if n != "recipe")


def elbo_difference(one: Configuration, reference: Configuration) -> Estimate | None:
    """Estimate the difference of the ELBO over seeds, or over images where a configuration has a single run."""
    found = over_seeds(one.held_out("elbo"), reference.held_out("elbo"))
    if found is None or found.half_width is not None or min(found.counts) >= MIN_PAIRS:
        return found
    return over_images(one.first.elbo, reference.first.elbo) or found
