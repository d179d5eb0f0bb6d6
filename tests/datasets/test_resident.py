"""Images kept on a device equal those of the data set, and a step transfers only indices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from datasets import resident
from datasets.arrays import ArrayDataset, Dataset
from datasets.batches import Batches
from datasets.dsprites import DSprites
from datasets.loader import Loader
from datasets.views import Views

CPU = torch.device("cpu")
RANDOM = np.random.default_rng(0)


def arrays(**options: Any) -> ArrayDataset:
    """16 of 20 images, not in order."""
    array = RANDOM.integers(0, 256, (20, 3, 4, 6), dtype=np.uint8)
    return ArrayDataset(name="drawn", array=array, rows=RANDOM.permutation(20)[:16], recipe={}, **options)


def packed() -> DSprites:
    grid = RANDOM.integers(0, 256, (20, 512), dtype=np.uint8)
    return DSprites(name="packed", grid=grid, rows=RANDOM.permutation(20)[:16], recipe={})


SETS = {
    "bytes": arrays(),
    "five bits": arrays(num_bits=5),
    "mirrored": arrays(views=Views(hflip=True)),
    "mirrored, five bits": arrays(views=Views(hflip=True), num_bits=5),
    "packed": packed(),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("block", [1, 2**26], ids=["image by image", "at once"])
def test_batches_are_those_of_the_host(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident, "_BLOCK", block)
    data: Dataset = SETS[name]
    kept = resident.to_device(data, CPU)
    size = resident.nbytes(data)
    assert size == kept.stored.numel() == kept.stored.untyped_storage().nbytes()
    order = Batches(16, 4, seed=1)
    with Loader(data, order, num_steps=8) as host, Loader(data, order, num_steps=8, resident=kept) as device:
        for wanted, got in zip(host, device, strict=True):
            assert torch.equal(got.on(CPU), wanted.on(CPU))
            assert got.on(CPU).dtype == torch.uint8
            assert got.stored.tolist() == wanted.indices.tolist(), "indices, no pixels"


def test_the_data_set_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    data = arrays()
    kept = resident.to_device(data, CPU)

    def read(*_: object, **__: object) -> None:
        raise AssertionError("read from the host")

    monkeypatch.setattr(ArrayDataset, "images", read)
    with Loader(data, Batches(16, 4), num_steps=2, resident=kept) as batches:
        assert [batch.on(CPU).shape for batch in batches] == [(4, 3, 4, 6)] * 2


def test_pixels_that_are_drawn_are_kept_nowhere() -> None:
    data = replace(arrays(), views=Views(binarise=True))
    assert resident.nbytes(data) is None
    with pytest.raises(ValueError, match="draws its pixels anew"):
        resident.to_device(data, CPU)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SETS)
def test_on_a_gpu(name: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    data, gpu = SETS[name], torch.device("cuda")
    kept = resident.to_device(data, gpu)
    with Loader(data, Batches(16, 4), num_steps=8, pin_memory=True, resident=kept) as batches:
        for batch in batches:
            on_gpu = batch.on(gpu)
            assert on_gpu.is_cuda
            wanted = data.images(batch.indices, draw=batch.epoch)
            assert torch.equal(on_gpu.cpu(), wanted)
            assert torch.equal(batch.images, wanted)
