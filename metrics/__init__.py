"""Scores of representations, and what all models share: distributions, likelihoods, the ELBO.

Arrays in, plain values out. Nothing here knows a model, a data set or a file. Scores of codes and factors need NumPy,
SciPy and scikit-learn; modules that need PyTorch (``metrics.elbo``, ``metrics.likelihoods``, ``metrics.normal``,
``metrics.inception``) are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from metrics.aggregate_posterior import aggregate_posterior_mig
from metrics.beta_vae import beta_vae_metric, beta_vae_of_rows
from metrics.dci import dci
from metrics.dci_es import dci_es
from metrics.decomposition import decompose_rate
from metrics.explicitness import explicitness
from metrics.factor_vae import factor_vae_metric, factor_vae_of_rows
from metrics.factors import quantile_classes
from metrics.frechet import frechet_distance, kernel_distance, precision_recall
from metrics.hierarchy import group_information, mic_over_scales, reduced_scores
from metrics.histogram import information
from metrics.infomec import infomec
from metrics.irs import irs
from metrics.jemmig import jemmig
from metrics.mcc import mcc
from metrics.med import med
from metrics.modularity import modularity
from metrics.mutual_information import mic, mig, mig_full_grid, mig_sup
from metrics.nearest_images import ImageBank, NearestScores, nearest_scores
from metrics.permutation import permutation_baseline
from metrics.probes import cca, linear_r2, mlp_r2
from metrics.reductions import reduce_groups, residual_mean
from metrics.results import to_plain
from metrics.sap import sap
from metrics.uncertainty import with_uncertainty
from metrics.unsupervised import (
    covariance_distance,
    gaussian_total_correlation,
    pairwise_information,
    total_correlation,
    udr,
)

if TYPE_CHECKING:
    from metrics.inception import image_scores

_NEEDS_TORCH = {"image_scores": "metrics.inception"}
_MODULES_WITH_TORCH = frozenset(
    [
        "decisions",
        "edits",
        "elbo",
        "inception",
        "likelihoods",
        "model",
        "normal",
        "objective",
        "pixel_baseline",
        "pixel_head",
    ]
)


def __getattr__(name: str) -> Any:
    """Import names that need PyTorch on first use (PEP 562)."""
    if name in _MODULES_WITH_TORCH:
        return import_module(f"metrics.{name}")
    if name in _NEEDS_TORCH:
        return getattr(import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module 'metrics' has no attribute {name!r}")


__all__ = [
    "ImageBank",
    "NearestScores",
    "aggregate_posterior_mig",
    "beta_vae_metric",
    "beta_vae_of_rows",
    "cca",
    "covariance_distance",
    "dci",
    "dci_es",
    "decompose_rate",
    "explicitness",
    "factor_vae_metric",
    "factor_vae_of_rows",
    "frechet_distance",
    "gaussian_total_correlation",
    "group_information",
    "image_scores",
    "infomec",
    "information",
    "irs",
    "jemmig",
    "kernel_distance",
    "linear_r2",
    "mcc",
    "med",
    "mic",
    "mic_over_scales",
    "mig",
    "mig_full_grid",
    "mig_sup",
    "mlp_r2",
    "modularity",
    "nearest_scores",
    "pairwise_information",
    "permutation_baseline",
    "precision_recall",
    "quantile_classes",
    "reduce_groups",
    "reduced_scores",
    "residual_mean",
    "sap",
    "to_plain",
    "total_correlation",
    "udr",
    "with_uncertainty",
]
