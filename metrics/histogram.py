"""Histogram information I(latent; factor) of codes and factors: the basis of MIG and its relatives."""

from __future__ import annotations

from dataclasses import dataclass

from metrics.arrays import Array, Float64
from metrics.discrete import Binning, Bins, Labels, bin_codes, crowded_note, entropy, mutual_information, prepare_labels
from metrics.factors import Pairs, Table, few_points_note, paired


@dataclass(frozen=True, eq=False)
class Histogram:
    """Binned latents, labels, and the information between them.

    Args:
        data: the checked codes and factors.
        binned: [D, N].
        labels: K factors as classes.
        mutual_information: [D, K] in nats.
        entropy: [K], empirical H(v_k) in nats.
    """

    data: Pairs
    binned: Bins
    labels: Labels
    mutual_information: Float64
    entropy: Float64
    notes: tuple[str, ...]


def histogram(codes: Array, factors: Table, bins: int, binning: Binning = "width") -> Histogram:
    """Bin codes [N, D], and continuous factors among [N, K], and count."""
    data = paired(codes, factors)
    classes, notes = data.columns_of_classes(bins)
    labels, binned = prepare_labels(classes), bin_codes(data.codes, bins, binning)
    notes = (
        data.notes + notes + few_points_note(len(data), bins, max(labels.sizes)) + crowded_note(binned, bins, binning)
    )
    return Histogram(data, binned, labels, mutual_information(binned, labels, bins), entropy(labels), notes)


@dataclass(frozen=True, eq=False)
class Information:
    """Histogram information between every latent and every factor.

    Args:
        mutual_information: [D, K] in nats.
        entropy: [K], empirical H(v_k) in nats.
        num_points: N.
        kept: the factors' columns that take more than one value; K counts these.
    """

    mutual_information: Float64
    entropy: Float64
    num_points: int
    kept: tuple[int, ...]
    notes: tuple[str, ...]


def information(codes: Array, factors: Table, *, bins: int = 20, binning: Binning = "width") -> Information:
    """I(d; k) in nats with ``bins`` bins per latent; codes [N, D], factors [N, K]."""
    found = histogram(codes, factors, bins, binning)
    return Information(found.mutual_information, found.entropy, len(found.data), found.data.kept, found.notes)
