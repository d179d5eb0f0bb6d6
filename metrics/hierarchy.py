"""Scores that are fair to a hierarchy: the group as the unit, and reduced codes at equal dimension.

Groups are arrays [N, C, H, W] or [N, D], top group first; a flat model enters as D groups of one latent. These scores
support claims such as "factor x lives in groups a to b" or "the code is (not) axis-aligned at equal dimension". Score
untrained models of both kinds beside the trained ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from metrics.arrays import Array, Float64, Int64, check_count, to_numpy
from metrics.classifiers import fit_with_notes, fitted_logistic
from metrics.discrete import bin_codes, entropy, mutual_information, prepare_labels, top_two_gap
from metrics.factors import QUANTILE_BINS, Table, paired, quantile_classes
from metrics.linear import standardised
from metrics.mutual_information import MIG, MIGSup, mig, mig_sup
from metrics.permutation import permutation_baseline
from metrics.reductions import LARGEST_TOP, Kind, as_groups, halves, pca, reduce_groups

Probe = Literal["logistic", "mlp"]
DIMS = (5, 10, 20, 50)
UNIFORM_SHARE = 1e-3  # mixed into a probe's prediction: an unforeseen class costs log(n / .001) nats, not infinity
SMALL_PROBE = 64  # hidden units of the "mlp" probe


@dataclass(frozen=True, eq=False)
class GroupInformation:
    """Information of groups about factors, in nats: lower bounds from held-out probes.

    Args:
        score: group-MIG, mean over factors of the gap between the two groups that know most, over H(v_k). Factors with a
            single value in either half cannot be measured and do not count; a note names them.
        per_factor: [K], group-MIG of each factor; 0 where it cannot be measured.
        matrix: [L, K], I(G_l; v_k) >= H(v_k) - held-out cross entropy, at least 0.
        cumulative: [L, K], I(G_1..G_l; v_k), never falling with l.
        conditional_gain: [L, K], information that group l adds to those above: differences of ``cumulative``, so
            estimates of I(G_l; v_k | G_<l) and no bounds.
        entropy: [K], H(v_k) of the test half.
        num_train, num_test: points of the two halves.
    """

    score: float
    per_factor: Float64
    matrix: Float64
    cumulative: Float64
    conditional_gain: Float64
    entropy: Float64
    probe: Probe
    num_train: int
    num_test: int
    seed: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def group_information(
    groups: Sequence[Array], factors: Table, *, seed: int, probe: Probe = "logistic", max_features: int = 32
) -> GroupInformation:
    """Information about factors [N, K] in each group, and in each group together with all groups above it.

    A probe is fitted on one half of the points and its cross entropy taken on the other: a multinomial logistic
    regression, or a network of 64 hidden units ("mlp", for factors that lie along curves, such as orientation). A
    group of more than ``max_features`` numbers is first reduced by PCA, which keeps the bound a bound. For chance levels
    run it under :func:`metrics.permutation_baseline`; held-out probes of noise give 0.
    """
    if probe not in ("logistic", "mlp"):
        raise ValueError(f"probe={probe!r} is not known; choose 'logistic' or 'mlp'")
    check_count(max_features, "max_features")
    arrays = as_groups(groups)
    data = paired(arrays[0].reshape(len(arrays[0]), -1), factors)
    classes, cut_notes = data.binned(QUANTILE_BINS)
    fit, test = halves(len(data), seed)
    features = []
    for array in arrays:
        flat = array.reshape(len(array), -1)
        features.append(standardised(pca(flat, fit, max_features, seed) if flat.shape[1] > max_features else flat, fit))
    nats = entropy(prepare_labels(classes[test]))
    alone, notes = _probe_all(features, classes, fit, test, nats, probe, seed)
    # Views of one array: a copy for every group and all above it would take memory quadratic in the groups.
    whole, ends = np.concatenate(features, axis=1), np.cumsum([array.shape[1] for array in features])
    joint, joint_notes = _probe_all([whole[:, :end] for end in ends[1:]], classes, fit, test, nats, probe, seed)
    cumulative = np.maximum.accumulate(np.maximum(np.concatenate([alone[:1], joint]), alone), axis=0)
    per_factor, measured = _share(top_two_gap(alone), nats), (nats > 0) & (np.ptp(classes[fit], axis=0) > 0)
    rare = [k for k, both in zip(data.kept, measured, strict=True) if not both]
    rare_note = (f"factors {rare} take a single value in one half of the rows and do not count",) if rare else ()
    return GroupInformation(
        score=float(per_factor[measured].mean()) if measured.any() else 0.0,
        per_factor=per_factor,
        matrix=alone,
        cumulative=cumulative,
        conditional_gain=np.diff(cumulative, axis=0, prepend=0.0),
        entropy=nats,
        probe=probe,
        num_train=len(fit),
        num_test=len(test),
        seed=seed,
        kept=data.kept,
        notes=tuple(dict.fromkeys(data.notes + cut_notes + rare_note + notes + joint_notes)),
    )


def _share(nats: Float64, total: Float64) -> Float64:
    """Nats / total, 0 where the total is 0."""
    return nats / np.where(total > 0, total, np.inf)


def _probe_all(
    features: list[Float64], factors: Int64, fit: Int64, test: Int64, nats: Float64, probe: Probe, seed: int
) -> tuple[Float64, tuple[str, ...]]:
    """Bound for each of the feature arrays [N, F] and each factor: ([arrays, K], notes)."""
    bounds = np.zeros((len(features), factors.shape[1]))
    notes: list[str] = []
    for row, array in enumerate(features):
        for k in range(factors.shape[1]):
            cross_entropy, fit_notes = _cross_entropy(array, factors[:, k], fit, test, probe, seed)
            bounds[row, k] = nats[k] - cross_entropy
            notes.extend(fit_notes)
    if (bounds < 0).any():
        notes.append("a probe did worse than a constant prediction: its bound, which was below 0, is reported as 0")
    return np.maximum(bounds, 0.0), tuple(notes)


def _cross_entropy(
    features: Float64, labels: Int64, fit: Int64, test: Int64, probe: Probe, seed: int
) -> tuple[float, tuple[str, ...]]:
    """Mean held-out cross entropy in nats of a probe; classes that it never saw keep the uniform share."""
    if probe == "logistic":
        model, notes = fitted_logistic(features[fit], labels[fit], seed=seed)
    else:
        from sklearn.neural_network import MLPClassifier

        network = MLPClassifier((SMALL_PROBE,), alpha=1e-2, learning_rate_init=1e-2, max_iter=50, random_state=seed)
        model, notes = fit_with_notes(network, features[fit], labels[fit])
    num_classes = len(np.unique(labels))
    probability = model.predict_proba(features[test])
    column = np.clip(np.searchsorted(model.classes_, labels[test]), 0, len(model.classes_) - 1)
    seen = model.classes_[column] == labels[test]
    chosen = np.where(seen, probability[np.arange(len(test)), column], 0.0)
    return float(-np.log((1 - UNIFORM_SHARE) * chosen + UNIFORM_SHARE / num_classes).mean()), notes


def mic_over_scales(information: GroupInformation, scales: Sequence[int]) -> tuple[tuple[int, ...], Float64]:
    """MIC of each scale: (the scales, ascending; [scales, K]) with (sum of I inside - sum outside) / H(v_k).

    ``scales`` names the scale (say its resolution) of each group.
    """
    given = to_numpy(np.asarray(scales))
    if given.shape != (len(information.matrix),):
        raise ValueError(
            f"scales {given.shape} do not match the {len(information.matrix)} groups; give one for each group"
        )
    distinct = np.unique(given)
    sign = np.where(given == distinct[:, None], 1.0, -1.0)
    return tuple(int(s) for s in distinct), _share(sign @ information.matrix, information.entropy)


@dataclass(frozen=True, eq=False)
class ReducedScore:
    """Scores of one reduction at one dimension.

    Args:
        dim: dimension requested. num_latents: dimension reached; rows are comparable if these agree.
        mig, mig_sup: of the reduced codes on the scored half.
        information_threshold: level of chance of a latent's I / H: 95 % quantile over shuffles of the largest cell.
        mig_sup_threshold: the same for MIG-sup.
    """

    kind: Kind
    dim: int
    num_latents: int
    mig: MIG
    mig_sup: MIGSup
    information_threshold: float
    mig_sup_threshold: float
    num_points: int
    num_shuffles: int
    seed: int
    notes: tuple[str, ...]


def reduced_scores(
    groups: Sequence[Array],
    factors: Table,
    *,
    seed: int,
    kinds: Sequence[Kind] | None = None,
    dims: Sequence[int] = DIMS,
    num_shuffles: int = 20,
    bins: int = 20,
) -> list[ReducedScore]:
    """MIG and MIG-sup of groups at equal dimension, for each kind of reduction and each of ``dims``.

    Kinds by default: "pool", "moments", "pca", and "top" if the top group is small. Use the same call on a flat
    model ([N, D] as one group) as the control.
    """
    arrays = as_groups(groups)
    rows = quantile_classes(factors, bins=bins)
    if len(rows) != len(arrays[0]):
        raise ValueError(f"groups[0] {arrays[0].shape} and factors {rows.shape} differ in their points")
    top: tuple[Kind, ...] = ("top",) if arrays[0][0].size <= LARGEST_TOP else ()
    chosen: Sequence[Kind] = (*top, "pool", "moments", "pca") if kinds is None else kinds
    return [_reduced_score(groups, rows, kind, dim, seed, num_shuffles, bins) for kind in chosen for dim in dims]


def _reduced_score(
    groups: Sequence[Array], factors: Int64, kind: Kind, dim: int, seed: int, num_shuffles: int, bins: int
) -> ReducedScore:
    reduced = reduce_groups(groups, kind, dim=dim, seed=seed)
    data = paired(reduced.codes, factors[reduced.rows])
    score, supervised = mig(data.codes, data.classes, bins=bins), mig_sup(data.codes, data.classes, bins=bins)
    binned = bin_codes(data.codes, bins)

    def share(shuffled: Int64) -> Float64:
        return mutual_information(binned, prepare_labels(shuffled), bins) / score.entropy

    chance = permutation_baseline(share, data.classes, num_shuffles=num_shuffles, seed=seed)
    gaps = top_two_gap(chance.draws, axis=2)[:, supervised.active]
    chance_sup = float(np.quantile(gaps.mean(axis=1), 0.95)) if supervised.active.any() else 0.0
    return ReducedScore(
        kind=kind,
        dim=dim,
        num_latents=data.codes.shape[1],
        mig=score,
        mig_sup=supervised,
        information_threshold=chance.threshold,
        mig_sup_threshold=chance_sup,
        num_points=len(data),
        num_shuffles=num_shuffles,
        seed=seed,
        notes=data.notes + reduced.notes,
    )
