"""Scores of representations and the meaning both models share: beliefs, likelihoods, the ELBO.

Arrays in, plain values out. Nothing here knows a model, a data set or a file.
"""

from metrics.aggregate_posterior import aggregate_posterior_mig
from metrics.beta_vae import beta_vae_metric
from metrics.dci import dci
from metrics.decomposition import decompose_rate
from metrics.factor_vae import factor_vae_metric
from metrics.frechet import frechet_distance, image_scores, kernel_distance, precision_recall
from metrics.hierarchy import group_information, mic_over_scales, reduced_scores
from metrics.modularity import explicitness, modularity
from metrics.mutual_information import information, mic, mig, mig_full_grid, mig_sup
from metrics.nearest_images import ImageBank, nearest_scores
from metrics.permutation import permutation_baseline
from metrics.reductions import reduce_groups, residual_mean
from metrics.results import to_plain
from metrics.sap import sap
from metrics.unsupervised import (
    covariance_distance,
    gaussian_total_correlation,
    pairwise_information,
    total_correlation,
    udr,
)

__all__ = [
    "ImageBank",
    "aggregate_posterior_mig",
    "beta_vae_metric",
    "covariance_distance",
    "dci",
    "decompose_rate",
    "explicitness",
    "factor_vae_metric",
    "frechet_distance",
    "gaussian_total_correlation",
    "group_information",
    "image_scores",
    "information",
    "kernel_distance",
    "mic",
    "mic_over_scales",
    "mig",
    "mig_full_grid",
    "mig_sup",
    "modularity",
    "nearest_scores",
    "pairwise_information",
    "permutation_baseline",
    "precision_recall",
    "reduce_groups",
    "reduced_scores",
    "residual_mean",
    "sap",
    "to_plain",
    "total_correlation",
    "udr",
]
