"""Batches: disjoint over ranks, complete over an epoch, a function of the step alone."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.batches import Batches
from datasets.spec import DataError


def test_an_epoch_visits_every_image_once_but_the_left_over_ones() -> None:
    batches = Batches(23, 4, seed=1)
    assert batches.steps_per_epoch == 5
    for epoch in range(3):
        seen = [batches.indices(step) for step in range(5 * epoch, 5 * epoch + 5)]
        assert {e for e, _ in seen} == {epoch}
        assert len(np.unique(np.concatenate([indices for _, indices in seen]))) == 20


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_any_number_of_ranks_sees_the_same_images_in_one_forward_pass(world_size: int) -> None:
    single = Batches(50, 24, seed=4)
    ranks = [Batches(50, 24, 4, rank, world_size, accumulation=2) for rank in range(world_size)]
    for step in range(3):
        halves = single.indices(step)[1].reshape(2, -1)
        parts = [rank.indices(step)[1].reshape(2, -1) for rank in ranks]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), halves)
    with pytest.raises(DataError, match="does not divide among 1 processes in 5 parts each"):
        Batches(50, 24, accumulation=5)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_any_number_of_ranks_sees_the_same_global_batches(world_size: int) -> None:
    single = Batches(50, 12, seed=4)
    ranks = [Batches(50, 12, seed=4, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(9):
        epoch, whole = single.indices(step)
        parts = [rank.indices(step) for rank in ranks]
        assert {e for e, _ in parts} == {epoch}
        np.testing.assert_array_equal(np.concatenate([indices for _, indices in parts]), whole)
        assert all(len(indices) == ranks[0].local_batch_size == 12 // world_size for _, indices in parts)


def test_order_is_fixed_by_seed_and_epoch_and_resumes_anywhere() -> None:
    first, again = Batches(100, 10, seed=3), Batches(100, 10, seed=3)
    np.testing.assert_array_equal(again.indices(37)[1], [first.indices(step) for step in range(38)][37][1])
    assert not np.array_equal(first.order(0), first.order(1))
    assert not np.array_equal(first.order(0), Batches(100, 10, seed=4).order(0))
    # Known answer: a change of the order would break the resumption of runs that exist.
    assert Batches(8, 2, seed=0).order(0).tolist() == [3, 0, 5, 4, 6, 2, 1, 7]


def test_without_shuffling_the_order_is_the_files() -> None:
    assert Batches(7, 3, shuffle=False).indices(3)[1].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_images": 10, "batch_size": 16}, ["16", "10", "10 or less"]),
        ({"num_images": 10, "batch_size": 5, "world_size": 2}, ["5", "2", "multiple"]),
        ({"num_images": 10, "batch_size": 0}, ["0", "1 or more"]),
    ],
)
def test_impossible_batches_are_refused(arguments: dict[str, int], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        Batches(**arguments)
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


def test_impossible_ranks_and_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="rank is 2"):
        Batches(10, 2, rank=2, world_size=2)
    with pytest.raises(ValueError, match="step is -1"):
        Batches(10, 2).indices(-1)
