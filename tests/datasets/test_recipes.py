"""Comparison of recipes: the record of a run against the present data."""

from __future__ import annotations

from pathlib import Path

import datasets
from datasets.recipes import differences, options_of


def test_the_same_images_do_not_differ_whatever_is_drawn_of_them(celeba_root: Path) -> None:
    one = datasets.open_dataset("celeba", celeba_root, size=16)
    other = datasets.open_dataset("celeba", celeba_root, size=16, hflip=True, seed=3)
    assert differences(one.recipe, other.recipe) == []
    assert options_of(other.recipe) == {"seed": 3}


def test_what_differs_is_named(celeba_root: Path) -> None:
    whole = datasets.open_dataset("celeba", celeba_root, size=16).recipe
    for options, word in (({"size": 8}, "size"), ({"num_bits": 5}, "num_bits")):
        (said, *_) = differences(whole, datasets.open_dataset("celeba", celeba_root, **{"size": 16} | options).recipe)
        assert word in said
    path = celeba_root / "list_eval_partition.txt"
    path.write_text(path.read_text().replace("000001.jpg 0", "000001.jpg 2").replace("000010.jpg 2", "000010.jpg 0"))
    moved = datasets.open_dataset("celeba", celeba_root, size=16).recipe
    assert moved["count"] == whole["count"]
    assert differences(whole, moved) == ["other images in the split"]
    assert differences({}, whole) == []


def test_recipes_of_earlier_versions_say_how_their_data_is_opened() -> None:
    assert options_of({"name": "folder", "split_rule": "sub-folders"}) == {"split_by": "path"}
    assert options_of({"name": "mnist", "split_rule": "official; last 5000 of train are valid", "seed": 0}) == {
        "num_valid": 5000,
        "seed": 0,
    }
    assert options_of({"name": "frey"}) == {}


def test_the_same_images_in_another_order_are_other_data_only_where_order_matters() -> None:
    one = {"name": "folder", "rules": 2, "images_sha256": "a", "sha256": "b"}
    other = one | {"sha256": "c"}
    assert differences(one, other) == []
    assert len(differences(one, other, in_order=True)) == 1
