"""Coverage of intervals on codes whose scores are known: `python docs/metrics/make_coverage.py [DRAWS]` (minutes).

Factors of 3, 5 and 8 values; two latents for each, which keep its value with known probabilities and else draw another
at random, so that information is known in closed form, and MCC is the larger probability. 1,000 rows, 200 resamples,
nominal 95 %. Beside it the bootstrap (rows with replacement): percentiles, and the same reflected at the score.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import metrics
from metrics.arrays import Float64, Int64

SIZES, KEEP = (3, 5, 8), ((0.9, 0.4), (0.8, 0.3), (0.7, 0.5))
NUM_POINTS, NUM_RESAMPLES = 1_000, 200


def draw(rng: np.random.Generator) -> tuple[Float64, Int64]:
    """Codes [1000, 6] and factors [1000, 3]."""
    factors = np.stack([rng.integers(size, size=NUM_POINTS) for size in SIZES], axis=1)
    latents = [
        np.where(rng.random(NUM_POINTS) < keep, factors[:, k], rng.integers(size, size=NUM_POINTS))
        for k, (size, keeps) in enumerate(zip(SIZES, KEEP, strict=True))
        for keep in keeps
    ]
    return np.stack(latents, axis=1).astype(np.float64), factors


def share(size: int, keep: float) -> float:
    """I / H of a factor and a latent that keeps its value with probability ``keep``."""
    joint = np.full((size, size), (1.0 - keep) / size**2) + np.eye(size) * keep / size
    return float((joint * np.log(joint * size**2)).sum() / np.log(size))


TRUTH = {
    "MIG": float(np.mean([share(n, a) - share(n, b) for n, (a, b) in zip(SIZES, KEEP, strict=True)])),
    "MCC": float(np.mean([a for a, _ in KEEP])),
}
SCORE: dict[str, Callable[..., Any]] = {"MIG": metrics.mig, "MCC": metrics.mcc}


def intervals(score: Callable[..., Any], codes: Float64, factors: Int64, seed: int) -> Float64:
    """(low, high) of halves, of the bootstrap's percentiles, and of reflected percentiles: [3, 2]."""
    found = metrics.with_uncertainty(score, codes, factors, num_resamples=NUM_RESAMPLES, num_shuffles=1, seed=seed)
    rng = np.random.default_rng(seed)
    picked = (rng.integers(len(codes), size=len(codes)) for _ in range(NUM_RESAMPLES))
    low, high = np.quantile([score(codes[rows], factors[rows]).score for rows in picked], [0.025, 0.975])
    return np.array([found.interval, (low, high), (2 * found.score - high, 2 * found.score - low)])


def main() -> None:
    """Print the share of draws whose interval holds the truth."""
    num_draws = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    for name in sys.argv[2:] or list(SCORE):
        rng = np.random.default_rng(5)
        found = np.stack([intervals(SCORE[name], *draw(rng), i) for i in range(num_draws)])
        covered = ((found[:, :, 0] <= TRUTH[name]) & (TRUTH[name] <= found[:, :, 1])).mean(axis=0)
        shown = ", ".join(
            f"{method} {c:.1%}" for method, c in zip(("halves", "percentiles", "reflected"), covered, strict=True)
        )
        print(f"{name}, truth {TRUTH[name]:.4f}, {num_draws} draws: {shown}", flush=True)


if __name__ == "__main__":
    main()
