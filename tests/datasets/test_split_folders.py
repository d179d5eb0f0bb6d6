"""Split folders as people name them: spellings, levels, and folders that are not split folders."""

from __future__ import annotations

import pytest

from datasets.split_folders import describe_unused, role_of, roles_by_folder, split_folders


@pytest.mark.parametrize(
    ("name", "role"),
    [
        *(("train", "train"), ("Training", "train"), ("TRAIN_images", "train"), ("trainset", "train")),
        *(("trainingData", "train"), ("train2017", "train"), ("train_64x64", "train"), ("train-set", "train")),
        *(("val", "valid"), ("Valid", "valid"), ("validation", "valid"), ("validation_set", "valid"), ("dev", "valid")),
        *(("eval", "valid"), ("val2017", "valid"), ("valid_32x32", "valid"), ("ｔｅｓｔ", "test")),
        *(("test", "test"), ("Testing", "test"), ("test_images", "test"), ("testset", "test"), ("holdout", "test")),
    ],
)
def test_roles_in_the_forms_that_people_use(name: str, role: str) -> None:
    assert role_of(name) == (role, "")


@pytest.mark.parametrize(
    "name", ["valley", "latest", "contest", "trains", "device", "trainer", "train_val", "cats", ""]
)
def test_names_without_a_role(name: str) -> None:
    assert role_of(name) is None


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["train/1", "val/2", "test/3"], {"train/": "train", "val/": "valid", "test/": "test"}),
        (["Train/1", "Test/2", "other/3"], {"Train/": "train", "Test/": "test"}),
        (["mine/a/train/x/1", "mine/a/val/2"], {"mine/a/train/": "train", "mine/a/val/": "valid"}),
        (
            ["cats/train/1", "cats/test/2", "dogs/train/3", "dogs/test/4"],
            {"cats/train/": "train", "cats/test/": "test", "dogs/train/": "train", "dogs/test/": "test"},
        ),
        (["seg_train/seg_train/1", "seg_test/seg_test/2", "seg_pred/3"], {"seg_train/": "train", "seg_test/": "test"}),
        (["DIV2K_train_HR/1", "DIV2K_valid_HR/2"], {"DIV2K_train_HR/": "train", "DIV2K_valid_HR/": "valid"}),
        (
            ["trainA/1", "trainB/2", "testA/3", "testB/4"],
            dict(zip(["trainA/", "trainB/"], ["train"] * 2, strict=True)) | {"testA/": "test", "testB/": "test"},
        ),
        (["valid/1", "test/2"], {"valid/": "valid", "test/": "test"}),
        (["train/1", "images/test/2"], {"train/": "train", "images/test/": "test"}),
        (
            ["my_test_data/train/1", "my_test_data/val/2"],
            {"my_test_data/train/": "train", "my_test_data/val/": "valid"},
        ),
        (["train_station/1", "test_tube/2", "car/3"], {}),  # classes
        (["train/1", "train/2"], {"train/": "train"}),
        (["1", "2"], {}),
        (["a/" * 2000 + "train/1", "a/" * 2000 + "test/1"], {"a/" * 2000 + f"{s}/": s for s in ("train", "test")}),
        (["a/VAL/1", "b/TESTING/2", "b/VAL/3"], {"a/VAL/": "valid", "b/TESTING/": "test", "b/VAL/": "valid"}),
        (
            ["cats/train/1", "cats/test/2", "train/train/3", "train/test/4"],
            {f"{a}/{b}/": b for a in ("cats", "train") for b in ("train", "test")},
        ),
    ],
)
def test_folders_of_a_tree(names: list[str], folders: dict[str, str]) -> None:
    assert split_folders([f"{name}.png" for name in names]) == folders


def test_images_take_the_role_of_their_folder_and_the_others_are_named() -> None:
    names = ["a/train/1.png", "a/test/deep/2.png", "a/extra/3.png", "4.png", "b/5.png"]
    roles = roles_by_folder(names, split_folders(names))
    assert roles == ["train", "test", None, None, None]
    unused = describe_unused(names, roles)
    assert all(place in unused for place in ("a/ 1", "b/ 1", "loose files 1"))
