"""Time every score against an earlier commit of this project and against plain references, in turn, in one process.

    git worktree add /tmp/earlier 32c0d67
    OMP_NUM_THREADS=1 python -m benchmarks.paired_scores /tmp/earlier

Each round runs earlier, ours and the reference of one score one after another; a ratio is the median over rounds of the
ratios within a round, in CPU seconds, so that a shared machine hardly matters.
"""

from __future__ import annotations

import importlib
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
from benchmarks import naive_scores

SIZES = np.array([3, 6, 40, 32, 32])
STRIDES = np.array([245_760, 40_960, 1_024, 32, 1])


def package(root: Path) -> ModuleType:
    """The package ``metrics`` of a folder, beside any other that was imported before."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "metrics"]:
        del sys.modules[name]
    sys.path.insert(0, str(root))
    try:
        return importlib.import_module("metrics")
    finally:
        sys.path.remove(str(root))


def cases(
    codes: np.ndarray, factors: np.ndarray
) -> dict[str, tuple[int, Callable[[Any], Any], Callable[[], Any] | None]]:
    """Rounds, the score as a function of the package, and its plain reference, by name."""
    few, half = codes[:2_000], factors[:2_000, :2]
    split = few[:1_000], half[:1_000], few[1_000:], half[1_000:]
    small = few[:300], half[:300], few[300:500], half[300:500]
    variances = np.full_like(codes, 0.1)
    table = _table()

    def code_of(rows: np.ndarray) -> np.ndarray:
        return table[rows @ STRIDES]

    counts = {"num_train": 2_000, "num_eval": 1_000}
    naive = naive_scores
    return {
        "MIG": (15, lambda m: m.mig(codes, factors), lambda: naive.mig(codes, factors)),
        "modularity": (15, lambda m: m.modularity(codes, factors), lambda: naive.modularity(codes, factors)),
        "MIG-sup": (15, lambda m: m.mig_sup(codes, factors), None),
        "MIC": (7, lambda m: m.mic(codes, factors, [0, 1]), None),
        "SAP, R2": (15, lambda m: m.sap(codes, factors, kind="r2"), lambda: naive.sap_r2(codes, factors)),
        "SAP, SVMs": (3, lambda m: m.sap(*split, seed=0), lambda: naive.sap(*split)),
        "explicitness": (3, lambda m: m.explicitness(*split, seed=0), lambda: naive.explicitness(*split)),
        "DCI, trees": (3, lambda m: m.dci(*small, seed=0), None),
        "pairwise information": (
            7,
            lambda m: m.pairwise_information(codes),
            lambda: naive.pairwise_information(codes),
        ),
        "Gaussian TC": (
            15,
            lambda m: m.gaussian_total_correlation(codes),
            lambda: naive.gaussian_total_correlation(codes),
        ),
        "covariance distance": (15, lambda m: m.covariance_distance(codes, variances), None),
        "aggregate-posterior MIG": (3, lambda m: m.aggregate_posterior_mig(codes, variances, factors), None),
        "rate decomposition": (3, lambda m: m.decompose_rate(few, variances[:2_000], seed=0, num_draws=100), None),
        "UDR": (3, lambda m: m.udr([few, few[:, ::-1]], [np.ones(10)] * 2), None),
        "group information": (
            3,
            lambda m: m.group_information([few[:, d : d + 1] for d in range(5)], half, seed=0),
            None,
        ),
        "FactorVAE": (
            5,
            lambda m: m.factor_vae_metric(code_of, SIZES, seed=0, **counts),
            lambda: naive.factor_vae(code_of, SIZES, **counts),
        ),
        "beta-VAE": (
            5,
            lambda m: m.beta_vae_metric(code_of, SIZES, seed=0, **counts),
            lambda: naive.beta_vae(code_of, SIZES, **counts),
        ),
        "IRS": (7, lambda m: m.irs(codes, factors, quantile=0.99, num_shuffles=0), lambda: naive.irs(codes, factors)),
    }


def _table() -> np.ndarray:
    """Codes [737280, 10] of every combination of the factors: the factors with noise, then noise."""
    rng = np.random.default_rng(0)
    factors = np.stack(np.unravel_index(np.arange(SIZES.prod()), tuple(SIZES.tolist())), axis=1)
    codes = rng.standard_normal((len(factors), 10), dtype=np.float32)
    codes[:, :5] = 0.3 * codes[:, :5] + 2.0 * factors / (SIZES - 1) - 1.0
    return codes


def rounds(count: int, functions: list[Callable[[], Any]]) -> np.ndarray:
    """CPU seconds [rounds, functions], each round in another order; a first call of each is not counted."""
    times = np.zeros((count, len(functions)))
    for function in functions:
        function()
    for i in range(count):
        for j in np.roll(np.arange(len(functions)), i):
            start = time.process_time()
            functions[j]()
            times[i, j] = time.process_time() - start
    return times


def main() -> None:
    """Print a line for each score."""
    warnings.simplefilter("ignore")
    earlier, ours = package(Path(sys.argv[1]).resolve()), package(ROOT)
    rng = np.random.default_rng(1)
    factors = rng.integers(SIZES, size=(10_000, len(SIZES)))
    codes = _table()[factors @ STRIDES]
    chosen = sys.argv[2:]
    print("| score | ours, s | earlier / ours | reference / ours |\n|---|--:|--:|--:|")
    for name, (count, score, reference) in cases(codes, factors).items():
        if chosen and name not in chosen:
            continue
        before = name != "IRS"  # newer than the earlier commit
        functions = [lambda score=score: score(ours)]
        functions += [lambda score=score: score(earlier)] if before else []
        functions += [reference] if reference is not None else []
        times = rounds(count, functions)
        ratios = [f"{r:.2f}" for r in np.median(times[:, 1:] / times[:, :1], axis=0)]
        cells = ([ratios.pop(0)] if before else ["new"]) + (ratios or ["-"])
        print(f"| {name} | {np.median(times[:, 0]):.4f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
