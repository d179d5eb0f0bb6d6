"""Nearest images of a finite data set: exact against brute force, and scores whose answers are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import metrics
from datasets import dsprites
from metrics.nearest_images import NearestImages

SIZES = (3, 6, 4, 4)


def small_grid() -> tuple[np.ndarray, np.ndarray]:
    """288 sprites of every shape and scale at 4 x 4 places, [288, 64, 64], and their classes without orientation."""
    classes = np.stack(np.unravel_index(np.arange(288), SIZES), axis=1)
    full = np.column_stack([classes[:, :2], np.zeros(288, np.int64), 10 * classes[:, 2:]])
    return np.asarray(dsprites.render(full)), classes


IMAGES, CLASSES = small_grid()
BANK = metrics.ImageBank(np.packbits(IMAGES.reshape(288, -1), axis=1))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_the_search_equals_brute_force(seed: int, num_flipped: int) -> None:
    rng = np.random.default_rng(seed)
    query = IMAGES[rng.integers(288)].copy().reshape(-1)
    query[rng.choice(4096, num_flipped, replace=False)] ^= 1
    found = BANK.nearest(query[None])
    distances = (IMAGES.reshape(288, -1) != query).sum(axis=1)
    assert found.distance[0] == distances.min() == distances[found.index[0]]


def test_images_of_the_bank_are_their_own_nearest() -> None:
    found = BANK.nearest(IMAGES[:, None].astype(np.float32))
    assert np.array_equal(found.index, np.arange(288))
    scores = metrics.nearest_scores(found, CLASSES[found.index], SIZES)
    assert scores.score == 1.0
    assert scores.precision == (1.0,) * len(scores.distances)
    assert scores.median_distance == 0.0
    assert scores.coverage == (1.0,) * 4
    assert np.allclose(scores.value_shares[0], 1 / 3)
    assert scores.notes == ()


def test_samples_that_are_no_sprites_score_nothing() -> None:
    noise = (np.random.default_rng(0).random((20, 64, 64)) < 0.5).astype(np.uint8)
    found = BANK.nearest(noise)
    scores = metrics.nearest_scores(found, CLASSES[found.index], SIZES)
    assert scores.score == 0.0
    assert scores.coverage == (0.0,) * 4
    assert scores.median_distance > 1_000
    assert "0 samples" in scores.notes[0]


def test_a_collapsed_model_is_precise_and_covers_one_value_of_each_factor() -> None:
    found = BANK.nearest(np.repeat(IMAGES[100:101], 50, axis=0))
    scores = metrics.nearest_scores(found, CLASSES[found.index], SIZES)
    assert scores.score == 1.0
    assert scores.coverage == pytest.approx([1 / size for size in SIZES])


def test_precision_counts_samples_at_each_distance() -> None:
    nearest = NearestImages(np.arange(4), np.array([0, 5, 20, 21]))
    scores = metrics.nearest_scores(nearest, CLASSES[:4], SIZES, distances=(0, 5, 20))
    assert scores.precision == (0.25, 0.5, 0.75)
    assert scores.score == 0.75
    assert scores.within == 20
    assert metrics.nearest_scores(nearest, CLASSES[:4], SIZES, within=4).score == 0.25


@pytest.mark.parametrize(
    ("packed", "named"),
    [
        (np.zeros((0, 512), np.uint8), r"\(0, 512\)"),
        (np.zeros((4, 4096), np.float32), "float32"),
        (np.zeros((4, 10), np.uint8), "multiple of 8"),
    ],
)
def test_a_bank_refuses_what_is_not_packed(packed: np.ndarray, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        metrics.ImageBank(packed)


def test_images_and_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="1024"):
        BANK.nearest(np.zeros((2, 32, 32)))
    with pytest.raises(ValueError, match="round"):
        BANK.nearest(np.full((2, 64, 64), 0.5))
    nearest = NearestImages(np.arange(4), np.zeros(4, np.int64))
    with pytest.raises(ValueError, match=r"\(5, 4\)"):
        metrics.nearest_scores(nearest, CLASSES[:5], SIZES)
    with pytest.raises(ValueError, match="factor_sizes"):
        metrics.nearest_scores(nearest, CLASSES[:4] + 9, SIZES)
    with pytest.raises(ValueError, match="within=-1"):
        metrics.nearest_scores(nearest, CLASSES[:4], SIZES, within=-1)
