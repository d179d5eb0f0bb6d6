"""Every score by name: its needs, its computation and its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import metrics
from launch.console.flags import nearest
from metrics.factors import Factors, as_table
from metrics.hierarchy import ReducedScore, mic_over_scales
from metrics.reductions import as_groups, halves
from metrics.uncertainty import FEWEST_ROWS

Floats = npt.NDArray[np.floating[Any]]
Int64 = npt.NDArray[np.int64]
Need = Literal["factors", "classes", "grid", "variances", "few units"]
ROWS_TIMES_LATENTS = 10**6  # largest product with which an interval uses every requested resample
FEWEST_RESAMPLES = 20


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Input of the scores.

    Args:
        codes: [N, D]: a flat model's means, or a hierarchy reduced without labels; ``code_name`` says which.
        code_factors: [N, K] of those rows; None if the data have no factors.
        variances: [N, D] of a flat posterior.
        groups: input of the reductions, [M, C, H, W] each, top first.
        units: input of :func:`metrics.group_information`, with the ``resolution`` of each.
        factors: [M, K] of the groups' rows; continuous ones as quantile bins.
        grid_codes: [prod(grid_sizes), D], a code for every combination of the factors, in their order.
        shuffles: number of shuffles for the baselines of reduced codes and for chance levels; ``group_shuffles`` for
            the group table.
        resamples: number of resamples for the intervals; 0 for no intervals.
    """

    codes: Floats
    code_name: str
    code_factors: Int64 | Factors | None
    variances: Floats | None
    groups: Sequence[Floats]
    units: Sequence[Floats]
    resolution: Sequence[int]
    factors: Int64 | None
    grid_codes: Floats | None
    grid_sizes: tuple[int, ...]
    seed: int
    dims: tuple[int, ...]
    shuffles: int
    group_shuffles: int
    resamples: int

    @property
    def with_factors(self) -> tuple[Floats, Factors]:
        """Codes and their factors."""
        assert self.code_factors is not None, "a metric's needs are checked before it is called"
        return self.codes, as_table(self.code_factors)

    @property
    def with_variances(self) -> tuple[Floats, Floats]:
        """Codes, which are posterior means, and posterior variances."""
        assert self.variances is not None, "a metric's needs are checked before it is called"
        return self.codes, self.variances

    def train_and_test(self) -> tuple[Floats, Factors, Floats, Factors]:
        """Codes and factors of two random halves."""
        codes, factors = self.with_factors
        train, test = halves(len(codes), self.seed)
        return codes[train], factors.rows(train), codes[test], factors.rows(test)

    def code_of(self, factors: Int64) -> Floats:
        """Look up the codes of combinations [n, K]."""
        assert self.grid_codes is not None, "a metric's needs are checked before it is called"
        codes: Floats = self.grid_codes[np.ravel_multi_index(tuple(factors.T), self.grid_sizes)]
        return codes


_FACTORS: frozenset[Need] = frozenset({"factors"})
_CLASSES: frozenset[Need] = _FACTORS | {"classes"}
_VARIANCES: frozenset[Need] = frozenset({"variances"})


@dataclass(frozen=True)
class Metric:
    """A score: its needs, its call, and whether it runs by default.

    ``of_rows`` is the score as a function of codes, and of factors if it needs them; intervals resample it.
    """

    needs: frozenset[Need]
    default: bool
    compute: Callable[[Scored], Any]
    says: str
    of_rows: Callable[..., Any] | None = None


def _resampled(of_rows: Callable[..., Any], says: str, *, default: bool = True) -> Metric:
    """A cheap score of codes and factors, which gets an interval and a chance level."""
    return Metric(_FACTORS, default, lambda s: of_rows(*s.with_factors), says, of_rows)


def _seeded(score: Callable[..., Any], says: str, needs: frozenset[Need] = _FACTORS) -> Metric:
    """A score of codes and factors that draws random numbers."""
    return Metric(needs, False, lambda s: score(*s.with_factors, seed=s.seed), says)


def _of_halves(score: Callable[..., Any], says: str, needs: frozenset[Need] = _CLASSES) -> Metric:
    """A score that is fitted to one half of the rows and tested on the other."""
    return Metric(needs, False, lambda s: score(*s.train_and_test(), seed=s.seed), says)


def _of_grid(score: Callable[..., Any], says: str) -> Metric:
    """A score that chooses combinations of the factors itself."""
    return Metric(_CLASSES | {"grid"}, True, lambda s: score(s.code_of, s.grid_sizes, seed=s.seed), says)


def _groups(scored: Scored) -> dict[str, Any]:
    """Group x factor information with its parts, MIC over the resolutions, and the level of chance."""
    information = partial(metrics.group_information, scored.units, seed=scored.seed)
    assert scored.factors is not None
    found = information(scored.factors)
    plain = metrics.to_plain(found)
    assert isinstance(plain, dict)
    scales, mic = mic_over_scales(found, scored.resolution)
    result: dict[str, Any] = {**plain, "scales": list(scales), "mic_over_scales": mic.tolist(), "threshold": None}
    if scored.group_shuffles:
        chance = metrics.permutation_baseline(
            lambda shuffled: information(shuffled).conditional_gain,
            scored.factors,
            num_shuffles=scored.group_shuffles,
            seed=scored.seed,
        )
        result |= {"threshold": chance.threshold, "num_shuffles": scored.group_shuffles}
    return result


def _reduced_row(row: ReducedScore) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "dim": row.dim,
        "num_latents": row.num_latents,
        "mig": row.mig.score,
        "mig_ceiling": row.mig.ceiling,
        "mig_per_factor": row.mig.per_factor.tolist(),
        "mig_sup": row.mig_sup.score,
        "mig_sup_threshold": row.mig_sup_threshold,
        "largest_share": float((row.mig.mutual_information / row.mig.entropy).max()),
        "share_threshold": row.information_threshold,
        "num_shuffles": row.num_shuffles,
        "notes": list(row.notes),
    }


def headline_dim(dims: Sequence[int]) -> int:
    """The dimension at which models are compared: 10 if codes are reduced to it, else the first."""
    return 10 if 10 in dims else dims[0]


def _reduced(scored: Scored) -> dict[str, Any]:
    """MIG and MIG-sup at equal dimension; the score is MIG of ``moments`` at the headline dimension."""
    assert scored.factors is not None
    rows = metrics.reduced_scores(
        scored.groups, scored.factors, seed=scored.seed, dims=scored.dims, num_shuffles=scored.shuffles
    )
    plain, dim = [_reduced_row(row) for row in rows], headline_dim(scored.dims)
    score = next(r["mig"] for r in plain if r["kind"] == "moments" and r["dim"] == dim)
    return {"score": score, "headline_dim": dim, "rows": plain, "notes": []}


METRICS: dict[str, Metric] = {
    "reduced": Metric(_FACTORS, True, _reduced, "MIG of moments at d = 10, for comparing models"),
    "groups": Metric(_FACTORS | {"few units"}, True, _groups, "group-MIG: gap between the two most informative groups"),
    "mig": _resampled(metrics.mig, "one latent per factor, 20 bins"),
    "mig_sup": _resampled(metrics.mig_sup, "one factor per active latent"),
    "jemmig": _resampled(metrics.jemmig, "MIG, penalised if the best latent encodes other factors"),
    "med": _resampled(metrics.med, "one factor per latent, by information; no training"),
    "modularity": _resampled(metrics.modularity, "one factor per latent; see its noise level"),
    "mcc": _resampled(metrics.mcc, "correlation with the matched latent"),
    "mcc_spearman": _resampled(partial(metrics.mcc, correlation="spearman"), "the same for ranks", default=False),
    "weak_mcc": _resampled(partial(metrics.mcc, mapping="linear"), "the same after a linear map", default=False),
    "linear_r2": _resampled(metrics.linear_r2, "R2 of a linear map to the factors"),
    "cca": _resampled(metrics.cca, "canonical correlation with the factors"),
    "irs": _seeded(metrics.irs, "robustness to other factors; see its noise level"),
    "infomec": _seeded(metrics.infomec, "modularity, explicitness, compactness, no bins"),
    "mlp_r2": _seeded(metrics.mlp_r2, "R2 of a small network (test rows)"),
    "dci_es": _seeded(metrics.dci_es, "how simple a map to the factors can be"),
    "sap": _of_halves(metrics.sap, "separated predictability, SVMs"),
    "sap_r2": _resampled(partial(metrics.sap, kind="r2"), "the same with squared correlations"),
    "explicitness": _of_halves(metrics.explicitness, "linear classification (AUC on test rows)"),
    "dci": _of_halves(metrics.dci, "boosted trees; minutes to run", _FACTORS),
    "aggregate_mig": Metric(
        _FACTORS | _VARIANCES,
        False,
        lambda s: metrics.aggregate_posterior_mig(*s.with_variances, s.with_factors[1]),
        "MIG of the aggregate posterior, not of a histogram",
    ),
    "beta_vae": _of_grid(metrics.beta_vae_metric, "which factor do two images share? saturates"),
    "factor_vae": _of_grid(metrics.factor_vae_metric, "which factor was held fixed?"),
    "beta_vae_rows": _seeded(metrics.beta_vae_of_rows, "beta_vae on plain rows; needs no grid", _CLASSES),
    "factor_vae_rows": _seeded(metrics.factor_vae_of_rows, "factor_vae on plain rows; needs no grid", _CLASSES),
    "total_correlation": Metric(
        frozenset(), True, lambda s: metrics.total_correlation(s.codes), "of a Gaussian, nats; lower is better"
    ),
    "pairwise_information": Metric(
        frozenset(), True, lambda s: metrics.pairwise_information(s.codes), "between latents, nats; lower is better"
    ),
    "covariance_distance": Metric(
        _VARIANCES,
        True,
        lambda s: metrics.covariance_distance(*s.with_variances),
        "the degree of disentanglement of a thesis on Frey Faces; lower is better, ideal about sqrt(D)",
    ),
    "decomposition": Metric(
        _VARIANCES,
        False,
        lambda s: metrics.decompose_rate(*s.with_variances, seed=s.seed),
        "the rate in three parts, nats",
    ),
}


def choose(names: Sequence[str] | None, unmet: Mapping[Need, str]) -> tuple[list[str], dict[str, str]]:
    """Choose the metrics to run; also return why some defaults cannot run.

    Args:
        names: names as typed; None runs every default.
        unmet: for each need that is not met, a message about what is missing and what to do.

    Raises:
        ValueError: a typed name is unknown (the message offers the nearest) or cannot run on these data.
    """
    for name in names or ():
        if name not in METRICS:
            raise ValueError(
                f"there is no metric {name!r}{nearest(name, list(METRICS))}; choose from {', '.join(METRICS)}"
            )
    chosen, skipped = [], {}
    for name in names if names is not None else [n for n, m in METRICS.items() if m.default]:
        need = next((need for need in sorted(METRICS[name].needs) if need in unmet), None)
        if need is None or (names is not None and need == "few units"):  # requested by name, however long it takes
            chosen.append(name)
        elif names is not None:
            raise ValueError(f"--metrics {name}: {unmet[need]}")
        else:
            skipped[name] = unmet[need].partition("; ")[0]
    if not chosen:
        raise ValueError("no metric is left to compute; see python launch/score.py --help for what each needs")
    return chosen, skipped


def compute(
    names: Sequence[str],
    scored: Scored,
    say: Callable[[str], None] = lambda text: None,
    left_out: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Plain results by name, cheap ones with their ``uncertainty``.

    Args:
        names: scores to compute.
        scored: their input.
        say: gets each score's name as it starts.
        left_out: gets the scores that refuse these data, with the reason, instead of an exception; None to raise it.

    Raises:
        ValueError: a score refuses these data and ``left_out`` is None, or every score does.
    """
    results: dict[str, Any] = {}
    for name in names:
        say(name)
        try:
            results[name] = _compute(METRICS[name], scored)
        except ValueError as error:
            if left_out is None or (name == names[-1] and not results):
                raise
            left_out[name] = str(error).partition("; ")[0]
    return results


def _compute(metric: Metric, scored: Scored) -> Any:
    plain = metrics.to_plain(metric.compute(scored))
    if metric.of_rows is not None and scored.resamples and isinstance(plain, dict):
        plain["uncertainty"] = _uncertainty(metric.of_rows, scored)
    return plain


def _uncertainty(of_rows: Callable[..., Any], scored: Scored) -> dict[str, Any] | None:
    """Interval, chance level and bias as plain data; None if there are too few rows for an interval."""
    codes, factors = scored.with_factors
    if len(codes) < FEWEST_ROWS:
        return None
    affordable = scored.resamples * ROWS_TIMES_LATENTS // codes.size
    found = metrics.with_uncertainty(
        of_rows,
        codes,
        factors,
        num_resamples=min(scored.resamples, max(FEWEST_RESAMPLES, affordable)),
        num_shuffles=scored.shuffles,
        seed=scored.seed,
    )
    plain = metrics.to_plain(found)
    assert isinstance(plain, dict)
    hidden = () if found.covers else ("interval", "bias", "corrected", "standard_error")  # these would mislead
    kept = {key: value for key, value in plain.items() if key not in ("result", "notes", "score", "covers")}
    return kept | dict.fromkeys(hidden)


def headline(result: Mapping[str, Any]) -> float | None:
    """The single number of a plain result (the decomposition's is its rate); None if it is not finite."""
    value = result.get("score", result.get("rate"))
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def most_varying_channels(groups: Sequence[Floats], dim: int) -> Floats:
    """[N, dim], standardised means of the channels that vary most, chosen on all rows: the code of a hierarchy for a full grid.

    No labels are used. If a half can be held out, :func:`metrics.reduce_groups` is better.
    """
    pooled = np.concatenate([group.mean(axis=(2, 3), dtype=np.float64) for group in as_groups(groups)], axis=1)
    spread = pooled.std(axis=0)
    kept = np.sort(np.argsort(-spread, kind="stable")[:dim])
    kept = kept[spread[kept] > 0] if (spread[kept] > 0).any() else kept[:1]
    return np.asarray((pooled[:, kept] - pooled[:, kept].mean(axis=0)) / np.where(spread[kept] > 0, spread[kept], 1.0))
