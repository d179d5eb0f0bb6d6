"""Time every score against an earlier commit of this project and against plain references, in turn, in one process.

    git worktree add /tmp/earlier 32c0d67
    OMP_NUM_THREADS=1 python -m benchmarks.paired_scores /tmp/earlier [SCORE ...] [--rounds N]

Each round runs earlier, ours and the reference of one score one after another, in another order each time. A ratio is the
median over rounds of the ratios within a round, in CPU seconds, so that a shared machine hardly matters; its quartiles
stand beside it.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
from benchmarks import naive_scores

SIZES = np.array([3, 6, 40, 32, 32])
STRIDES = np.array([245_760, 40_960, 1_024, 32, 1])
FEWEST_ROUNDS, MOST_ROUNDS, SECONDS = 9, 41, 3.0  # of a case, all functions together


def package(root: Path) -> ModuleType:
    """Import the package ``metrics`` of a folder, beside any that was imported before."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "metrics"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("metrics")
    finally:
        sys.path.remove(str(root))


@dataclass(frozen=True)
class Case:
    """A score as a function of the package, and its plain reference; ``new`` if the earlier commit lacks it."""

    score: Callable[[Any], Any]
    reference: Callable[[], Any] | None = None
    new: bool = False


def of_histograms(codes: np.ndarray, factors: np.ndarray) -> dict[str, Case]:
    """Scores that count."""
    return {
        "MIG": Case(lambda m: m.mig(codes, factors), lambda: naive_scores.mig(codes, factors)),
        "modularity": Case(lambda m: m.modularity(codes, factors), lambda: naive_scores.modularity(codes, factors)),
        "MIG-sup": Case(lambda m: m.mig_sup(codes, factors)),
        "MIC": Case(lambda m: m.mic(codes, factors, [0, 1])),
        "pairwise information": Case(
            lambda m: m.pairwise_information(codes), lambda: naive_scores.pairwise_information(codes)
        ),
    }


def of_moments(codes: np.ndarray, factors: np.ndarray) -> dict[str, Case]:
    """Scores of means, covariances, quantiles and densities."""
    few, variances = codes[:2_000], np.full_like(codes, 0.1)
    return {
        "SAP, R2": Case(lambda m: m.sap(codes, factors, kind="r2"), lambda: naive_scores.sap_r2(codes, factors)),
        "Gaussian TC": Case(
            lambda m: m.gaussian_total_correlation(codes), lambda: naive_scores.gaussian_total_correlation(codes)
        ),
        "covariance distance": Case(lambda m: m.covariance_distance(codes, variances)),
        "aggregate-posterior MIG": Case(lambda m: m.aggregate_posterior_mig(codes, variances, factors)),
        "rate decomposition": Case(lambda m: m.decompose_rate(few, variances[:2_000], seed=0, num_draws=100)),
        "IRS": Case(
            lambda m: m.irs(codes, factors, quantile=0.99, num_shuffles=0),
            lambda: naive_scores.irs(codes, factors),
            new=True,
        ),
    }


def of_predictors(codes: np.ndarray, factors: np.ndarray) -> dict[str, Case]:
    """Scores that fit scikit-learn's predictors, on 2,000 rows and two factors."""
    few, half = codes[:2_000], factors[:2_000, :2]
    split = few[:1_000], half[:1_000], few[1_000:], half[1_000:]
    small = few[:300], half[:300, :1], few[300:500], half[300:500, :1]
    groups = [few[:, d : d + 1] for d in range(5)]
    return {
        "SAP, SVMs": Case(lambda m: m.sap(*split, seed=0), lambda: naive_scores.sap(*split)),
        "explicitness": Case(lambda m: m.explicitness(*split, seed=0), lambda: naive_scores.explicitness(*split)),
        "DCI, trees": Case(lambda m: m.dci(*small, seed=0)),
        "UDR": Case(lambda m: m.udr([few, few[:, ::-1]], [np.ones(10)] * 2)),
        "group information": Case(lambda m: m.group_information(groups, half, seed=0)),
    }


def of_grids(table: np.ndarray) -> dict[str, Case]:
    """Scores that draw from all combinations of the factors."""
    counts = {"num_train": 2_000, "num_eval": 1_000}

    def code_of(rows: np.ndarray) -> np.ndarray:
        return table[rows @ STRIDES]

    return {
        "FactorVAE": Case(
            lambda m: m.factor_vae_metric(code_of, SIZES, seed=0, **counts),
            lambda: naive_scores.factor_vae(code_of, SIZES, **counts),
        ),
        "beta-VAE": Case(
            lambda m: m.beta_vae_metric(code_of, SIZES, seed=0, **counts),
            lambda: naive_scores.beta_vae(code_of, SIZES, **counts),
        ),
    }


def _table() -> np.ndarray:
    """Codes [737280, 10] of every combination of the factors: the factors with noise, then noise."""
    rng = np.random.default_rng(0)
    factors = np.stack(np.unravel_index(np.arange(SIZES.prod()), tuple(SIZES.tolist())), axis=1)
    codes = rng.standard_normal((len(factors), 10), dtype=np.float32)
    codes[:, :5] = 0.3 * codes[:, :5] + 2.0 * factors / (SIZES - 1) - 1.0
    return codes


def rounds(functions: list[Callable[[], Any]], fewest: int) -> np.ndarray:
    """CPU seconds [rounds, functions], each round in another order; a first call of each is not counted."""
    times: list[list[float]] = []
    for function in functions:
        function()
    while len(times) < fewest or (len(times) < MOST_ROUNDS and np.sum(times) < SECONDS):
        times.append([0.0] * len(functions))
        order = np.roll(np.arange(len(functions)), len(times) // 2)
        for j in order if len(times) % 2 else order[::-1]:  # so that every function follows every other
            start = time.process_time()
            functions[j]()
            times[-1][j] = time.process_time() - start
    return np.array(times)


def compared(case: Case, ours: ModuleType, earlier: ModuleType, fewest: int) -> str:
    """Cells of a line: rounds, seconds, and how many times as long the earlier commit and the reference take."""
    functions = [lambda: case.score(ours)]
    functions += [] if case.new else [lambda: case.score(earlier)]
    functions += [] if case.reference is None else [case.reference]
    times = rounds(functions, fewest)
    quartiles = np.quantile(times[:, 1:] / times[:, :1], [0.5, 0.25, 0.75], axis=0).T
    ratios = [f"{middle:.2f} ({low:.2f} to {high:.2f})" for middle, low, high in quartiles]
    before = "new" if case.new else ratios.pop(0)
    return f"{len(times)} | {np.median(times[:, 0]):.4f} | {before} | {ratios.pop() if ratios else '-'}"


def main() -> None:
    """Print a line for each score."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path, help="checkout of the earlier commit")
    parser.add_argument("scores", nargs="*", help="names as printed; default: all")
    parser.add_argument("--rounds", type=int, default=FEWEST_ROUNDS, help="least number of rounds of each score")
    options = parser.parse_args()
    earlier, ours = package(options.earlier.resolve()), package(ROOT)
    rng, table = np.random.default_rng(1), _table()
    factors = rng.integers(SIZES, size=(10_000, len(SIZES)))
    codes = table[factors @ STRIDES]
    cases = of_histograms(codes, factors) | of_moments(codes, factors) | of_predictors(codes, factors) | of_grids(table)
    print("| score | rounds | ours, s | earlier / ours | reference / ours |\n|---|--:|--:|--:|--:|")
    for name in options.scores or cases:
        print(f"| {name} | {compared(cases[name], ours, earlier, options.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
