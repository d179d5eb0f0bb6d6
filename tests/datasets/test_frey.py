"""Frey Faces: blocks of the video that do not touch, and the public file's layout."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

import datasets
from datasets.frey import FILE_NAME, split_frames
from datasets.spec import DataError


@pytest.fixture
def frey_root(tmp_path: Path) -> Path:
    """The layout with drawn frames: pixel p of frame t is (3 t + p) mod 256."""
    pixels = (3 * np.arange(1965)[None] + np.arange(560)[:, None]) % 256
    scipy.io.savemat(tmp_path / FILE_NAME, {"ff": pixels.astype(np.uint8), "other": np.zeros(3)})
    return tmp_path


def test_blocks_are_apart_and_every_frame_has_its_place() -> None:
    frames = {name: split_frames(name) for name in datasets.SPLITS}
    assert {name: len(rows) for name, rows in frames.items()} == {"train": 1415, "valid": 200, "test": 200}
    for one, other in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert np.abs(frames[one][:, None] - frames[other][None]).min() == 11  # ten frames between any two blocks
    assert split_frames("all").tolist() == list(range(1965))


def test_a_column_of_the_file_is_an_upright_frame(frey_root: Path) -> None:
    data = datasets.open_dataset("frey", frey_root, "valid")
    frame = int(split_frames("valid")[40])
    expected = (3 * frame + torch.arange(560)).remainder(256).reshape(1, 28, 20)
    assert torch.equal(data.images([40])[0].long(), expected)
    assert (data.spec.channels, data.spec.height, data.spec.width) == (1, 28, 20)
    five = datasets.open_dataset("frey", frey_root, "valid", num_bits=5)
    assert torch.equal(five.images([40])[0].long(), expected // 8)


def test_wrong_files_are_refused(frey_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not those of the public file"):
        datasets.open_dataset("frey", frey_root, verify=True)
    scipy.io.savemat(tmp_path / FILE_NAME, {"ff": np.zeros((560, 3), np.uint8)})
    with pytest.raises(DataError, match=r"ff is uint8 \(560, 3\)"):
        datasets.open_dataset("frey", tmp_path)
    for content in (b"", b"<html>Not found</html>", (tmp_path / FILE_NAME).read_bytes()[:600]):
        (tmp_path / FILE_NAME).write_bytes(content)
        with pytest.raises(DataError, match="is not the Frey Faces file"):
            datasets.open_dataset("frey", tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(DataError, match=r"no frey_rawface\.mat in .*; put it there"):
        datasets.open_dataset("frey", tmp_path)


def test_the_real_video(shared: Path) -> None:
    data = datasets.open_dataset("frey", shared / "data" / "frey", "train", verify=True)
    assert len(data) == 1415
    assert 100 < data.images(range(1415)).double().mean() < 200


def test_damaged_files_neither_crash_nor_take_memory(frey_root: Path) -> None:
    """scipy's reader ended the process for one in 400 of these."""
    raw = (frey_root / FILE_NAME).read_bytes()
    chance = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(raw)
        for at in chance.integers(124, 300, 3):
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF])
        (frey_root / FILE_NAME).write_bytes(data)
        with contextlib.suppress(DataError):
            assert len(datasets.open_dataset("frey", frey_root, "all")) == 1965
