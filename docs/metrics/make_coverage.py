"""Coverage of the intervals of every score: `python docs/metrics/make_coverage.py [SCORE ...] [--draws N]` (minutes each).

Two populations of six latents and factors of 3, 5 and 8 values, and a small one for costly scores:

* copies: two latents per factor, which keep its value with known probabilities and else draw another at random. MIG and
  MCC are known in closed form.
* mixtures: each latent is a weighted sum of two factors and of uniform noise, so that no score is at an end of its range.
* small: three latents, each a weighted factor of 4 values and uniform noise.

The truth of a score is its value on 500,000 rows (40,000 for costly scores). Its standard error is 4 % of that of a draw
of 1,000 rows (9 % for costly scores and draws of 300 rows). If it differs from the closed form, the script stops.
Columns: score, population, truth, bias, bias left by the correction, standard error, draws with an interval, coverage, CPU
seconds. A score without an interval shows the spread of its draws and their mean ``halves_std`` instead. ``--bootstrap``
adds the coverage of bootstrap intervals.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import metrics
from metrics.arrays import Float64, Int64
from metrics.factors import as_table
from metrics.uncertainty import of_rows

SIZES, KEEP = (3, 5, 8), ((0.9, 0.4), (0.8, 0.3), (0.7, 0.5))
WEIGHTS = ((1.0, 0.3, 0.0), (0.0, 1.0, 0.4), (0.5, 0.0, 1.0), (0.4, 0.0, 0.6), (0.0, 0.2, 0.3), (0.6, 0.5, 0.0))
SMALL_SIZE, SMALL_WEIGHTS = 4, (1.0, 0.5, 0.2)
MANY, CLOSE = 500_000, 3e-3
FEW_BATCHES = {"num_train": 1_000, "num_eval": 500, "batch_size": 16}
FEW_PAIRS = {"num_train": 300, "num_eval": 300, "batch_size": 4}

Draw = Callable[[np.random.Generator, int], tuple[Float64, Int64]]


def _factors(rng: np.random.Generator, num: int) -> Int64:
    return np.stack([rng.integers(size, size=num) for size in SIZES], axis=1)


def copies(rng: np.random.Generator, num: int) -> tuple[Float64, Int64]:
    """Codes [num, 6] that keep values of factors [num, 3] with known probabilities."""
    factors = _factors(rng, num)
    latents = [
        np.where(rng.random(num) < keep, factors[:, k], rng.integers(size, size=num))
        for k, (size, keeps) in enumerate(zip(SIZES, KEEP, strict=True))
        for keep in keeps
    ]
    return np.stack(latents, axis=1).astype(np.float64), factors


def mixtures(rng: np.random.Generator, num: int) -> tuple[Float64, Int64]:
    """Codes [num, 6] that are sums of two factors and of uniform noise."""
    factors = _factors(rng, num)
    values = 2.0 * factors / (np.array(SIZES) - 1) - 1.0
    return values @ np.array(WEIGHTS).T + rng.uniform(-0.4, 0.4, size=(num, len(WEIGHTS))), factors


def small(rng: np.random.Generator, num: int) -> tuple[Float64, Int64]:
    """Codes [num, 3] that hold one factor [num, 1] with more or less noise."""
    factors = rng.integers(SMALL_SIZE, size=(num, 1))
    noise = rng.uniform(-0.6, 0.6, size=(num, len(SMALL_WEIGHTS)))
    return (2.0 * factors / (SMALL_SIZE - 1) - 1.0) * np.array(SMALL_WEIGHTS) + noise, factors


def share(size: int, keep: float) -> float:
    """I / H of a factor and a latent that keeps its value with probability ``keep``."""
    joint = np.full((size, size), (1.0 - keep) / size**2) + np.eye(size) * keep / size
    return float((joint * np.log(joint * size**2)).sum() / np.log(size))


CLOSED_FORM = {
    "mig": float(np.mean([share(n, a) - share(n, b) for n, (a, b) in zip(SIZES, KEEP, strict=True)])),
    "mcc": float(np.mean([a for a, _ in KEEP])),
}
CHEAP: dict[str, Callable[..., Any]] = {
    "mig": metrics.mig,
    "mig, quantile bins": partial(metrics.mig, binning="quantile"),
    "mig_sup": metrics.mig_sup,
    "jemmig": metrics.jemmig,
    "med": metrics.med,
    "modularity": metrics.modularity,
    "sap_r2": partial(metrics.sap, kind="r2"),
    "mcc": metrics.mcc,
    "mcc_spearman": partial(metrics.mcc, correlation="spearman"),
    "weak_mcc": partial(metrics.mcc, mapping="linear"),
    "linear_r2": metrics.linear_r2,
    "cca": metrics.cca,
    "irs": partial(metrics.irs, num_shuffles=0),
    "irs, quantile .99": partial(metrics.irs, quantile=0.99, num_shuffles=0),
    "total_correlation": metrics.total_correlation,
    "pairwise_information": metrics.pairwise_information,
}
OF_CODES = frozenset(("total_correlation", "pairwise_information"))  # alone, without factors
COSTLY: dict[str, Callable[..., Any]] = {
    "infomec": metrics.infomec,
    "dci, lasso": partial(metrics.dci, regressor="lasso"),
    "dci_es": metrics.dci_es,
    "explicitness": metrics.explicitness,
    "mlp_r2": metrics.mlp_r2,
    "sap": metrics.sap,
    "factor_vae_of_rows": partial(metrics.factor_vae_of_rows, **FEW_BATCHES),
    "beta_vae_of_rows": partial(metrics.beta_vae_of_rows, **FEW_PAIRS),
}
MANY_BATCHES = {"num_eval": 200_000}  # for the truth, because the draw of batches adds noise
POPULATIONS: dict[str, Draw] = {"copies": copies, "mixtures": mixtures, "small": small}


def truth(name: str, draw: Draw, num: int) -> float:
    """The score of so many rows that neither its bias nor its spread matters beside those at 1,000 rows."""
    codes, factors = draw(np.random.default_rng(1), num)
    batches = MANY_BATCHES if name.endswith("of_rows") else {}
    table = None if name in OF_CODES else as_table(factors)
    value = float(of_rows((CHEAP | COSTLY)[name], seed=0, **batches)(codes, table).score)
    exact = CLOSED_FORM.get(name) if draw is copies else None
    if exact is not None and abs(value - exact) > CLOSE:
        raise AssertionError(f"{name} of {num:,} rows is {value}, in closed form {exact}")
    return value if exact is None else exact


def bootstrap(score: Callable[..., Any], codes: Float64, factors: Int64, seed: int, resamples: int) -> Float64:
    """(low, high) of bootstrap percentiles, and of the same reflected at the score: [2, 2]."""
    rng, at = np.random.default_rng(seed), float(score(codes, factors).score)
    picked = (rng.integers(len(codes), size=len(codes)) for _ in range(resamples))
    low, high = np.quantile([score(codes[rows], factors[rows]).score for rows in picked], [0.025, 0.975])
    return np.array([(low, high), (2 * at - high, 2 * at - low)])


def row(name: str, population: str, options: argparse.Namespace) -> str:
    """One line of the table: bias and standard error of a draw, and the share of intervals that hold the truth."""
    draw, score, started = POPULATIONS[population], (CHEAP | COSTLY)[name], time.process_time()
    aim = truth(name, draw, MANY if name in CHEAP else options.many)
    rng, found, others = np.random.default_rng(options.seed), [], []
    for i in range(options.draws):
        codes, factors = draw(rng, options.points)
        seed = 1_000 * options.seed + i
        table = None if name in OF_CODES else factors
        found.append(
            metrics.with_uncertainty(score, codes, table, num_resamples=options.resamples, num_shuffles=1, seed=seed)
        )
        if options.bootstrap:
            others.append(bootstrap(score, codes, factors, seed, options.resamples))
    values = np.array([u.score for u in found])
    cells = [name, population, f"{aim:.4f}", f"{values.mean() - aim:+.4f}", *_cells(found, aim, float(values.std()))]
    cells += [f"{_covered(np.array(others)[:, j], aim):.1%}" for j in range(2) if others]
    return f"| {' | '.join(cells)} | {time.process_time() - started:.0f} s |"


def _cells(found: list[metrics.Uncertain], aim: float, spread: float) -> list[str]:
    """Bias left, standard error, number of draws with an interval, and its coverage."""
    offered = [u for u in found if u.covers]
    if not offered:
        return ["no interval", f"{spread:.4f}", f"{np.mean([u.halves_std for u in found]):.4f} of halves", "-"]
    left, ends = np.mean([u.corrected for u in offered]) - aim, np.array([u.interval for u in offered])
    return [f"{left:+.4f}", f"{spread:.4f}", str(len(offered)), f"{_covered(ends, aim):.1%}"]


def _covered(ends: Float64, aim: float) -> float:
    return float(np.mean((ends[:, 0] - 1e-12 <= aim) & (aim <= ends[:, 1] + 1e-12)))


def main(arguments: Sequence[str]) -> None:
    """Print a line for each score and population."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scores", nargs="*", default=list(CHEAP), help=f"of {', '.join(CHEAP | COSTLY)}")
    parser.add_argument("--population", nargs="*", default=["copies", "mixtures"], help=f"of {', '.join(POPULATIONS)}")
    parser.add_argument("--points", type=int, default=1_000, help="rows of a draw")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=20)
    parser.add_argument("--many", type=int, default=40_000, help="rows for the truth of costly scores")
    parser.add_argument("--bootstrap", action="store_true")
    options = parser.parse_args(arguments)
    for name in options.scores:
        for population in options.population:
            print(row(name, population, options), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
