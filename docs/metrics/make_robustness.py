"""Write into index.md how each score reacts to known changes of a perfect code: `python docs/metrics/make_robustness.py`.

2,000 draws of dSprites' factors. perfect: z_k = v_k in [-1, 1]. Then: rotated by a random orthogonal matrix; every
latent twice; warped by exp(2 z); one row of 2,000 multiplied by 1e4; ten latents of noise added; noise alone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import metrics  # noqa: E402
from metrics.arrays import Float64, Int64  # noqa: E402

SIZES = np.array([3, 6, 40, 32, 32])
NUM_POINTS = 2_000

SCORES: dict[str, Callable[[Float64, Int64], float]] = {
    "MIG": lambda c, f: metrics.mig(c, f).relative,
    "MIG, quantile bins": lambda c, f: metrics.mig(c, f, binning="quantile").relative,
    "MIG-sup": lambda c, f: metrics.mig_sup(c, f).score,
    "JEMMIG": lambda c, f: metrics.jemmig(c, f).score,
    "MED": lambda c, f: metrics.med(c, f).score,
    "modularity": lambda c, f: metrics.modularity(c, f).score,
    "SAP, R2": lambda c, f: metrics.sap(c, f, kind="r2").score,
    "DCI, lasso": lambda c, f: metrics.dci(c[::2], f[::2], c[1::2], f[1::2], seed=0, regressor="lasso").score,
    "InfoM": lambda c, f: metrics.infomec(c, f).modularity,
    "InfoC": lambda c, f: metrics.infomec(c, f).compactness,
    "InfoE": lambda c, f: metrics.infomec(c, f).explicitness,
    "IRS": lambda c, f: metrics.irs(c, f, num_shuffles=0).score,
    "MCC": lambda c, f: metrics.mcc(c, f).score,
    "MCC of ranks": lambda c, f: metrics.mcc(c, f, correlation="spearman").score,
    "weak MCC": lambda c, f: metrics.mcc(c, f, mapping="linear").score,
    "linear R2": lambda c, f: metrics.linear_r2(c, f).score,
    "CCA": lambda c, f: metrics.cca(c, f).score,
    "E of DCI-ES": lambda c, f: metrics.dci_es(c, f).score,
}


def codes(values: Float64, rng: np.random.Generator) -> dict[str, Float64]:
    """The perfect code and its changes, by name."""
    outlier = values.copy()
    outlier[0] = 1e4
    return {
        "perfect": values,
        "rotated": values @ np.linalg.qr(rng.normal(size=(5, 5)))[0],
        "twice": np.concatenate([values, values], axis=1),
        "warped": np.exp(2.0 * values),
        "outlier": outlier,
        "+ noise": np.concatenate([values, rng.normal(size=(len(values), 10))], axis=1),
        "noise": rng.normal(size=(len(values), 10)),
    }


def main() -> None:
    """Score every code by every score and replace the table."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(size, size=NUM_POINTS) for size in SIZES], axis=1)
    known = codes(2.0 * factors / (SIZES - 1) - 1.0, rng)
    lines = ["| | " + " | ".join(known) + " |", "|---|" + "--:|" * len(known)]
    for name, score in SCORES.items():
        lines.append(f"| {name} | " + " | ".join(f"{score(code, factors):.2f}" for code in known.values()) + " |")
        print(lines[-1], flush=True)
    table = "<!-- robustness -->\n" + "\n".join(lines) + "\n<!-- end -->"
    path = HERE / "index.md"
    path.write_text(re.sub(r"<!-- robustness -->.*?<!-- end -->", table, path.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
