"""Factors of one's own images from a CSV file: classes, numbers and texts, and names that do not match."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import datasets
from datasets.spec import DataError

AddImage = Callable[..., Path]


@pytest.fixture
def root(tmp_path: Path, add_image: AddImage) -> Path:
    for i in range(6):
        add_image(tmp_path / "mine" / ("train" if i < 4 else "test") / f"{i}.png", seed=i, size=(3, 2))
    return tmp_path / "mine"


def table(root: Path, text: str) -> Path:
    path = root.parent / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_whole_numbers_and_texts_are_classes_over_all_splits(root: Path) -> None:
    rows = "".join(f"{i}.png,{[5, 5, 9, 9, 7, 7][i]},{'cat' if i % 2 else 'dog'}\n" for i in range(6))
    labels = table(root, "\ufefffile,kind,animal\n" + rows)
    train, test = (datasets.open_dataset("folder", root, split, labels=labels) for split in ("train", "test"))
    assert (train.factor_names, train.factor_sizes) == (("kind", "animal"), (3, 2))
    assert train.factors(range(4)).tolist() == [[0, 1], [0, 0], [2, 1], [2, 0]]
    assert test.factors(range(2)).tolist() == [[1, 1], [1, 0]]
    assert train.factors([0]).dtype == torch.int64


def test_other_numbers_are_continuous(root: Path) -> None:
    labels = table(
        root, "path;angle;kind\n" + "".join(f"{'train' if i < 4 else 'test'}/{i};{i / 4};{i % 2}\n" for i in range(6))
    )
    data = datasets.open_dataset("folder", root, "test", labels=labels)
    assert data.factor_sizes == (0, 2)
    assert data.factors([0, 1]).dtype == torch.float64
    assert data.factors([0, 1]).tolist() == [[1.0, 0.0], [1.25, 1.0]]


def test_a_different_text_for_every_image_is_left_out_and_reported(root: Path) -> None:
    rows = "".join(f'{i}.png,{i % 2},"about, {i}"\n' for i in range(6))
    data = datasets.open_dataset("folder", root, labels=table(root, "name,kind,caption\n" + rows + "99.png,0,x\n"))
    assert data.factor_names == ("kind",)
    assert all(word in data.note for word in ("kind", "caption", "without an image: 1"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["header"]),
        ("file\n0.png\n", ["two columns"]),
        ("file,a\n" + "".join(f"{i}.png,1\n" for i in range(4)), ["2 of 6", "test/4.png"]),
        ("file,a\n" + "".join(f"{i}.png,1\n" for i in range(6)) + "0.png,2\n", ["line 8", "'0.png'"]),
        ("file,a\n" + "".join(f"{i}.png,{'' if i == 3 else 1}\n" for i in range(6)), ["line 5", "a is empty"]),
        ("file,a\n" + "".join(f"{i}.png,{'x' if i == 3 else 0.5}\n" for i in range(6)), ["line 5", "'x'"]),
        ("file,a\n0.png,1,2\n", ["line 2", "3 values for 2"]),
        ("file,a,a\n0.png,1,2\n", ["same name"]),
    ],
)
def test_mismatches_are_reported_with_their_place(root: Path, text: str, words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("folder", root, labels=table(root, text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_without_labels_the_flag_is_named(root: Path) -> None:
    with pytest.raises(DataError, match="--labels"):
        datasets.open_dataset("folder", root).factors([0])
