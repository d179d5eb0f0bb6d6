"""InfoMEC (Hsu et al. 2023): modularity, explicitness and compactness from information, without histograms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.arrays import Array, Float64, check_count
from metrics.classifiers import fit_with_notes
from metrics.discrete import entropy, prepare_labels
from metrics.factors import QUANTILE_BINS, Pairs, Table, paired
from metrics.linear import least_squares, standardised
from metrics.neighbours import information_with_class, information_with_number, jittered
from metrics.probes import r2

NEIGHBOURS = 10
MAX_ITERATIONS = 300


@dataclass(frozen=True, eq=False)
class InfoMEC:
    """InfoMEC with its parts; ``score`` is the modularity.

    Args:
        modularity: InfoM, in [0, 1]: of what a latent knows, the share about one factor, mean over informed latents.
        explicitness: InfoE, in [0, 1]: the share of each factor's entropy that a linear predictor removes.
        compactness: InfoC, in [0, 1]: of what is known about a factor, the share that one latent knows.
        information: [D, K], I / H(v_k); 0 for constant latents.
        per_latent: [D], modularity; 0 for latents that know nothing. informed: [D], the latents that count.
        per_factor: [K], compactness. per_factor_explicitness: [K].
    """

    score: float
    modularity: float
    explicitness: float
    compactness: float
    information: Float64
    per_latent: Float64
    informed: npt.NDArray[np.bool_]
    per_factor: Float64
    per_factor_explicitness: Float64
    neighbours: int
    num_points: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def infomec(codes: Array, factors: Table, *, seed: int = 0, neighbours: int = NEIGHBOURS) -> InfoMEC:
    """InfoM, InfoE and InfoC of codes [N, D] about factors [N, K].

    Information comes from nearest neighbours (Ross 2014 for classes, Kraskov et al. 2004 for numbers), so there are no
    bins to choose; ``seed`` breaks ties between equal codes. Continuous factors have no entropy: their information is
    divided by log 20, that of 20 quantile bins, and their explicitness is the R2 of a linear map. A latent that is
    constant, or whose estimated information is 0 for every factor, has no modularity and is left out of the mean; the
    authors' code gives NaN. With one factor InfoM is 1, with one latent InfoC is 1, by definition.
    """
    check_count(neighbours, "neighbours")
    data = paired(codes, factors)
    varies = data.codes.min(axis=0) != data.codes.max(axis=0)
    information = _information(data, varies, neighbours, np.random.default_rng(seed))
    per_latent = _largest_share(information, axis=1)
    per_factor = _largest_share(information[varies], axis=0) if varies.any() else np.zeros(len(data.kept))
    informed = information.sum(axis=1) > 0
    explicit, fit_notes = _explicitness(data, varies, seed)
    modularity = float(per_latent[informed].mean()) if informed.any() else 0.0
    return InfoMEC(
        score=modularity,
        modularity=modularity,
        explicitness=float(explicit.mean()),
        compactness=float(per_factor.mean()),
        information=information,
        per_latent=per_latent,
        informed=informed,
        per_factor=per_factor,
        per_factor_explicitness=explicit,
        neighbours=neighbours,
        num_points=len(data),
        kept=data.kept,
        seed=seed,
        notes=data.notes + _notes(data, informed) + fit_notes,
    )


def _information(data: Pairs, varies: npt.NDArray[np.bool_], neighbours: int, rng: np.random.Generator) -> Float64:
    """I / H of every latent and factor, [D, K]."""
    information = np.zeros((data.codes.shape[1], len(data.kept)))
    latents, values = jittered(data.codes.astype(np.float64), rng), jittered(data.values, rng)
    for k, column in enumerate(data.table.columns):
        is_class = column.dtype.kind == "i"
        nats = (
            float(entropy(prepare_labels(column[:, None].astype(np.int64)))[0]) if is_class else math.log(QUANTILE_BINS)
        )
        for d in np.flatnonzero(varies):
            if is_class:
                found = information_with_class(latents[:, d], column.astype(np.int64), neighbours)
            else:
                found = information_with_number(latents[:, d], values[:, k], neighbours)
            information[d, k] = found / nats
    return information


def _largest_share(information: Float64, axis: int) -> Float64:
    """(Largest share of the sum - 1/n) / (1 - 1/n) along an axis of n entries; 0 where the sum is 0, 1 where n is 1."""
    count, total = information.shape[axis], information.sum(axis=axis)
    share = information.max(axis=axis) / np.where(total > 0, total, 1.0)
    if count == 1:
        return np.asarray((total > 0).astype(np.float64))
    return np.asarray(np.where(total > 0, (share - 1.0 / count) / (1.0 - 1.0 / count), 0.0))


def _explicitness(data: Pairs, varies: npt.NDArray[np.bool_], seed: int) -> tuple[Float64, tuple[str, ...]]:
    """[K]: 1 - cross entropy / entropy of logistic regression for classes, R2 of least squares for numbers; at least 0."""
    from sklearn.linear_model import LogisticRegression

    explicit, notes = np.zeros(len(data.kept)), dict[str, None]()
    if not varies.any():
        return explicit, ()
    features = standardised(data.codes[:, varies].astype(np.float64))
    for k, column in enumerate(data.table.columns):
        if column.dtype.kind == "f":
            values = data.values[:, k : k + 1]
            explicit[k] = max(0.0, float(r2(least_squares(features, values, slice(None)), values)[0]))
            continue
        labels = prepare_labels(column[:, None].astype(np.int64))
        model, fit_notes = fit_with_notes(
            LogisticRegression(C=np.inf, max_iter=MAX_ITERATIONS, random_state=seed), features, labels.dense[0]
        )
        notes.update(dict.fromkeys(fit_notes))
        probability = model.predict_proba(features)[np.arange(len(features)), labels.dense[0]]
        cross_entropy = -float(np.log(np.maximum(probability, np.finfo(np.float64).tiny)).mean())
        explicit[k] = max(0.0, 1.0 - cross_entropy / float(entropy(labels)[0]))
    return explicit, tuple(notes)


def _notes(data: Pairs, informed: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    notes: tuple[str, ...] = ()
    if not informed.all():
        notes += (f"{int((~informed).sum())} latents know nothing and are left out of the modularity",)
    if len(data.kept) == 1:
        notes += ("there is one factor: every informed latent is modular by definition",)
    if data.codes.shape[1] == 1:
        notes += ("there is one latent: what it knows is compact by definition",)
    if data.table.continuous:
        which = [data.kept[k] for k in data.table.continuous]
        notes += (f"information about continuous factors {which} is divided by log {QUANTILE_BINS}",)
    return notes
