"""An interval, a chance level and a bias for any score of codes and factors.

A score is computed again on many random halves of the rows, drawn without replacement. For a statistic whose variance
and bias fall as 1/N, the scores of halves vary around the full score as much as the full score varies around its limit, and
are shifted by as much (the delete-d jackknife with d = N/2; Shao & Wu 1989, Politis & Romano 1994). A score that is fitted on
one half of its rows and computed on the other varies with that split as well, so its interval is centred on the mean over
ten splits: see :func:`_scale`. Resampling with replacement would repeat rows, which raises information and nearest-neighbour
estimates and makes fits look better.

Where the assumption fails, there is no interval, and :func:`_why_none` gives the reason. docs/metrics/uncertainty.md has the
measured coverage of every score.
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
FEW_ROWS = 500  # with fewer rows, intervals were measured to cover less often than they state
NUM_ORDERS = 10  # orders of the rows, to average out the chance of one split or of drawn batches
STRONG_BIAS = 1.5  # half-widths of the interval; if a bias is larger, its correction leaves too much of it
ROUNDING = 1e-12  # a smaller bias is rounding error
MOST_TRIES = 50  # draws of a half, of which the last is accepted even if a factor does not vary in it
MOST_REDRAWN = 0.05  # largest share of halves drawn again with which the halves still count as random
UP_TO_ONE = frozenset(
    (
        *("mig", "mig_sup", "jemmig", "sap", "mcc", "cca", "linear_r2", "dci", "dci_es", "explicitness"),
        *("beta_vae_of_rows", "factor_vae_of_rows"),
    )
)
"""Scores that cannot exceed 1; their intervals are cut there."""

NO_INTERVAL = {
    "irs": "IRS takes maxima, whose bias may fall as 1/sqrt(N)",
    "infomec": "InfoM counts information below 0 as 0, which leaves a bias that falls more slowly than 1/N",
    "med": "the entropy of small shares of information has a bias that falls as log(N)/N",
    "modularity": "squares of information have a bias that falls faster than 1/N",
    "mlp_r2": "a network learns more from more rows at no fixed rate, so the bias does not fall as 1/N",
    "sap discrete": "the penalty of SVMs at C = .01 weighs less with more rows, so SAP grows with their number; compare "
    "equal numbers of rows only",
}
"""Scores whose nominal 95 % intervals held the limit in fewer than 92 % of the draws, or were useless, and the cause."""


@dataclass(frozen=True, eq=False)
class Uncertain:
    """A score with its uncertainty.

    Args:
        score: on all rows.
        interval: (low, high), which covers the score's limit at many rows with probability ``confidence`` if ``covers``
            is true. It is centred on ``corrected``, so a biased score may lie outside.
        covers: False where such intervals were measured to cover less often than they state, or where the bias is too
            strong to correct; do not state the interval then.
        chance: mean score where the rows of the factors are shuffled.
        chance_high: 95 % quantile of the same; a score above it is unlikely to be chance.
        halves_std: standard deviation of the score over random halves of the rows.
        bias: estimate of score minus its limit.
        corrected: estimate of the limit: score - bias, or, for a score that splits its rows at random, its mean over ten
            splits - bias.
        standard_error: of ``corrected``.
        bias_note: the bias in words, or why the interval does not cover.
        result: result of ``score`` on all rows.
    """

    score: float
    interval: tuple[float, float]
    covers: bool
    chance: float
    chance_high: float
    halves_std: float
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

    The intervals of scores in :data:`NO_INTERVAL`, and of any score whose bias exceeds 1.5 half-widths, do not cover:
    ``covers`` is False then, ``bias_note`` says why, and ``halves_std`` how much the score varies.

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
    draws, redrawn = _of_halves(compute, *data, num_resamples, rng)
    chance = np.array([_number(compute(*_shuffled(*data, rng))) for _ in range(num_shuffles)])
    splits, draws_batches = _splits_rows(result, num_points), hasattr(result, "num_draws")
    centre = _mean_over_orders(compute, *data, rng) if splits or draws_batches else estimate
    bias, error = _bias_and_error(draws, centre, splits, num_points)
    corrected = (centre if splits else estimate) - bias
    reach = _students_t(0.5 + confidence / 2.0, num_resamples - 1) * error
    names, spread = _names(score, result), float(draws.std(ddof=1))
    reason = _why_none(names, bias, reach, redrawn)
    return Uncertain(
        score=estimate,
        interval=_interval(corrected, reach, _range(draws, names)),
        covers=not reason,
        chance=float(chance.mean()),
        chance_high=float(np.quantile(chance, 0.95)),
        halves_std=spread,
        bias=bias,
        corrected=corrected,
        standard_error=error,
        bias_note=_no_interval_note(reason, spread) if reason else _bias_note(bias, error, num_points),
        confidence=confidence,
        num_points=num_points,
        num_resamples=num_resamples,
        num_shuffles=num_shuffles,
        seed=seed,
        result=result,
        notes=getattr(result, "notes", ()) + (() if reason else _notes(estimate, error, num_points)),
    )


def _names(score: Callable[..., Any], result: Any) -> tuple[str, str]:
    """Name of a score, alone and with the kind that its result states; a partial keeps the name of its function."""
    name = getattr(getattr(score, "func", score), "__name__", "")
    return name, f"{name} {getattr(result, 'kind', '')}"


def _check_options(num_resamples: int, num_shuffles: int, confidence: float) -> None:
    check_count(num_resamples, "num_resamples", 2)
    check_count(num_shuffles, "num_shuffles", 1)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} is not possible; give a share between 0 and 1, such as 0.95")


def _of_halves(
    compute: OfRows, codes: Floats, factors: Factors | None, num_halves: int, rng: np.random.Generator
) -> tuple[Float64, float]:
    """The score on random halves of the rows, [num_halves], and the share of halves that were drawn again.

    A half in which a factor no longer varies is drawn again: a score of fewer factors is another quantity, and its values
    would be mistaken for the spread of this one.
    """
    draws, num_redrawn = np.empty(num_halves), 0
    for i in range(num_halves):
        half, tries = _half(codes, factors, rng), 1
        while _lost_a_factor(half[1], factors) and tries < MOST_TRIES:
            half, tries = _half(codes, factors, rng), tries + 1
        draws[i] = _number(compute(*half))
        num_redrawn += tries > 1
    return draws, num_redrawn / num_halves


def _half(codes: Floats, factors: Factors | None, rng: np.random.Generator) -> Rows:
    """A random half of the rows, in their order."""
    rows = np.sort(rng.permutation(len(codes))[: len(codes) // 2])
    return codes[rows], None if factors is None else factors.rows(rows)


def _lost_a_factor(some: Factors | None, factors: Factors | None) -> bool:
    """True if a factor that varies over all rows has a single value in some of them."""
    return some is not None and factors is not None and _num_varying(some) < _num_varying(factors)


def _num_varying(factors: Factors) -> int:
    """Number of factors that take two values."""
    return sum(bool(column.min() != column.max()) for column in factors.columns)


def _bias_and_error(draws: Float64, centre: float, splits: bool, num_points: int) -> tuple[float, float]:
    """Bias of a score and standard error of the corrected score, from its values on halves and its value on all rows."""
    num_half = num_points // 2
    bias = num_half / (num_points - num_half) * float(draws.mean() - centre)
    return bias, math.sqrt(_scale(num_points, len(draws), splits=splits)) * float(draws.std(ddof=1))


def _splits_rows(result: Any, num_points: int) -> bool:
    """Tell whether a score was fitted on one half of the rows and computed on the other."""
    num_train = getattr(result, "num_train", None)
    return isinstance(num_train, int) and abs(2 * num_train - num_points) <= 1


def _mean_over_orders(compute: OfRows, codes: Floats, factors: Factors | None, rng: np.random.Generator) -> float:
    """Mean score over random orders of all rows, so that the chance of one order is not taken for bias."""
    orders = [rng.permutation(len(codes)) for _ in range(NUM_ORDERS)]
    return float(np.mean([_number(compute(codes[o], None if factors is None else factors.rows(o))) for o in orders]))


def _scale(num_points: int, num_draws: int, *, splits: bool) -> float:
    """Variance of the corrected score over the variance of its halves, R = ``num_draws`` of them.

    With unit variance per row, the mean of m of N rows, drawn without replacement, has variance 1/m - 1/N given the rows.

    * A half has m = N/2, so 1/N. The corrected score is twice the score less the mean of the halves: 1/N + 1/(R N).
    * A score that splits its rows has m = N/2 itself, so 1/N given the rows, and m = N/4 in a half, so 3/N. The corrected
      score is twice the mean over ten orders of the rows less the mean of the halves: 1/N + 4/(10 N) + 3/(R N).
    """
    num_half = num_points // 2
    if splits:
        return (1.0 + 4.0 / NUM_ORDERS) / (2.0 * num_points / num_half - 1.0) + 1.0 / num_draws
    return num_half / (num_points - num_half) + 1.0 / num_draws


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


def _range(draws: Float64, names: tuple[str, str]) -> tuple[float, float]:
    """Return the score's range: at least 0 if no draw is below, at most 1 for scores up to 1."""
    return 0.0 if draws.min() >= 0.0 else -math.inf, 1.0 if UP_TO_ONE.intersection(names) else math.inf


def _interval(centre: float, reach: float, possible: tuple[float, float]) -> tuple[float, float]:
    """The interval around the corrected score, moved and cut to the range of the score."""
    bottom, top = possible
    centre = min(max(centre, bottom), top)
    return max(centre - reach, bottom), min(centre + reach, top)


def _why_none(names: tuple[str, str], bias: float, reach: float, redrawn: float) -> str:
    """Reason why an interval of a score would not cover; empty if it would."""
    for name in NO_INTERVAL.keys() & set(names):
        return NO_INTERVAL[name]
    if redrawn > MOST_REDRAWN:
        return (
            f"a factor takes a single value in {redrawn:.0%} of the halves of the rows, so they do not show how the score "
            "varies; give more rows, or leave out factors with a rare value"
        )
    if abs(bias) > max(STRONG_BIAS * reach, ROUNDING):
        return (
            f"the score is about {abs(bias):.2g} too {'high' if bias > 0 else 'low'} at this number of rows, too much to "
            f"correct to within +-{reach:.2g}; give more rows"
        )
    return ""


def _no_interval_note(reason: str, spread: float) -> str:
    return f"no interval: {reason} (standard deviation over random halves of the rows: {spread:.2g})"


def _bias_note(bias: float, error: float, num_points: int) -> str:
    if abs(bias) <= max(0.25 * error, ROUNDING):
        return f"bias {bias:+.2g} at {num_points} rows: small beside the standard error {error:.2g}"
    return (
        f"at {num_points} rows the score is about {abs(bias):.2g} too {'high' if bias > 0 else 'low'} "
        f"(standard error {error:.2g}); the interval is corrected for it"
    )


def few_rows_note(num_points: int) -> tuple[str, ...]:
    """A note that intervals of few rows cover less often than they state."""
    if num_points >= FEW_ROWS:
        return ()
    return (
        f"{num_points} rows are few for an interval: nominal 95 % intervals held the limit in 74 to 98 % of the draws at "
        f"100 rows, 83 to 98 % at 200 and 91 to 96 % at 300, least for histograms; give {FEW_ROWS} or more",
    )


def _notes(estimate: float, error: float, num_points: int) -> tuple[str, ...]:
    if error > 0.0:
        return few_rows_note(num_points)
    return (f"the score is {estimate:.4g} on every half of the rows: the interval is a point",)
