"""Train and test never mix: splits of a folder under other names, mounts, endings, Unicode forms, and stray files."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import datasets
from datasets import recipes
from datasets.folder_splits import roles_by_content, roles_by_path
from datasets.spec import DataError, NoSuchSplit

AddImage = Callable[..., Path]
NAMES = ["é", "ü", "Å", "plain", "Ünï"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 images of one pixel each, all different."""
    from PIL import Image

    root = tmp_path_factory.mktemp("mine")
    (root / "images").mkdir()
    for i in range(120):
        name = unicodedata.normalize("NFC", f"{NAMES[i % 5]} {i}.png")
        Image.new("RGB", (1, 1), (i, 2 * i % 256, 7)).save(root / "images" / name)
    return root


def pixels(root: Path, split: str, **options: object) -> set[bytes]:
    data = datasets.open_dataset("folder", root, split, **options)
    return {data[i].numpy().tobytes() for i in range(len(data))}


def copy(source: Path, target: Path, rename: Callable[[str], str]) -> Path:
    target.mkdir(parents=True)
    for path in (source / "images").glob("*.png"):
        shutil.copy(path, target / rename(path.name))
    return target


RENAMED: dict[str, Callable[[str], str]] = {
    "other Unicode form": lambda name: unicodedata.normalize("NFD", name),
    "upper case ending": lambda name: name.replace(".png", ".PNG"),
    "other ending": lambda name: name.replace(".png", ".jpeg"),
    "other names": lambda name: f"{hash(name)}.png",
}


@pytest.mark.parametrize("change", RENAMED)
def test_no_renaming_moves_an_image_between_splits(mine: Path, tmp_path: Path, change: str) -> None:
    other = copy(mine, tmp_path / "deep" / "train", RENAMED[change])
    for split in datasets.SPLITS:
        assert pixels(other, split) == pixels(mine, split), split
    first, again = (datasets.open_dataset("folder", root) for root in (mine, other))
    assert recipes.differences(first.recipe, again.recipe) == []


def test_the_root_may_be_mounted_at_any_level(mine: Path) -> None:
    assert pixels(mine, "test") == pixels(mine / "images", "test")
    parts = [pixels(mine, split) for split in datasets.SPLITS]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 120


def test_copies_share_a_split_and_others_stay_when_images_come_and_go(mine: Path, tmp_path: Path) -> None:
    root = copy(mine, tmp_path / "a", lambda name: name)
    for path in sorted(root.glob("*.png"))[:60]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    for split in datasets.SPLITS:
        assert pixels(root, split) == pixels(mine, split)
    for path in sorted(root.glob("*.png"))[::2]:
        path.unlink()
    assert pixels(root, "test") <= pixels(mine, "test")


def test_known_answers_because_recorded_runs_must_not_change() -> None:
    words = np.array([0, 2**63, 17 * (2**64 // 20 + 1), 18 * (2**64 // 20 + 1), 2**64 - 1], np.uint64)
    found = roles_by_content(list("abcde"), words, {})
    assert found.roles == ["train", "train", "train", "valid", "test"]
    names = [f"{i}.png" for i in range(2000)]
    old = roles_by_path(names)
    assert [name for name, role in zip(names, old.roles, strict=True) if role == "valid"][:3] == [
        "5.png",
        "23.png",
        "27.png",
    ]
    shares = [old.roles.count(split) / 2000 for split in datasets.SPLITS]  # type: ignore[attr-defined]
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.02)


def test_a_recipe_without_version_reproduces_the_old_split(mine: Path) -> None:
    old = datasets.open_dataset("folder", mine, split_by="path")
    assert "rules" not in old.recipe
    options = recipes.options_of(old.recipe)
    assert options == {"split_by": "path"}
    assert pixels(mine, "test", **options) == pixels(mine, "test", split_by="path") != pixels(mine, "test")
    assert recipes.options_of(datasets.open_dataset("folder", mine).recipe) == {}
    assert recipes.differences(old.recipe, datasets.open_dataset("folder", mine).recipe) != []


def sort_into(root: Path, add: AddImage, counts: dict[str, int]) -> Path:
    seed = 0
    for folder, count in counts.items():
        for _ in range(count):
            add(root / folder / f"{seed}.png", seed=seed, size=(3, 2))
            seed += 1
    return root


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"Train": 3, "Val": 2, "Test": 1}, {"train": 3, "valid": 2, "test": 1}),
        ({"mine/training": 3, "mine/testing": 1}, {"train": 3, "test": 1}),
        ({"a/train": 3, "a/test": 1, "b/train": 2, "b/test": 2}, {"train": 5, "test": 3}),
        ({"train": 3, "dev": 2, "extra": 4}, {"train": 3, "valid": 2}),
        ({"valid": 3, "test": 2}, {"valid": 3, "test": 2}),
    ],
)
def test_split_folders_are_kept_and_reported(
    tmp_path: Path, add_image: AddImage, counts: dict[str, int], expected: dict[str, int]
) -> None:
    root = sort_into(tmp_path, add_image, counts)
    found = datasets.prepare("folder", root)
    assert {split: len(data) for split, data in found.items()} == expected
    note = next(iter(found.values())).note
    assert "\n" not in note
    assert all(folder.split("/")[-1] in note for folder in counts)
    for split in set(datasets.SPLITS) - set(expected):
        with pytest.raises(NoSuchSplit, match=", ".join(expected)) as caught:
            datasets.open_dataset("folder", root, split)
        assert caught.value.splits == tuple(expected)


def test_a_stray_file_beside_the_only_split_folder_changes_nothing(tmp_path: Path, add_image: AddImage) -> None:
    root = sort_into(tmp_path, add_image, {"train": 60})
    before = {split: pixels(root, split) for split in datasets.SPLITS}
    add_image(root / "cover.png", seed=999, size=(3, 2))
    assert {split: pixels(root, split) for split in datasets.SPLITS} == before
    assert "loose files 1" in datasets.open_dataset("folder", root).note


def test_a_folder_of_test_images_is_never_trained_on(tmp_path: Path, add_image: AddImage) -> None:
    root = sort_into(tmp_path, add_image, {"images": 60, "test": 20})
    held_out = pixels(root, "test")
    assert len(held_out) == 20
    assert not held_out & (pixels(root, "train") | pixels(root, "valid"))
    assert len(pixels(root, "train")) + len(pixels(root, "valid")) == 60


def test_folders_can_be_asked_for_or_ignored(tmp_path: Path, add_image: AddImage) -> None:
    root = sort_into(tmp_path, add_image, {"train": 40, "test": 2})
    assert len(datasets.open_dataset("folder", root, "test")) == 2
    assert datasets.open_dataset("folder", root, split_by="content").recipe["split_rule"].startswith("hash")
    with pytest.raises(DataError, match="split-by content"):
        datasets.open_dataset("folder", root / "train", split_by="folders")


def test_copies_of_training_images_among_the_held_out_are_reported(tmp_path: Path, add_image: AddImage) -> None:
    root = sort_into(tmp_path, add_image, {"train": 3, "test": 2})
    shutil.copy(root / "train" / "0.png", root / "test" / "again.png")
    assert "1 of test are copies of training images" in datasets.open_dataset("folder", root).note


def test_names_that_no_terminal_shows_do_not_break_the_line(tmp_path: Path, add_image: AddImage) -> None:
    sort_into(tmp_path, add_image, {"train": 3, "test": 2, "a\x1b[31m\n": 1})
    add_image(tmp_path / "plain.png", seed=9, size=(3, 2)).rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png"))
    note = datasets.open_dataset("folder", tmp_path).note
    assert note.isprintable()
    note.encode()
