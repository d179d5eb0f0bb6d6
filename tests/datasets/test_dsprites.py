"""dSprites: the rendered grid against published numbers, official images and a slow polygon renderer."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
from datasets import dsprites
from datasets.dsprites import FACTOR_SIZES, FILE_NAME, NUM_IMAGES, DSprites, render, split_rows
from datasets.spec import DataError


def polygon_twin(shape: int, scale: int, orientation: int, pos_x: int, pos_y: int) -> list[tuple[int, int]]:
    """Vertices in 1/256 px, in plain Python."""
    r, points = 9.6, []
    if shape == 0:
        points = [(-r, -r), (r, -r), (r, r), (-r, r)]
    for k in range({0: 0, 1: 100, 2: 150}[shape]):
        t = 2 * math.pi * k / (100 if shape == 1 else 150)
        if shape == 1:
            points.append((1.33 * r * math.cos(t), r / 1.33 * math.sin(t)))
        else:
            wave = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((r * math.sin(t) ** 3, -2 * r / 29 * wave - 0.15 * r))
    s, o = 0.5 + 0.1 * scale, 2 * math.pi / 39 * orientation
    cx, cy = 16 + 32 * pos_x / 31, 16 + 32 * pos_y / 31
    turned = [
        (cx + s * (math.cos(o) * u + math.sin(o) * v), cy + s * (-math.sin(o) * u + math.cos(o) * v)) for u, v in points
    ]
    return [(round(256 * x), round(256 * y)) for x, y in turned]


def image_twin(classes: list[int]) -> np.ndarray:
    """Even-odd rule at every pixel's centre, in exact integers: count the edges that are not to its right."""
    points = polygon_twin(*classes)
    image = np.zeros((64, 64), np.uint8)
    for row in range(64):
        for column in range(64):
            cx, cy, inside = 256 * column + 128, 256 * row + 128, False
            for (x, y), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
                if (y < cy) != (y2 < cy):
                    side = (cx - x) * (y2 - y) - (cy - y) * (x2 - x)
                    inside ^= (side >= 0) if y2 > y else (side <= 0)
            image[row, column] = inside
    return image


@pytest.mark.parametrize(
    "classes", [[0, 0, 0, 0, 0], [0, 5, 5, 31, 0], [1, 3, 7, 12, 30], [2, 5, 0, 16, 16], [2, 2, 21, 5, 9]]
)
def test_drawing_equals_a_slow_one(classes: list[int]) -> None:
    np.testing.assert_array_equal(render([classes])[0], image_twin(classes))


def test_render_takes_any_order_and_repeats() -> None:
    classes = np.stack([np.random.default_rng(0).integers(0, size, 50) for size in FACTOR_SIZES], axis=1)
    drawn = render(np.concatenate([classes, classes[::-1]]))
    np.testing.assert_array_equal(drawn[:50], drawn[50:][::-1])
    np.testing.assert_array_equal(drawn[7], render(classes[7:8])[0])
    assert drawn.dtype == np.uint8
    assert render(np.zeros((0, 5), int)).shape == (0, 64, 64)


@pytest.mark.parametrize(
    ("classes", "why"),
    [([[0, 0, 0, 0]], "shape"), ([[0, 6, 0, 0, 0]], "no scale class 6; choose 0 to 5"), ([[0.5] * 5], "integers")],
)
def test_render_refuses_other_classes(classes: list[list[int]], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        render(classes)


def test_genuine_images(shared: Path) -> None:
    with np.load(shared / "golden" / "dsprites" / "real_samples.npz", allow_pickle=False) as genuine:
        assert int((render(genuine["latents_classes"][:, 1:]) != genuine["imgs"]).sum()) == 0


def test_the_whole_grid_has_the_known_checksums(dsprites_root: Path) -> None:
    data = datasets.open_dataset("dsprites", dsprites_root, "all", verify=True)
    assert isinstance(data, DSprites)
    assert data.grid.shape == (NUM_IMAGES, 512)
    packed = hashlib.sha256(data.grid.data).hexdigest()
    assert packed == "3a228f4037ef3d42a42588e0e01f1078aa2df13cfa17584e88c95ed9fb5672da"
    unpacked, white = hashlib.sha256(), 0
    for start in range(0, NUM_IMAGES, 16_384):
        images = data.images(range(start, min(start + 16_384, NUM_IMAGES))).numpy()
        unpacked.update(images.data)
        white += np.count_nonzero(images)
    assert unpacked.hexdigest() == "2c612e5234d21c2b576c375ebe1faa1b363ab97d340164c5d2dcf27f35dd5eb6"
    assert white == 128_328_864
    assert data.recipe["sha256"] == packed


def test_rendered_is_never_called_official(dsprites_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        data = datasets.open_dataset("dsprites", dsprites_root, "valid")
    assert data.name == "dsprites (rendered)"
    assert data.recipe["source"] == "rendered"
    assert "using rendered images" in caplog.text
    with pytest.raises(DataError, match="or use source rendered"):
        datasets.open_dataset("dsprites", dsprites_root, source="official")
    with pytest.raises(DataError, match="choose auto, official or rendered"):
        datasets.open_dataset("dsprites", dsprites_root, source="drawn")


def test_images_and_factors_belong_together(dsprites_root: Path) -> None:
    data = datasets.open_dataset("dsprites", dsprites_root, "test")
    assert isinstance(data, DSprites)
    some = np.arange(0, len(data), 397)
    images, factors = data.images(some), data.factors(some)
    assert images.shape == (len(some), 1, 64, 64)
    assert images.dtype == torch.uint8
    assert factors.dtype == torch.int64
    np.testing.assert_array_equal(images[:, 0], render(factors))
    np.testing.assert_array_equal(np.unpackbits(data.grid[data.rows[some]], axis=1), images.flatten(1))
    np.testing.assert_array_equal(np.ravel_multi_index(tuple(factors.numpy().T), FACTOR_SIZES), data.rows[some])
    assert data.factor_names == ("shape", "scale", "orientation", "posX", "posY")
    assert data.spec.num_bits == 1


def test_splits_are_disjoint_and_keep_equal_images_together() -> None:
    rows = {name: split_rows(name) for name in datasets.SPLITS}
    assert sum(len(part) for part in rows.values()) == len(np.unique(np.concatenate(list(rows.values())))) == NUM_IMAGES
    shares = [len(rows[name]) / NUM_IMAGES for name in datasets.SPLITS]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.002)
    role = np.empty(NUM_IMAGES, int)
    for number, part in enumerate(rows.values()):
        role[part] = number
    by_orientation = role.reshape(3, 6, 40, 32, 32)
    np.testing.assert_array_equal(by_orientation[:, :, 39], by_orientation[:, :, 0])


def make_official(path: Path, monkeypatch: pytest.MonkeyPatch, shift: int = 0) -> np.ndarray:
    """A small file of the official layout (the first two shapes' worth of positions), taken for the real one."""
    count = 2048
    classes = np.stack(np.unravel_index((np.arange(count) + shift) % count, FACTOR_SIZES), axis=1)
    images = render(classes)
    metadata = np.array({"title": "pickled, and not to be read"}, dtype=object)
    coloured = np.concatenate([np.zeros((count, 1), int), classes], axis=1)
    np.savez_compressed(path, imgs=images, latents_classes=coloured, metadata=metadata, allow_pickle=True)
    data = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    monkeypatch.setattr(dsprites, "BLOB_ID", blob)
    monkeypatch.setattr(dsprites, "NUM_IMAGES", count)
    return images


def test_the_official_file_is_packed_without_unpickling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = make_official(tmp_path / FILE_NAME, monkeypatch)
    data = datasets.open_dataset("dsprites", tmp_path, "all")
    assert data.name == "dsprites (official)"
    assert data.recipe["source"] == "official"
    np.testing.assert_array_equal(data.images(range(2048))[:, 0], images)


def test_another_file_is_not_taken_for_the_official_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_official(tmp_path / FILE_NAME, monkeypatch, shift=1)
    with pytest.raises(DataError, match="not in official order"):
        datasets.open_dataset("dsprites", tmp_path, "all")
    content = bytearray((tmp_path / FILE_NAME).read_bytes())
    content[1000] ^= 1
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(DataError, match="is not the official dSprites file"):
        datasets.open_dataset("dsprites", tmp_path, "all")
