"""Statistics of a few runs: spreads over seeds, effects with 95 % intervals, exact tests."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

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
    """An effect or a difference with its 95 % interval.

    Args:
        mean: the estimate.
        half_width: half the width of the interval; None if it cannot be estimated.
        over: "seeds" or "images", the sample that the interval is over.
        counts: number of values, one count for each side of a difference.
        std: standard deviation over seeds, the root mean square of both sides; None if it is unknown.
    """

    mean: float
    half_width: float | None
    over: str = "seeds"
    counts: tuple[int, ...] = (1, 1)
    std: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of 0."""
        return self.half_width is not None and abs(self.mean) > self.half_width

    @property
    def seeds_needed(self) -> int | None:
        """Number of seeds on each side with which a difference as large as the estimate would probably show."""
        return None if self.std is None else seeds_needed(self.mean, self.std)

    def text(self, digits: int = 3, *, sign: bool = True) -> str:
        """Format as 'mean ± half width'."""
        mean = f"{self.mean:+,.{digits}f}" if sign else f"{self.mean:,.{digits}f}"
        return mean if self.half_width is None else f"{mean} ± {self.half_width:,.{digits}f}"


def mean_of(values: Numbers, over: str = "seeds") -> Estimate:
    """Estimate the mean of at least one value with Student's interval; a single value has no interval."""
    data, count = np.asarray(values, dtype=np.float64), len(values)
    if count < MIN_PAIRS:
        return Estimate(float(data.mean()), None, over, (count,))
    half_width = float(stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * stats.sem(data))
    return Estimate(float(data.mean()), half_width, over, (count,))


def over_seeds(values: Numbers, reference: Numbers) -> Estimate | None:
    """Estimate the difference of two means with Welch's interval.

    Welch's interval holds for a few seeds; a bootstrap of so few points is too narrow.

    Args:
        values: one number for each seed of a configuration.
        reference: the same for the reference configuration.

    Returns:
        The difference; None if a side has no value, without an interval if a side has a single one.
    """
    one, other = np.asarray(values, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    if not len(one) or not len(other):
        return None
    mean, counts = float(one.mean() - other.mean()), (len(one), len(other))
    if min(counts) < MIN_PAIRS:
        return Estimate(mean, None, "seeds", counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # seeds that agree in all digits
        interval = stats.ttest_ind(one, other, equal_var=False).confidence_interval(CONFIDENCE)
    half_width = float(interval.high - interval.low) / 2
    std = math.sqrt((one.var(ddof=1) + other.var(ddof=1)) / 2)
    return Estimate(mean, half_width if math.isfinite(half_width) else 0.0, "seeds", counts, std)


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
    return Estimate(found.mean, found.half_width, "images", (len(shared), len(shared)))


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
