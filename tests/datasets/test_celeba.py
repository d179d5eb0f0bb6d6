"""CelebA: the official layout in a folder or a zip, the crop at any resolution, splits, attributes, and errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import ATTRIBUTES, draw_image, jpeg, make_celeba
from PIL import Image

import datasets
from datasets.celeba import crop_box
from datasets.spec import DataError


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Decibels, per image, of uint8 images [B, C, H, W]."""
    return 10 * torch.log10(255**2 / (a.double() - b.double()).square().mean(dim=(1, 2, 3)))


def test_official_size_is_exactly_a_crop_and_a_resize(celeba_root: Path) -> None:
    data = datasets.open_dataset("celeba", celeba_root, "all")
    assert (data.spec.channels, data.spec.height, data.spec.width, data.spec.num_bits) == (3, 64, 64, 8)
    for index, path in enumerate(sorted((celeba_root / "img_align_celeba").iterdir())):
        with Image.open(path) as image:
            plain = image.crop((15, 40, 163, 188)).resize((64, 64), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(data.images([index])[0].permute(1, 2, 0), np.asarray(plain))


def test_any_resolution_of_the_frame_shows_the_same_face(tmp_path: Path) -> None:
    full = datasets.open_dataset("celeba", make_celeba(tmp_path / "full"), "all", size=32)
    for size in ((89, 109), (356, 436), (133, 163)):
        other = datasets.open_dataset("celeba", make_celeba(tmp_path / f"{size}", size=size), "all", size=32)
        # A shift by one pixel of 178x218, or the black bar of a crop in whole pixels, would fall below 27 dB.
        assert psnr(full.images(range(20)), other.images(range(20))).min() > 30
    assert crop_box(178, 218) == (15, 40, 163, 188)
    assert crop_box(89, 109) == (7.5, 20, 81.5, 94)


def test_zip_gives_the_same_pixels_as_the_folder(celeba_root: Path, tmp_path: Path) -> None:
    zipped = make_celeba(tmp_path / "zipped", zipped=True)
    a, b = (datasets.open_dataset("celeba", root, "train") for root in (celeba_root, zipped))
    assert torch.equal(a.images(range(len(a))), b.images(range(len(b))))
    assert a.recipe == b.recipe


def test_splits_and_attributes_follow_the_text_files(celeba_root: Path) -> None:
    splits = {name: datasets.open_dataset("celeba", celeba_root, name, size=16) for name in (*datasets.SPLITS, "all")}
    assert {name: len(data) for name, data in splits.items()} == {"train": 16, "valid": 2, "test": 2, "all": 20}
    members = {"train": [i for i in range(20) if i % 10 < 8], "valid": [8, 18], "test": [9, 19]}
    for name, expected in members.items():
        data = splits[name]
        assert torch.equal(data.images(range(len(data))), splits["all"].images(expected))
        table = torch.tensor([[(i >> k % 5) & 1 for k in range(40)] for i in expected])
        assert torch.equal(data.factors(range(len(data))), table)
        assert data.factors([0]).dtype == torch.int64
    assert splits["all"].factor_names == ATTRIBUTES
    assert splits["all"].factor_sizes == (2,) * 40


def test_five_bits_are_the_highest_and_share_the_cache(celeba_root: Path) -> None:
    eight, five = (datasets.open_dataset("celeba", celeba_root, num_bits=bits, size=16) for bits in (8, 5))
    assert torch.equal(five.images(range(16)), torch.div(eight.images(range(16)), 8, rounding_mode="floor"))
    assert five.spec.num_bits == 5
    assert len(list((celeba_root / ".strata_cache").glob("*.npy"))) == 1


def test_flips_only_in_training_and_by_draw(celeba_root: Path) -> None:
    plain = datasets.open_dataset("celeba", celeba_root, size=16)
    flips = datasets.open_dataset("celeba", celeba_root, size=16, hflip=True)
    draws = torch.stack([flips.images(range(16), draw=draw) for draw in range(8)])
    same = (draws == plain.images(range(16))).flatten(2).all(dim=2)
    mirrored = (draws == plain.images(range(16)).flip(-1)).flatten(2).all(dim=2)
    assert bool((same | mirrored).all())
    assert bool(same.any())
    assert bool(mirrored.any())
    valid = [datasets.open_dataset("celeba", celeba_root, "valid", size=16, hflip=hflip) for hflip in (False, True)]
    assert torch.equal(valid[0].images([0, 1], draw=0), valid[1].images([0, 1], draw=3))
    assert valid[1].recipe["hflip"] is False


def test_a_size_that_is_not_square_takes_the_middle(celeba_root: Path) -> None:
    data = datasets.open_dataset("celeba", celeba_root, "all", size=(32, 24))
    with Image.open(celeba_root / "img_align_celeba" / "000001.jpg") as image:
        middle = image.crop((15, 40, 163, 188)).crop((18, 0, 130, 148)).resize((24, 32), Image.Resampling.BILINEAR)
    # 148 * 24/32 = 111 of 148 columns: 18.5 to 129.5, here rounded outwards to whole pixels.
    assert data.spec.width == 24
    assert psnr(data.images([0]), torch.tensor(np.asarray(middle)).permute(2, 0, 1)[None]) > 25


def test_all_unusable_images_are_named_at_once(celeba_root: Path) -> None:
    images = celeba_root / "img_align_celeba"
    (images / "000003.jpg").write_bytes(b"no image at all")
    cut = (images / "000007.jpg").read_bytes()
    (images / "000007.jpg").write_bytes(cut[: len(cut) // 2])
    (images / "000011.jpg").write_bytes(jpeg(draw_image(0, 100, 100)))
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("celeba", celeba_root, size=16)
    message = str(caught.value)
    assert all(
        name in message for name in ("3 of 20", "000003.jpg", "000007.jpg", "000011.jpg (is 100x100", "skip_bad")
    )
    assert "\n" not in message
    assert not list(celeba_root.rglob("*.npy*"))
    kept = datasets.open_dataset("celeba", celeba_root, "all", size=16, skip_bad=True)
    assert len(kept) == 17
    assert kept.recipe["num_bad"] == 3
    assert kept.factors([2]).tolist()[0][:3] == [1, 1, 0]  # image 4, index 3, moved up: attributes moved with it
    shutil.copy(images / "000001.jpg", images / "000003.jpg")
    again = datasets.open_dataset("celeba", celeba_root, "all", size=16, skip_bad=True)
    assert len(again) == 18  # a changed source rebuilds the cache


def test_a_decompression_bomb_is_an_error_that_names_the_file(
    celeba_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 178 * 218 - 1)
    with pytest.raises(DataError, match=r"20 of 20 images .* 000001\.jpg \(Image size .* decompression bomb"):
        datasets.open_dataset("celeba", celeba_root, skip_bad=True)


@pytest.mark.parametrize(
    ("line", "why"), [("000005.jpg 3", "0, 1 or 2"), ("000005.jpg", "0, 1 or 2"), ("000001.jpg 0", "listed twice")]
)
def test_a_wrong_split_file_is_named_with_its_line(celeba_root: Path, line: str, why: str) -> None:
    path = celeba_root / "list_eval_partition.txt"
    lines = path.read_text().splitlines()
    lines[4] = line
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"list_eval_partition\.txt line 5: .*{why}"):
        datasets.open_dataset("celeba", celeba_root)


def test_missing_parts_are_reported_with_what_to_do(celeba_root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder .*nowhere; put img_align_celeba/ .* \(--data-root\)"):
        datasets.open_dataset("celeba", tmp_path / "nowhere")
    for name in ("000002.jpg", "000004.jpg"):
        (celeba_root / "img_align_celeba" / name).unlink()
    with pytest.raises(DataError, match=r"lacks 2 of the 20 images .* 000002\.jpg, 000004\.jpg"):
        datasets.open_dataset("celeba", celeba_root)
    for path in (celeba_root / "img_align_celeba").iterdir():
        path.unlink()
    with pytest.raises(DataError, match="has no images"):
        datasets.open_dataset("celeba", celeba_root)
    (celeba_root / "img_align_celeba").rmdir()
    with pytest.raises(DataError, match="has neither"):
        datasets.open_dataset("celeba", celeba_root)
    (celeba_root / "img_align_celeba.zip").write_bytes(b"half a zip")
    with pytest.raises(DataError, match="cannot be read as a zip"):
        datasets.open_dataset("celeba", celeba_root)
    (celeba_root / "list_eval_partition.txt").unlink()
    with pytest.raises(DataError, match=r"has no list_eval_partition\.txt"):
        datasets.open_dataset("celeba", celeba_root)


def test_attributes_may_be_missing_but_not_wrong(celeba_root: Path) -> None:
    path = celeba_root / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], lines[6].replace("-1", "0", 1), *lines[7:]]))
    with pytest.raises(DataError, match=r"line 7: 000005\.jpg should have 40 values of 1 or -1"):
        datasets.open_dataset("celeba", celeba_root, size=16)
    path.write_text("\n".join(lines[1:6]))
    with pytest.raises(DataError, match=r"lacks 16 images, such as 000005\.jpg"):
        datasets.open_dataset("celeba", celeba_root, size=16)
    path.unlink()
    data = datasets.open_dataset("celeba", celeba_root, size=16)
    assert data.factor_names == ()
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt is missing"):
        data.factors([0])


@pytest.mark.parametrize("options", [{"split": "val"}, {"num_bits": 9}, {"size": 0}, {"size": (64,)}])
def test_options_that_make_no_sense_are_refused(celeba_root: Path, options: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"choose|give"):
        datasets.open_dataset("celeba", celeba_root, **options)  # type: ignore[arg-type]


def test_real_images(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "celeba"
    splits = {name: datasets.open_dataset("celeba", root, name, cache_dir=tmp_path) for name in datasets.SPLITS}
    assert {name: len(data) for name, data in splits.items()} == {"train": 4851, "valid": 566, "test": 583}
    assert splits["train"].factor_names[20] == "Male"
    ten = tmp_path / "official"
    shutil.copytree(root / "full_size_178x218", ten / "img_align_celeba")
    (ten / "list_eval_partition.txt").write_text("".join(f"{i:06d}.jpg 0\n" for i in range(1, 11)))
    half = datasets.open_dataset("celeba", root, "all", cache_dir=tmp_path)
    assert psnr(half.images(range(10)), datasets.open_dataset("celeba", ten).images(range(10))).mean() > 34
