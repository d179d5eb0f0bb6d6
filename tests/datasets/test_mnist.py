"""MNIST from small files of the official format."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from datasets.spec import DataError


@pytest.fixture
def mnist_root(tmp_path: Path) -> Path:
    """torchvision's layout: 30 training and 10 test images."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 30), ("t10k", 10)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 2049, count) + bytes(count))
    return tmp_path


def test_mnist_splits_and_grey_levels(mnist_root: Path) -> None:
    splits = {
        name: datasets.open_dataset("mnist", mnist_root, name, num_valid=8, binarise=False) for name in datasets.SPLITS
    }
    assert {name: len(data) for name, data in splits.items()} == {"train": 22, "valid": 8, "test": 10}
    stored = (mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte").read_bytes()[16:]
    both = torch.cat([splits["train"].images(range(22)), splits["valid"].images(range(8))])
    np.testing.assert_array_equal(both.numpy().ravel(), np.frombuffer(stored, np.uint8))
    spec = splits["train"].spec
    assert (spec.channels, spec.height, spec.width, spec.num_bits) == (1, 28, 28, 8)


def test_mnist_is_binarised_anew_in_every_draw(mnist_root: Path) -> None:
    grey = datasets.open_dataset("mnist", mnist_root, num_valid=8, binarise=False).images(range(22)).double() / 255
    data = datasets.open_dataset("mnist", mnist_root, num_valid=8, seed=5)
    assert data.spec.num_bits == 1
    draws = torch.stack([data.images(range(22), draw=draw) for draw in range(100)]).double()
    assert draws.unique().tolist() == [0, 1]
    z = (draws.mean(0) - grey) / (grey * (1 - grey) / 100 + 1e-4).sqrt()
    assert z.abs().max() < 6
    assert abs(float(z.mean())) < 0.05
    assert torch.equal(data.images([3, 4], draw=9), draws[9, 3:5].to(torch.uint8))


def test_without_a_valid_split_training_has_all(mnist_root: Path) -> None:
    assert len(datasets.open_dataset("mnist", mnist_root, num_valid=0)) == 30
    with pytest.raises(DataError, match="num_valid 0 leaves no images"):
        datasets.open_dataset("mnist", mnist_root, "valid", num_valid=0)
    with pytest.raises(DataError, match="30 training images"):
        datasets.open_dataset("mnist", mnist_root, num_valid=30)
    assert len(datasets.open_dataset("mnist", mnist_root)) == 30  # as published models are trained


def test_absent_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no mnist in .*--download.*, or put"):
        datasets.open_dataset("mnist", tmp_path)


@pytest.mark.parametrize("length", [0, 3, 15, 17, 16 + 28 * 28 * 30 - 1])
def test_files_cut_short_are_refused(length: int, mnist_root: Path) -> None:
    """In torchvision's reader, these files cause an AssertionError or a KeyError."""
    path = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match="download"):
        datasets.open_dataset("mnist", mnist_root, num_valid=8)


def test_images_of_another_size_are_refused(mnist_root: Path) -> None:
    path = mnist_root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 2051, 30, 14, 56) + path.read_bytes()[16:])
    with pytest.raises(DataError, match=r"are \(30, 14, 56\), not \(N, 28, 28\); download them again"):
        datasets.open_dataset("mnist", mnist_root, num_valid=8)


@pytest.mark.parametrize("folder", ["", "raw", "MNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_files_are_found_packed_or_not_where_people_keep_them(mnist_root: Path, folder: str, packed: bool) -> None:
    expected = datasets.open_dataset("mnist", mnist_root, "test").images(range(10))
    for path in (mnist_root / "MNIST" / "raw").iterdir():
        target = mnist_root / "other" / folder / (f"{path.name}.gz" if packed else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress(path.read_bytes()) if packed else path.read_bytes())
    assert torch.equal(datasets.open_dataset("mnist", mnist_root / "other", "test").images(range(10)), expected)


def test_a_packed_file_that_would_fill_all_memory_is_refused(mnist_root: Path) -> None:
    path = mnist_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    path.write_bytes(gzip.compress(bytes(2**27), 9))
    with pytest.raises(DataError, match="t10k"):
        datasets.open_dataset("mnist", mnist_root, "test")


def test_binarised_pixels_have_one_bit(mnist_root: Path) -> None:
    with pytest.raises(DataError, match="binarised pixels have one bit"):
        datasets.open_dataset("mnist", mnist_root, num_bits=4)
    assert datasets.open_dataset("mnist", mnist_root, num_bits=1).spec.num_bits == 1
    assert datasets.open_dataset("mnist", mnist_root, num_bits=4, binarise=False).spec.num_bits == 4
