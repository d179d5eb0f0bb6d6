"""Plain versions of the scores as disent 0.8.0 and disentanglement_lib define them, for benchmarks to compare with.

Loops over latents, factors and batches, as a reader of the papers would write them, with scikit-learn where these libraries
use it. Nothing here is optimised, and no other package imports it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score, roc_auc_score
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

CodeOf = Callable[[np.ndarray], np.ndarray]


def binned(codes: np.ndarray, bins: int = 20) -> np.ndarray:
    """Index of the equal-width bin of each code, [N, D]."""
    return np.stack([np.digitize(latent, np.histogram(latent, bins)[1][:-1]) for latent in codes.T], axis=1)


def information(codes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Mutual information of each binned latent and each factor in nats, [D, K]."""
    index = binned(codes)
    return np.array([[mutual_info_score(latent, factor) for factor in factors.T] for latent in index.T])


def mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """Mean over factors of the gap between the two best latents, over the factor's entropy."""
    ordered = np.sort(information(codes, factors), axis=0)
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    return float(np.mean((ordered[-1] - ordered[-2]) / entropy))


def modularity(codes: np.ndarray, factors: np.ndarray) -> float:
    """Ridgeway and Mozer's modularity, mean over latents."""
    squares = information(codes, factors) ** 2
    best = squares.max(axis=1)
    others = (squares.sum(axis=1) - best) / (factors.shape[1] - 1)
    return float(np.mean(np.where(best > 0, 1.0 - others / np.where(best > 0, best, 1.0), 0.0)))


def sap_r2(codes: np.ndarray, factors: np.ndarray) -> float:
    """Gap of squared correlations."""
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    for d, latent in enumerate(codes.T):
        for k, factor in enumerate(factors.T):
            covariance = np.cov(latent, factor, ddof=1)
            if covariance[0, 0] > 1e-12:
                matrix[d, k] = covariance[0, 1] ** 2 / (covariance[0, 0] * covariance[1, 1])
    ordered = np.sort(matrix, axis=0)
    return float(np.mean(ordered[-1] - ordered[-2]))


def sap(codes: np.ndarray, factors: np.ndarray, test_codes: np.ndarray, test_factors: np.ndarray) -> float:
    """Gap of the accuracies of linear support vector machines on single latents."""
    matrix = np.zeros((codes.shape[1], factors.shape[1]))
    for d in range(codes.shape[1]):
        for k in range(factors.shape[1]):
            machine = LinearSVC(C=0.01, class_weight="balanced", random_state=0)
            machine.fit(codes[:, d : d + 1], factors[:, k])
            matrix[d, k] = np.mean(machine.predict(test_codes[:, d : d + 1]) == test_factors[:, k])
    ordered = np.sort(matrix, axis=0)
    return float(np.mean(ordered[-1] - ordered[-2]))


def explicitness(codes: np.ndarray, factors: np.ndarray, test_codes: np.ndarray, test_factors: np.ndarray) -> float:
    """Mean over factors of the one-against-rest ROC areas of a logistic regression."""
    scaler = StandardScaler().fit(codes)
    areas = []
    for k in range(factors.shape[1]):
        model = LogisticRegression().fit(scaler.transform(codes), factors[:, k])
        coded = OneHotEncoder(sparse_output=False).fit(factors[:, k : k + 1]).transform(test_factors[:, k : k + 1])
        areas.append(roc_auc_score(coded, model.predict_proba(scaler.transform(test_codes)), average="macro"))
    return float(np.mean(areas))


def pairwise_information(codes: np.ndarray) -> float:
    """Mean mutual information between two binned latents."""
    index = binned(codes)
    num = index.shape[1]
    pairs = [mutual_info_score(index[:, i], index[:, j]) for i in range(num) for j in range(num) if i != j]
    return float(np.mean(pairs))


def gaussian_total_correlation(codes: np.ndarray) -> float:
    """Total correlation of a Gaussian with the codes' covariance."""
    covariance = np.cov(codes.T)
    return float(0.5 * (np.sum(np.log(np.diag(covariance))) - np.linalg.slogdet(covariance)[1]))


def irs(codes: np.ndarray, factors: np.ndarray, quantile: float = 0.99) -> np.ndarray:
    """Matrix [D, K] of IRS: robustness of each latent to changes of all factors except factor k."""
    centred = codes - codes.mean(axis=0)
    largest = np.abs(centred).max(axis=0)
    robust = np.zeros((codes.shape[1], factors.shape[1]))
    for k in range(factors.shape[1]):
        total = 0.0
        for value in np.unique(factors[:, k]):
            rows = codes[factors[:, k] == value]
            away = np.quantile(np.abs(rows - rows.mean(axis=0)), quantile, axis=0)
            total = total + away * len(rows) / len(codes)
        robust[:, k] = 1.0 - total / largest
    return robust


def factor_vae(code_of: CodeOf, sizes: np.ndarray, num_train: int, num_eval: int) -> float:
    """Accuracy of the majority vote on the latent that varies least where one factor is held."""
    rng = np.random.default_rng(0)
    spread = code_of(_drawn(rng, sizes, 10_000)).var(axis=0, ddof=1)

    def votes(num: int) -> np.ndarray:
        table = np.zeros((len(spread), len(sizes)), dtype=np.int64)
        for _ in range(num):
            held, factors = rng.integers(len(sizes)), _drawn(rng, sizes, 64)
            factors[:, held] = factors[0, held]
            table[np.argmin(code_of(factors).var(axis=0, ddof=1) / spread), held] += 1
        return table

    best = votes(num_train).argmax(axis=1)
    test = votes(num_eval)
    return float(test[np.arange(len(best)), best].sum() / test.sum())


def beta_vae(code_of: CodeOf, sizes: np.ndarray, num_train: int, num_eval: int) -> float:
    """Accuracy of a logistic regression that names the factor which the two images of 64 pairs share."""
    rng = np.random.default_rng(0)

    def points(num: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for _ in range(num):
            held, first, second = rng.integers(len(sizes)), _drawn(rng, sizes, 64), _drawn(rng, sizes, 64)
            second[:, held] = first[:, held]
            features.append(np.abs(code_of(first) - code_of(second)).mean(axis=0))
            labels.append(held)
        return np.array(features), np.array(labels)

    model = LogisticRegression().fit(*points(num_train))
    features, labels = points(num_eval)
    return float(np.mean(model.predict(features) == labels))


def _drawn(rng: np.random.Generator, sizes: np.ndarray, num: int) -> np.ndarray:
    return rng.integers(sizes, size=(num, len(sizes)))
