"""The loader that reads ahead: order, resumption, errors, and shutdown."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch

from datasets.arrays import ArrayDataset
from datasets.batches import Batches
from datasets.loader import Loader
from datasets.views import Views


def make_dataset(num: int = 12, **options: Any) -> ArrayDataset:
    array = np.random.default_rng(0).integers(0, 256, (num, 3, 4, 6), dtype=np.uint8)
    return ArrayDataset(name="drawn", array=array, rows=np.arange(num), recipe={}, **options)


def test_batches_come_in_order_with_the_images_of_their_epoch() -> None:
    dataset, batches = make_dataset(views=Views(hflip=True)), Batches(12, 4, seed=0)
    with Loader(dataset, batches, num_steps=7) as loader:
        got = list(loader)
    assert [batch.step for batch in got] == list(range(7))
    for batch in got:
        expected_epoch, expected = batches.indices(batch.step)
        assert batch.epoch == expected_epoch == batch.step // 3
        np.testing.assert_array_equal(batch.indices, expected)
        assert torch.equal(batch.images, dataset.images(expected, draw=batch.epoch))


@pytest.mark.parametrize("options", [{}, {"num_bits": 5}])
def test_mirroring_is_left_to_the_device(options: dict[str, Any]) -> None:
    dataset, batches = make_dataset(views=Views(hflip=True), **options), Batches(12, 6, seed=0)
    with Loader(dataset, batches, num_steps=4) as loader:
        got = list(loader)
    for batch in got:
        assert torch.equal(batch.stored, make_dataset(**options).images(batch.indices))
        assert batch.mirrored is not None
        assert torch.equal(batch.on(torch.device("cpu")), dataset.images(batch.indices, draw=batch.epoch))
    assert 0 < sum(int(batch.mirrored.sum()) for batch in got if batch.mirrored is not None) < 24


def test_a_data_set_that_mirrors_by_itself_is_left_alone() -> None:
    class Plain:
        """Images by index, and nothing more."""

        def __len__(self) -> int:
            return 12

        def images(self, indices: Any, draw: int = 0) -> torch.Tensor:
            return make_dataset(views=Views(hflip=True)).images(indices, draw)

    with Loader(Plain(), Batches(12, 6), num_steps=2) as loader:  # type: ignore[arg-type]
        for batch in loader:
            assert batch.mirrored is None
            assert torch.equal(batch.images, Plain().images(batch.indices, batch.epoch))


def test_a_resumed_loader_gives_the_same_pixels() -> None:
    dataset, batches = make_dataset(views=Views(hflip=True)), Batches(12, 4, seed=0)
    with Loader(dataset, batches, num_steps=8) as loader:
        whole = list(loader)
    with Loader(dataset, batches, start_step=5, num_steps=3) as loader:
        rest = list(loader)
    assert [batch.step for batch in rest] == [5, 6, 7]
    assert all(torch.equal(a.images, b.images) for a, b in zip(whole[5:], rest, strict=True))


def test_an_error_in_the_thread_reaches_the_loop() -> None:
    class Broken(ArrayDataset):
        def images(self, indices: Any, draw: int = 0) -> torch.Tensor:
            if draw == 1:
                raise OSError("the disk is gone")
            return super().images(indices, draw)

    dataset = Broken(name="drawn", array=make_dataset().array, rows=np.arange(12), recipe={})
    seen: list[int] = []
    with Loader(dataset, Batches(12, 4)) as loader, pytest.raises(OSError, match="the disk is gone"):
        seen.extend(batch.step for batch in loader)
    assert seen == [0, 1, 2]


def test_closing_ends_the_thread_in_the_middle_of_an_endless_run() -> None:
    before = threading.active_count()
    loader = Loader(make_dataset(), Batches(12, 4), prefetch=1)
    assert next(iter(loader)).step == 0
    loader.close()
    loader.close()
    assert threading.active_count() == before
    assert list(loader) == []


def test_batches_of_another_split_are_refused() -> None:
    with pytest.raises(ValueError, match="batches of 10 images do not fit a data set of 12"):
        Loader(make_dataset(), Batches(10, 2))


def test_images_by_index() -> None:
    dataset = make_dataset(num_bits=5)
    assert dataset.images([]).shape == (0, 3, 4, 6)
    assert torch.equal(dataset.images(torch.tensor([3, 1])), torch.from_numpy(dataset.array[[3, 1]] // 8))
    assert dataset.spec.num_bits == 5
    assert dataset.spec.num_dims == 72
    for bad in ([12], [-1], [[0]], [0.5]):
        with pytest.raises(IndexError):
            dataset.images(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="drawn has no ground-truth factors"):
        dataset.factors([0])


def test_pixels_that_are_drawn_are_mirrored_first() -> None:
    dataset = make_dataset(views=Views(hflip=True, binarise=True))
    with Loader(dataset, Batches(12, 6), num_steps=4) as loader:
        for batch in loader:
            assert batch.mirrored is None
            assert torch.equal(batch.images, dataset.images(batch.indices, draw=batch.epoch))
