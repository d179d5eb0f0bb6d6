"""Some images of a split: chosen rows, the data set of those rows, single images, and images as floats."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import datasets
from datasets import ImageSpec, Subset, choose_rows, to_float
from datasets.spec import DataError


@given(
    num_images=st.integers(0, 300), count=st.none() | st.integers(1, 400), seed=st.none() | st.integers(0, 2**31 - 1)
)
def test_rows_are_ascending_distinct_and_as_many_as_asked_for(
    num_images: int, count: int | None, seed: int | None
) -> None:
    rows = choose_rows(num_images, count, seed=seed)
    assert rows.dtype == np.int64
    assert len(rows) == (num_images if count is None else min(count, num_images))
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < num_images)
    np.testing.assert_array_equal(rows, choose_rows(num_images, count, seed=seed))


def test_rows_spread_evenly_without_a_seed_and_vary_with_one() -> None:
    assert choose_rows(10, 4).tolist() == [0, 2, 5, 7]
    assert set(np.diff(choose_rows(36_570, 1_000))) == {36, 37}
    assert choose_rows(100, 5, seed=0).tolist() != choose_rows(100, 5, seed=1).tolist()
    with pytest.raises(DataError, match="0"):
        choose_rows(10, 0)


def test_a_subset_is_a_data_set(celeba_root: Path) -> None:
    whole = datasets.open_dataset("celeba", celeba_root, "train", size=16, hflip=True)
    data = Subset(whole, np.array([5, 2, 11]))
    assert (data.name, data.spec, data.factor_names, data.factor_sizes) == (
        *(whole.name, whole.spec, whole.factor_names),
        whole.factor_sizes,
    )
    assert len(data) == 3
    for draw in (0, 1):  # mirrored as the images of the whole are
        assert torch.equal(data.images([2, 0], draw), whole.images([11, 5], draw))
    assert torch.equal(data.factors([1]), whole.factors([2]))
    assert data.recipe["count"] == 3
    assert data.recipe != Subset(whole, np.array([5, 2, 10])).recipe
    assert datasets.Loader(data, datasets.Batches(3, 3), num_steps=1).__iter__().__next__().images.shape[0] == 3
    for rows in ([16], [-1]):
        with pytest.raises(IndexError, match=f"{rows[0]}.*16"):
            Subset(whole, np.array(rows))
    with pytest.raises(IndexError, match="3"):
        data.images([3])


def test_single_images_and_torch_loaders(celeba_root: Path) -> None:
    data = datasets.open_dataset("celeba", celeba_root, "valid", size=16)
    assert torch.equal(data[0], data.images([0])[0])
    assert torch.equal(data[-1], data.images([len(data) - 1])[0])
    assert len(list(Subset(data, np.array([1])))) == 1  # a loop over a data set ends
    with pytest.raises(IndexError, match="2 images"):
        data[2]
    (batch,) = DataLoader(data, batch_size=2)  # type: ignore[arg-type]
    assert torch.equal(batch, data.images([0, 1]))


@pytest.mark.parametrize("num_bits", [1, 5, 8])
def test_levels_become_floats_in_the_unit_interval(num_bits: int) -> None:
    spec = ImageSpec(channels=1, height=1, width=2, num_bits=num_bits)
    levels = torch.tensor([[[[0, spec.max_value]]]], dtype=torch.uint8)
    x = to_float(levels, spec)
    assert x.dtype == torch.float32
    assert x.flatten().tolist() == [0.0, 1.0]
    assert torch.equal(to_float(levels, spec, "cpu"), x)
    assert levels.max() == spec.max_value  # the input is left alone
