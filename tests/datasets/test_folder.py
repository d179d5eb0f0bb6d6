"""Any folder of images: inferred and given shapes, splits, unusual files, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import draw_image
from PIL import Image

import datasets
from datasets.spec import DataError

AddImage = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, add_image: AddImage) -> Path:
    """40 colour images, 12 high and 20 wide, lossless, in two sub-folders."""
    for i in range(40):
        add_image(tmp_path / "mine" / ("a" if i % 2 else "b") / f"{i:02d}.png", seed=i)
    return tmp_path / "mine"


def test_pixels_are_those_of_the_files_in_order_of_their_paths(root: Path) -> None:
    data = datasets.open_dataset("folder", root, "all")
    assert (data.spec.channels, data.spec.height, data.spec.width, data.spec.num_bits) == (3, 12, 20, 8)
    paths = sorted(root.rglob("*.png"), key=lambda path: path.relative_to(root).as_posix())
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            np.testing.assert_array_equal(data.images([index])[0].permute(1, 2, 0), np.asarray(image))
    assert data.factor_names == ()
    again = datasets.open_dataset("folder", root, "all", num_bits=3)
    assert torch.equal(again.images(range(40)), data.images(range(40)) // 32)


def test_split_by_sub_folders(tmp_path: Path, add_image: AddImage) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for i in range(count):
            add_image(tmp_path / split / "class" / f"{i}.png", seed=i)
    add_image(tmp_path / "loose.png")
    splits = {name: datasets.open_dataset("folder", tmp_path, name) for name in (*datasets.SPLITS, "all")}
    assert {name: len(data) for name, data in splits.items()} == {"train": 3, "valid": 2, "test": 1, "all": 6}
    assert splits["train"].recipe["split_rule"] == "sub-folders"


def test_a_split_without_images_is_refused(tmp_path: Path, add_image: AddImage) -> None:
    add_image(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match=r"no image of the 1 in .* falls into split valid"):
        datasets.open_dataset("folder", tmp_path, "valid")


def test_images_of_several_sizes_need_a_size(root: Path, add_image: AddImage) -> None:
    add_image(root / "tall.png", size=(10, 30))
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("folder", root)
    assert "12x20 (40 images), 30x10 (1 images); give a size" in str(caught.value)
    data = datasets.open_dataset("folder", root, "all", size=(15, 10))
    assert (data.spec.height, data.spec.width) == (15, 10)
    with Image.open(root / "tall.png") as image:  # the last by path; its middle half is 15 high
        middle = image.resize((10, 15), Image.Resampling.BILINEAR, box=(0, 7.5, 10, 22.5))
    inner = data.images([40])[0].permute(1, 2, 0)[1:-1].numpy().astype(int)  # PIL's filter looks over the edge
    assert np.abs(inner - np.asarray(middle)[1:-1].astype(int)).max() <= 1
    assert datasets.open_dataset("folder", root, size=8).spec.width == 8


def test_grey_images_have_one_channel_and_colour_wins(tmp_path: Path, add_image: AddImage) -> None:
    add_image(tmp_path / "a.png", mode="L")
    add_image(tmp_path / "b.bmp", mode="L")
    data = datasets.open_dataset("folder", tmp_path, "all")
    assert data.spec.channels == 1
    assert datasets.open_dataset("folder", tmp_path, "all", channels=3).spec.channels == 3
    add_image(tmp_path / "c.webp")
    assert datasets.open_dataset("folder", tmp_path, "all").spec.channels == 3
    assert datasets.open_dataset("folder", tmp_path, "all", channels=1).spec.channels == 1


def test_orientation_is_followed_and_transparency_is_black(tmp_path: Path) -> None:
    image = draw_image(0, 20, 12)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    data = datasets.open_dataset("folder", tmp_path, "all")
    assert (data.spec.height, data.spec.width) == (20, 12)
    turned = np.rot90(np.asarray(image), -1)
    np.testing.assert_array_equal(data.images([0])[0].permute(1, 2, 0), turned)

    clear = np.full((4, 4, 4), 200, np.uint8)
    clear[:, :, 3] = np.array([0, 0, 255, 128])[:, None]
    (tmp_path / "clear").mkdir()
    Image.fromarray(clear).save(tmp_path / "clear" / "clear.png")
    pixels = datasets.open_dataset("folder", tmp_path / "clear", "all").images([0])[0]
    assert pixels[:, :2].unique().tolist() == [0]
    assert pixels[:, 2].unique().tolist() == [200]
    assert pixels[:, 3].unique().tolist() == [100]  # 200 * 128 / 255


def test_all_unusable_images_are_named_at_once(root: Path) -> None:
    (root / "a" / "not.png").write_bytes(b"text")
    whole = (root / "b" / "00.png").read_bytes()
    (root / "b" / "cut.png").write_bytes(whole[:-40])
    Image.fromarray(np.full((12, 20), 0.5, np.float32)).save(root / "deep.tiff")
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("folder", root)
    message = str(caught.value)
    assert all(
        word in message
        for word in ("3 of 43", "a/not.png (is not a JPEG, PNG", "b/cut.png (", "deep.tiff (has mode F", "skip_bad")
    )
    kept = datasets.open_dataset("folder", root, "all", skip_bad=True)
    assert len(kept) == 40
    assert kept.recipe["num_bad"] == 3
    for path in [*root.rglob("*.png"), root / "deep.tiff"]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match="43 of 43 images"):
        datasets.open_dataset("folder", root, skip_bad=True)


def test_missing_or_empty_folders_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere; put images"):
        datasets.open_dataset("folder", tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    with pytest.raises(DataError, match="has no images; put images"):
        datasets.open_dataset("folder", tmp_path)


def test_links_that_lead_nowhere_or_back_are_no_trap(root: Path) -> None:
    (root / "a" / "up").symlink_to(root)
    assert len(datasets.open_dataset("folder", root, "all")) == 40
    (root / "dangling.png").symlink_to(root / "nothing.png")
    with pytest.raises(DataError, match=r"1 of 41 images .* dangling\.png"):
        datasets.open_dataset("folder", root)


def test_its_own_cache_is_not_taken_for_data(root: Path) -> None:
    first = datasets.open_dataset("folder", root, "all")
    stamp = next((root / ".strata_cache").glob("*.npy")).stat().st_mtime_ns
    assert datasets.open_dataset("folder", root, "all").recipe == first.recipe
    assert next((root / ".strata_cache").glob("*.npy")).stat().st_mtime_ns == stamp
    (root / "a" / "01.png").unlink()
    assert len(datasets.open_dataset("folder", root, "all")) == 39


def test_odd_options_are_refused(root: Path) -> None:
    for options in ({"channels": 2}, {"num_bits": 0}, {"size": (1, 2, 3)}, {"size": -4}):
        with pytest.raises(DataError, match=r"; (choose|give)"):
            datasets.open_dataset("folder", root, **options)
