"""CelebA as people have it: official, Kaggle's CSV lists and nested folder, other places, PNG copies, subsets, damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_data import make_celeba
from PIL import Image

import datasets
from datasets.spec import DataError

LISTS = ("list_eval_partition", "list_attr_celeba")


def to_csv(root: Path) -> None:
    """Replace the official lists by Kaggle's."""
    partition, attributes = (root / f"{name}.txt" for name in LISTS)
    rows = [line.split() for line in partition.read_text().splitlines()]
    text = "".join(f"{name},{split}\n" for name, split in rows)
    (root / "list_eval_partition.csv").write_text("image_id,partition\n" + text)
    _, names, *values = (line.split() for line in attributes.read_text().splitlines())
    table = "\n".join(",".join(row) for row in [["image_id", *names], *values])
    (root / "list_attr_celeba.csv").write_text(table + "\n", encoding="utf-8-sig")
    partition.unlink()
    attributes.unlink()


def nest(root: Path) -> None:
    (root / "img_align_celeba").rename(root / "inner")
    (root / "img_align_celeba").mkdir()
    (root / "inner").rename(root / "img_align_celeba" / "img_align_celeba")


def kaggle(root: Path) -> None:
    to_csv(root)
    nest(root)


def drive(root: Path) -> None:
    """The folders of the official drive."""
    for folder, names in {
        "Anno": [f"{LISTS[1]}.txt"],
        "Eval": [f"{LISTS[0]}.txt"],
        "Img": ["img_align_celeba"],
    }.items():
        (root / folder).mkdir()
        for name in names:
            (root / name).rename(root / folder / name)


def torchvision(root: Path) -> None:
    (root / "celeba").mkdir()
    for name in ("img_align_celeba", *(f"{name}.txt" for name in LISTS)):
        (root / name).rename(root / "celeba" / name)


def png(root: Path) -> None:
    for path in (root / "img_align_celeba").iterdir():
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()


def csv_named_txt(root: Path) -> None:
    to_csv(root)
    for name in LISTS:
        (root / f"{name}.csv").rename(root / f"{name}.txt")


def no_count(root: Path) -> None:
    path = root / "list_attr_celeba.txt"
    path.write_text(path.read_text().partition("\n")[2])


def zeros(root: Path) -> None:
    path = root / "list_attr_celeba.txt"
    path.write_text(path.read_text().replace(" -1", " 0"))


def mark(root: Path) -> None:
    for name in LISTS:
        path = root / f"{name}.txt"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def zipped(root: Path) -> None:
    kaggle(root)
    shutil.make_archive(str(root / "img_align_celeba"), "zip", root, "img_align_celeba")
    shutil.rmtree(root / "img_align_celeba")


@pytest.mark.parametrize(
    "change", [kaggle, drive, torchvision, png, csv_named_txt, no_count, zeros, mark, zipped], ids=lambda f: f.__name__
)
def test_every_layout_gives_the_same_data(tmp_path: Path, change: object) -> None:
    official, other = (make_celeba(tmp_path / name, num=10, size=(20, 24)) for name in "ab")
    assert callable(change)
    change(other)
    for split in datasets.SPLITS:
        one, two = (datasets.open_dataset("celeba", root, split, size=8) for root in (official, other))
        assert torch.equal(one.images(range(len(one))), two.images(range(len(two))))
        assert torch.equal(one.factors(range(len(one))), two.factors(range(len(two))))
        assert one.factor_names == two.factor_names
        assert datasets.recipes.differences(one.recipe, two.recipe) == []


def test_a_subset_is_used_on_request_and_reported(tmp_path: Path) -> None:
    root = make_celeba(tmp_path / "c", num=20, size=(20, 24))
    for number in (3, 9):
        (root / "img_align_celeba" / f"{number:06d}.jpg").unlink()
    with pytest.raises(DataError, match=r"lacks 2 of the 20.*--skip-bad"):
        datasets.open_dataset("celeba", root, size=8)
    data = datasets.open_dataset("celeba", root, size=8, skip_bad=True)
    assert len(data) == 15
    assert "left out: 2" in data.note
    whole = make_celeba(tmp_path / "d", num=20, size=(20, 24))
    path = whole / "list_eval_partition.txt"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:12]))
    assert "not listed, left out: 8" in datasets.open_dataset("celeba", whole, size=8).note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: ["99", *lines[1:]], "states 99 images but lists 10"),
        (lambda lines: lines[:2], "lists no images"),
        (lambda lines: [*lines, lines[-1]], "line 13: 000010.jpg .*listed twice"),
        (lambda lines: lines[2:], "line 1: .*name the attributes"),
        (lambda lines: [*lines[:4], lines[4].replace(" -1", " 2", 1), *lines[5:]], "line 5: 000003.jpg should have 40"),
        (lambda lines: [], "lists no images"),
    ],
)
def test_a_wrong_list_of_attributes_is_refused_when_the_data_is_opened(
    tmp_path: Path, change: object, words: str
) -> None:
    root = make_celeba(tmp_path / "c", num=10, size=(20, 24))
    path = root / "list_attr_celeba.txt"
    lines = path.read_text().splitlines()
    assert callable(change)
    path.write_text("\n".join(change(lines)))
    with pytest.raises(DataError, match=words):
        datasets.open_dataset("celeba", root, size=8)


def test_the_values_of_the_attributes_are_those_of_the_list(tmp_path: Path) -> None:
    data = datasets.open_dataset("celeba", make_celeba(tmp_path / "c", num=10, size=(20, 24)), "all", size=8)
    expected = (np.arange(10)[:, None] >> (np.arange(40) % 5)) & 1
    np.testing.assert_array_equal(data.factors(range(10)), expected)
