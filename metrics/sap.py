"""Separated attribute predictability (Kumar et al. 2018), in its two forms, which are not comparable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from metrics.arrays import Array, Float64, Floats, Int64
from metrics.classifiers import fit_with_notes
from metrics.discrete import top_two_gap
from metrics.factors import Pairs, Table, paired, paired_split

Kind = Literal["discrete", "r2"]
DEAD_VARIANCE = 1e-12  # a latent or factor that varies less predicts nothing


@dataclass(frozen=True, eq=False)
class SAP:
    """SAP with its parts.

    Args:
        score: mean over factors of the gap between the two latents that predict it best.
        per_factor: [K].
        matrix: [D, K], accuracy on test rows ("discrete") or squared correlation on train rows ("r2").
        ceiling: the score of codes = factors on the same rows: about .24 in the discrete form on dSprites, and None in
            the R2 form, for which it is 1 up to the factors' accidental correlation.
    """

    score: float
    per_factor: Float64
    matrix: Float64
    kind: Kind
    ceiling: float | None
    num_train: int
    num_test: int
    kept: tuple[int, ...]
    seed: int
    notes: tuple[str, ...]


def sap(
    codes: Array,
    factors: Table,
    test_codes: Array | None = None,
    test_factors: Table | None = None,
    *,
    kind: Kind = "discrete",
    seed: int = 0,
    ceiling: bool = False,
) -> SAP:
    """SAP of codes [N, D] about factors [N, K].

    "discrete" fits a linear SVM (C = .01, balanced classes) on one raw latent at a time and scores test rows; without
    test rows it scores the train rows, with a note. "r2" is the squared Pearson correlation of latent and class index
    on train rows, and takes continuous factors. ``ceiling`` also scores a perfect code, at the same cost again. The
    solver draws nothing; ``seed`` is passed on and reported.
    """
    if kind not in ("discrete", "r2"):
        raise ValueError(f"kind={kind!r} is not known; choose 'discrete' or 'r2'")
    if (test_codes is None) != (test_factors is None):
        raise ValueError("only one of test_codes and test_factors was given; give both or neither")
    if test_codes is None or test_factors is None:
        train = test = paired(codes, factors, any_scale=kind == "r2")
        own_rows = ("there are no test rows: accuracy is on the rows it was fitted to",) if kind == "discrete" else ()
    else:
        train, test = paired_split(codes, factors, test_codes, test_factors, any_scale=kind == "r2")
        own_rows = ()
    matrix, notes = _matrix(train, test, kind, seed)
    per_factor = top_two_gap(matrix)
    best = None
    if ceiling:
        perfect = [replace(part, codes=part.values) for part in (train, test)]
        best = float(top_two_gap(_matrix(perfect[0], perfect[1], kind, seed)[0]).mean())
    return SAP(
        score=float(per_factor.mean()),
        per_factor=per_factor,
        matrix=matrix,
        kind=kind,
        ceiling=best,
        num_train=len(train),
        num_test=0 if kind == "r2" else len(test),
        kept=train.kept,
        seed=seed,
        notes=train.notes + own_rows + notes,
    )


def _matrix(train: Pairs, test: Pairs, kind: Kind, seed: int) -> tuple[Float64, tuple[str, ...]]:
    if kind == "r2":
        return squared_correlation(train.codes, train.values, train.exponents), ()
    matrix = np.zeros((train.codes.shape[1], len(train.kept)))
    notes: set[str] = set()
    for d in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            matrix[d, k], fit_notes = _accuracy(train, test, d, k, seed)
            notes.update(fit_notes)
    return matrix, tuple(sorted(notes))


def _accuracy(train: Pairs, test: Pairs, d: int, k: int, seed: int) -> tuple[float, tuple[str, ...]]:
    from sklearn.svm import LinearSVC

    svm = LinearSVC(C=0.01, class_weight="balanced", random_state=seed)
    svm, notes = fit_with_notes(svm, train.codes[:, d : d + 1], train.classes[:, k])
    # As predict() decides, without its checks, which take longer than the product.
    decision = test.codes[:, d : d + 1] @ svm.coef_.T + svm.intercept_
    index = decision.argmax(axis=1) if decision.shape[1] > 1 else (decision[:, 0] > 0).astype(np.int64)
    return float(np.mean(svm.classes_[index] == test.classes[:, k])), notes


def squared_correlation(codes: Floats, values: Float64, exponents: Int64) -> Float64:
    """[N, D] latents divided by 2^exponents [D], factors [N, K] -> [D, K]; 0 where either side hardly varies."""
    code = codes.astype(np.float64)
    code -= code.mean(axis=0)
    factor = values - values.mean(axis=0)
    code_variance, factor_variance = np.mean(code**2, axis=0), np.mean(factor**2, axis=0)
    with np.errstate(over="ignore", under="ignore"):
        on_given_scale = np.ldexp(code_variance, 2 * exponents)
    alive = (on_given_scale[:, None] > DEAD_VARIANCE) & (factor_variance > DEAD_VARIANCE)
    product = np.where(alive, code_variance[:, None] * factor_variance, 1.0)
    squared: Float64 = np.where(alive, (code.T @ factor / len(code)) ** 2 / product, 0.0)
    return squared
