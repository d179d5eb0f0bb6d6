"""Write what known codes score into the pages of this folder: `python docs/metrics/make_tables.py [PAGE ...]`.

Without names all pages are written, which takes minutes for DCI.

Codes over dSprites' factors, v_k in [-1, 1]: perfect (z_k = v_k), rotated (a random orthogonal matrix of v), noisy
(v_k + .3 noise and five latents of unit noise), redundant (v and -v), dead (ten zeros). Posteriors for the scores that
need variances: .1^2 for informative latents, 1 for the others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

import metrics  # noqa: E402
from metrics.arrays import Float64, Int64  # noqa: E402
from metrics.beta_vae import BetaVAEMetric  # noqa: E402
from metrics.factor_vae import FactorVAEMetric  # noqa: E402

SIZES = np.array([3, 6, 40, 32, 32])
STRIDES = np.array([245_760, 40_960, 1_024, 32, 1])
NUM_TRAIN, NUM_TEST, NUM_POSTERIORS = 10_000, 5_000, 4_000
NUM_TREE_TRAIN, NUM_TREE_TEST, NUM_SLOW = 1_000, 500, 2_000  # for scores that take minutes otherwise


def tables() -> dict[str, Float64]:
    """Codes of every combination of the factors, by name."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.unravel_index(np.arange(SIZES.prod()), tuple(SIZES.tolist())), axis=1)
    v = 2.0 * grid / (SIZES - 1) - 1.0
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    noise = rng.normal(size=(len(v), 10))
    return {
        "perfect": v,
        "rotated": v @ rotation.T,
        "noisy": np.concatenate([v + 0.3 * noise[:, :5], noise[:, 5:]], axis=1),
        "redundant": np.concatenate([v, -v], axis=1),
        "dead": np.zeros((len(v), 10)),
    }


Scorer = Callable[[Float64, Int64], str]
Rows = dict[str, Scorer]  # of a page: name -> score of (table of codes, factors drawn)


def rows(table: Float64, factors: Int64, count: int, start: int = 0) -> tuple[Float64, Int64]:
    """Codes and factors of some of the draws."""
    part = factors[start : start + count]
    return table[part @ STRIDES], part


def beliefs(table: Float64, factors: Int64) -> tuple[Float64, Float64, Int64]:
    """Means, variances and factors of posteriors."""
    means, part = rows(table, factors, NUM_POSTERIORS)
    return means, np.where(table.std(axis=0) > 0, 0.01, 1.0) * np.ones_like(means), part


def train(score: Callable[[Float64, Int64], float], count: int = NUM_TRAIN) -> Scorer:
    """A score of train rows."""
    return lambda table, factors: f"{score(*rows(table, factors, count)):.3f}"


def split(score: Callable[..., float]) -> Scorer:
    """A score of train and test rows."""
    return lambda t, f: f"{score(*rows(t, f, NUM_TRAIN), *rows(t, f, NUM_TEST, NUM_TRAIN)):.3f}"


def posterior(score: Callable[[Float64, Float64, Int64], float]) -> Scorer:
    """A score of posteriors."""
    return lambda table, factors: f"{score(*beliefs(table, factors)):.3f}"


def sampled(metric: Callable[..., BetaVAEMetric | FactorVAEMetric]) -> Scorer:
    """A score that draws from the grid."""
    return lambda table, _: f"{metric(lambda f: table[f @ STRIDES], SIZES, seed=0).score:.3f}"


def parts_of(result: Callable[[Float64, Int64], object], *names: str) -> Rows:
    """A row for each part of one result, computed once for each code."""
    found: dict[int, object] = {}

    def part(name: str, table: Float64, factors: Int64) -> str:
        if id(table) not in found:
            found[id(table)] = result(table, factors)
        return f"{getattr(found[id(table)], name):.3f}"

    return {name: partial(part, name) for name in names}


def trees(table: Float64, factors: Int64) -> object:
    """DCI of fewer rows."""
    train_rows, test_rows = rows(table, factors, NUM_TREE_TRAIN), rows(table, factors, NUM_TREE_TEST, NUM_TRAIN)
    return metrics.dci(*train_rows, *test_rows, seed=0)


def rate(table: Float64, factors: Int64) -> object:
    """Decomposition of the rate."""
    means, variances, _ = beliefs(table, factors)
    return metrics.decompose_rate(means, variances, seed=0, num_draws=500)


INFORMATION: dict[str, Rows] = {
    "mig": {
        "MIG": train(lambda c, f: metrics.mig(c, f).score),
        "MIG / ceiling": train(lambda c, f: metrics.mig(c, f).relative),
    },
    "aggregate_posterior_mig": {
        "aggregate-posterior MIG": posterior(lambda m, v, f: metrics.aggregate_posterior_mig(m, v, f).score)
    },
    "mig_sup": {"MIG-sup": train(lambda c, f: metrics.mig_sup(c, f).score)},
    "mic": {
        "MIC of latents 0 to 2, raw": train(lambda c, f: metrics.mic(c, f, [0, 1, 2]).score),
        "corrected": train(lambda c, f: float(metrics.mic(c, f, [0, 1, 2]).corrected.mean())),
    },
    "jemmig": {
        "JEMMIG": train(lambda c, f: metrics.jemmig(c, f).score),
        "raw, nats (lower is better)": train(lambda c, f: metrics.jemmig(c, f).nats),
    },
    "med": {
        "disentanglement": train(lambda c, f: metrics.med(c, f).disentanglement),
        "completeness": train(lambda c, f: metrics.med(c, f).completeness),
    },
    "modularity": {
        "modularity": train(lambda c, f: metrics.modularity(c, f).score),
        "active latents only": train(lambda c, f: metrics.modularity(c, f).active_score),
        "noise level": train(lambda c, f: metrics.modularity(c, f).noise_level),
    },
    "infomec": parts_of(
        lambda t, f: metrics.infomec(*rows(t, f, NUM_SLOW)), "modularity", "explicitness", "compactness"
    ),
}
PREDICTION: dict[str, Rows] = {
    "beta_vae": {"beta-VAE metric": sampled(metrics.beta_vae_metric)},
    "factor_vae": {"FactorVAE metric": sampled(metrics.factor_vae_metric)},
    "sap": {
        "SAP, discrete": split(lambda *a: metrics.sap(*a, kind="discrete").score),
        "SAP, R2": train(lambda c, f: metrics.sap(c, f, kind="r2").score),
    },
    "explicitness": {"explicitness": split(lambda *a: metrics.explicitness(*a).score)},
    "probes": {
        "linear R2": train(lambda c, f: metrics.linear_r2(c, f).score),
        "MLP R2": train(lambda c, f: metrics.mlp_r2(c, f).score, NUM_SLOW),
        "CCA": train(lambda c, f: metrics.cca(c, f).score),
    },
    "dci": parts_of(trees, "disentanglement", "completeness", "informativeness"),
    "dci_es": {
        "explicitness": train(lambda c, f: metrics.dci_es(c, f).explicitness),
        "size": train(lambda c, f: metrics.dci_es(c, f).size),
    },
}
MOMENTS: dict[str, Rows] = {
    "mcc": {
        "MCC": train(lambda c, f: metrics.mcc(c, f).score),
        "of ranks": train(lambda c, f: metrics.mcc(c, f, correlation="spearman").score),
        "weak, linear": train(lambda c, f: metrics.mcc(c, f, mapping="linear").score),
        "weak, CCA": train(lambda c, f: metrics.mcc(c, f, mapping="cca").score),
    },
    "irs": {
        "IRS": train(lambda c, f: metrics.irs(c, f).score),
        "noise level": train(lambda c, f: metrics.irs(c, f).noise_level),
        "at quantile .99": train(lambda c, f: metrics.irs(c, f, quantile=0.99).score),
        "its noise level": train(lambda c, f: metrics.irs(c, f, quantile=0.99).noise_level),
    },
    "unsupervised": {
        "Gaussian total correlation": train(lambda c, _: metrics.gaussian_total_correlation(c)),
        "mean pairwise information": train(lambda c, _: metrics.pairwise_information(c).score),
    },
    "covariance_distance": {
        "covariance distance": posterior(lambda m, v, _: metrics.covariance_distance(m, v).score),
        "/ sqrt(D)": posterior(lambda m, v, _: metrics.covariance_distance(m, v).per_sqrt_dim),
        "off-diagonal": posterior(lambda m, v, _: metrics.covariance_distance(m, v).offdiagonal),
    },
    "decomposition": parts_of(rate, "rate", "index_code_information", "total_correlation", "dimension_wise_kl"),
}


def main() -> None:
    """Score every code for every page and replace the page's table."""
    codes, rng = tables(), np.random.default_rng(1)
    factors = np.stack([rng.integers(size, size=NUM_TRAIN + NUM_TEST) for size in SIZES], axis=1)
    for page, page_rows in (INFORMATION | PREDICTION | MOMENTS).items():
        if sys.argv[1:] and page not in sys.argv[1:]:
            continue
        head = ["| | " + " | ".join(codes) + " |", "|---|" + "--:|" * len(codes)]
        body = [
            f"| {name.replace('_', ' ')} | " + " | ".join(score(table, factors) for table in codes.values()) + " |"
            for name, score in page_rows.items()
        ]
        path = HERE / f"{page}.md"
        table = "<!-- table -->\n" + "\n".join(head + body) + "\n<!-- end -->"
        path.write_text(re.sub(r"<!-- table -->.*?<!-- end -->", table, path.read_text(), flags=re.DOTALL))
        print(f"{path.name}\n" + "\n".join(head + body), flush=True)


if __name__ == "__main__":
    main()
