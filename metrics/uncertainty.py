"""An interval, a chance level and a bias for any score of codes and factors.

A score is computed again on many random halves of the rows, drawn without replacement. For a statistic whose variance
and bias fall as 1/N, halves spread around the score as the score spreads around its limit, and lie above it by as much
as it lies above its limit (the delete-d jackknife with d = N/2; Shao & Wu 1989, Politis & Romano 1994). A score that is
fitted on one half of its rows and computed on the other varies with that split as well: see :func:`_scale`. Resampling with
replacement would repeat rows, which raises every information, every nearest-neighbour estimate and every fit: measured
coverage is in docs/metrics/uncertainty.md.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from metrics.arrays import Array, Float64, Floats, as_codes, check_count
from metrics.factors import Factors, Table, as_table
from metrics.reductions import halves

Rows: TypeAlias = tuple[Floats, Factors | None]
OfRows: TypeAlias = Callable[[Floats, Factors | None], Any]

FEWEST_ROWS = 16
NUM_ORDERS = 10  # of all rows, over which the luck of one split or of drawn batches is averaged out
STRONG_BIAS = 3.0  # standard errors, beyond which it shows that a bias does not fall as 1/N exactly
SLOWEST_BIAS = 1.0 / (math.sqrt(2.0) - 1.0)  # by how much a bias that falls as 1/sqrt(N) exceeds the estimate
UP_TO_ONE = frozenset(
    (
        *("mig", "mig_sup", "jemmig", "med", "modularity", "infomec", "irs", "sap", "mcc", "cca"),
        *("linear_r2", "mlp_r2", "dci", "dci_es", "explicitness", "beta_vae_of_rows", "factor_vae_of_rows"),
    )
)
"""Scores that are at most 1, so that their intervals are."""

UNDER_COVERED = {
    "irs": "IRS takes maxima, for which resampling rows falls short: nominal 95 % intervals held the limit in 81 to 84 %",
    "infomec": "the nominal 95 % intervals of InfoMEC held the limit in 86 of 100 draws of 1,000 rows",
    "sap discrete": "the penalty of SVMs at C = .01 weighs less with more rows, and SAP grows: compare equal numbers of "
    "rows only; at 300 rows nominal 95 % intervals held the limit in 12 %",
}
"""Notes on scores whose intervals were measured to fall short (docs/metrics/uncertainty.md)."""


@dataclass(frozen=True, eq=False)
class Uncertain:
    """A score with its uncertainty.

    Args:
        score: on all rows.
        interval: (low, high), which covers the score's limit at many rows with probability ``confidence``. It is
            centred on ``corrected``, so a strongly biased score may lie outside.
        chance: mean score where the rows of the factors are shuffled.
        chance_high: 95 % quantile of the same; a score above it is unlikely to be chance.
        bias: estimate of score minus its limit. corrected: score - bias.
        standard_error: of the score.
        bias_note: the bias in words.
        result: result of ``score`` on all rows.
    """

    score: float
    interval: tuple[float, float]
    chance: float
    chance_high: float
    bias: float
    corrected: float
    standard_error: float
    bias_note: str
    confidence: float
    num_points: int
    num_resamples: int
    num_shuffles: int
    seed: int
    result: Any
    notes: tuple[str, ...]


def with_uncertainty(
    score: Callable[..., Any],
    codes: Array,
    factors: Table | None = None,
    *,
    num_resamples: int = 200,
    num_shuffles: int = 50,
    confidence: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> Uncertain:
    """Interval, chance level and bias of ``score(codes, factors, **options)``.

    Args:
        score: such as :func:`metrics.mig`; any function of codes [N, D], and factors [N, K] unless it takes none, that
            returns a number or a result with ``.score``. A score that needs test rows gets a random half of the rows.
        codes: [N, D], rows drawn independently.
        factors: [N, K]; None for scores of codes alone, whose chance level shuffles each latent by itself.
        num_resamples: number of random halves of the rows.
        num_shuffles: number of shuffles of the factors' rows.
        confidence: probability that the interval covers.
        seed: seed of halves and shuffles, and of the score if it takes one that ``options`` does not give.
        options: passed on to the score.

    Raises:
        ValueError: fewer than 16 rows, or input that the score refuses.
    """
    _check_options(num_resamples, num_shuffles, confidence)
    data = as_codes(codes), None if factors is None else as_table(factors)
    num_points = len(data[0])
    if num_points < FEWEST_ROWS:
        raise ValueError(f"{num_points} rows are too few for an interval; give at least {FEWEST_ROWS}")
    compute, rng = of_rows(score, seed=seed, **options), np.random.default_rng(seed)
    result = compute(*data)
    estimate = _number(result)
    draws = np.array([_number(compute(*_half(*data, rng))) for _ in range(num_resamples)])
    chance = np.array([_number(compute(*_shuffled(*data, rng))) for _ in range(num_shuffles)])
    splits, draws_batches = _splits_rows(result, num_points), hasattr(result, "num_draws")
    centre = _mean_over_orders(compute, *data, rng) if splits or draws_batches else estimate
    bias, error = _bias_and_error(draws, centre, splits, num_points)
    reach = _students_t(0.5 + confidence / 2.0, num_resamples - 1) * error * math.sqrt(1.0 + 1.0 / num_resamples)
    name = getattr(getattr(score, "func", score), "__name__", "")  # a partial keeps the function
    return Uncertain(
        score=estimate,
        interval=_interval(estimate, bias, error, reach, _range(draws, name)),
        chance=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.95)),
        bias=bias,
        corrected=estimate - bias,
        standard_error=error,
        bias_note=_bias_note(bias, error, num_points),
        confidence=confidence,
        num_points=num_points,
        num_resamples=num_resamples,
        num_shuffles=num_shuffles,
        seed=seed,
        result=result,
        notes=(*getattr(result, "notes", ()), *_notes(estimate, error), *_coverage_notes(name, result)),
    )


def _check_options(num_resamples: int, num_shuffles: int, confidence: float) -> None:
    check_count(num_resamples, "num_resamples", 2)
    check_count(num_shuffles, "num_shuffles", 1)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} is not possible; give a share between 0 and 1, such as 0.95")


def _half(codes: Floats, factors: Factors | None, rng: np.random.Generator) -> Rows:
    """A random half of the rows, in their order."""
    rows = np.sort(rng.permutation(len(codes))[: len(codes) // 2])
    return codes[rows], None if factors is None else factors.rows(rows)


def _bias_and_error(draws: Float64, centre: float, splits: bool, num_points: int) -> tuple[float, float]:
    """Bias and standard error of a score, from its values on halves and its value on all rows."""
    num_half = num_points // 2
    bias = num_half / (num_points - num_half) * float(draws.mean() - centre)
    return bias, math.sqrt(_scale(num_points, num_half, splits=splits)) * float(draws.std(ddof=1))


def _splits_rows(result: Any, num_points: int) -> bool:
    """Tell whether a score was fitted on one half of the rows and computed on the other."""
    num_train = getattr(result, "num_train", None)
    return isinstance(num_train, int) and abs(2 * num_train - num_points) <= 1


def _mean_over_orders(compute: OfRows, codes: Floats, factors: Factors | None, rng: np.random.Generator) -> float:
    """Mean score over random orders of all rows, so that the luck of one does not pass for bias."""
    orders = [rng.permutation(len(codes)) for _ in range(NUM_ORDERS)]
    return float(np.mean([_number(compute(codes[o], None if factors is None else factors.rows(o))) for o in orders]))


def _scale(num_points: int, num_half: int, *, splits: bool) -> float:
    """Variance of the score over the variance of its halves: about 1, and 2/3 for a score that splits its own rows.

    With unit variance per row, m of N rows drawn without replacement have a mean of variance 1/m - 1/N given the rows. A
    score that splits has m = N/4 in a half and N/2 itself; its variance is 2/N around the limit.
    """
    if splits:
        return (2.0 / num_points) / (2.0 / num_half - 1.0 / num_points)
    return num_half / (num_points - num_half)


def _students_t(share: float, freedom: int) -> float:
    """Quantile of Student's distribution: the standard error comes from few halves, and so does the bias."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def of_rows(score: Callable[..., Any], *, seed: int, **options: Any) -> OfRows:
    """The score as a function of codes and factors alone, seeded; one that needs test rows gets a random half."""
    parameters = inspect.signature(score).parameters
    given = options | {"seed": seed} if "seed" in parameters else options
    test = parameters.get("test_codes")
    needs_test = test is not None and test.default is inspect.Parameter.empty

    def compute(codes: Floats, factors: Factors | None) -> Any:
        if factors is None:
            return score(codes, **given)
        if not needs_test:
            return score(codes, factors, **given)
        fit, rest = halves(len(codes), seed)
        return score(codes[fit], factors.rows(fit), codes[rest], factors.rows(rest), **given)

    return compute


def _number(result: Any) -> float:
    value = float(getattr(result, "score", result))
    if not math.isfinite(value):
        raise ValueError(f"the score is {value} on some rows, which has no interval; look at its notes on all rows")
    return value


def _shuffled(codes: Floats, factors: Factors | None, rng: np.random.Generator) -> Rows:
    """The same codes beside shuffled rows of factors; without factors each latent shuffled by itself."""
    if factors is None:
        return rng.permuted(codes, axis=0), None
    return codes, factors.rows(rng.permutation(len(codes)))


def _range(draws: Float64, name: str) -> tuple[float, float]:
    """Return the score's range: at least 0 if no draw is below, at most 1 for scores up to 1."""
    return 0.0 if draws.min() >= 0.0 else -math.inf, 1.0 if name in UP_TO_ONE else math.inf


def _interval(
    estimate: float, bias: float, error: float, reach: float, possible: tuple[float, float]
) -> tuple[float, float]:
    """The interval around the corrected score; under a strong bias it reaches as far as a slower bias would lead."""
    bottom, top = possible
    centre = min(max(estimate - bias, bottom), top)
    further = (SLOWEST_BIAS - 1.0) * bias if abs(bias) > STRONG_BIAS * error else 0.0
    low, high = centre - reach - max(further, 0.0), centre + reach - min(further, 0.0)
    return min(max(low, bottom), top), max(min(high, top), bottom)


def _bias_note(bias: float, error: float, num_points: int) -> str:
    if abs(bias) <= 0.25 * error or bias == 0.0:
        return f"bias {bias:+.2g} at {num_points} rows: small beside the standard error {error:.2g}"
    strong = (
        f" and reaches to {-SLOWEST_BIAS * bias:+.2g}, where a bias that falls as 1/sqrt(N) would end: give more rows"
        if abs(bias) > STRONG_BIAS * error
        else ""
    )
    return (
        f"at {num_points} rows the score is about {abs(bias):.2g} too {'high' if bias > 0 else 'low'} "
        f"(standard error {error:.2g}); the interval is corrected for it{strong}"
    )


def _coverage_notes(name: str, result: Any) -> tuple[str, ...]:
    kind = getattr(result, "kind", "")
    return tuple(note for key, note in UNDER_COVERED.items() if key in (name, f"{name} {kind}"))


def _notes(estimate: float, error: float) -> tuple[str, ...]:
    if error > 0.0:
        return ()
    return (f"the score is {estimate:.4g} on every half of the rows: the interval is a point",)
