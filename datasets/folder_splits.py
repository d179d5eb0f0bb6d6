"""Splits of a folder of images: by a hash of their content, by split folders, or as older runs were split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from datasets.arrays import SPLITS
from datasets.spec import DataError
from datasets.split_folders import roles_by_folder, split_folders
from datasets.views import UInt64, hash_split

SplitBy = Literal["auto", "folders", "content", "path"]
RULES = 2
"""Version of these rules, in every recipe. Recipes without one are of version 1, which `split_by` "path" keeps."""

_FOLDERS_1 = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
Roles = Sequence[str | None]


@dataclass(frozen=True)
class Assignment:
    """The split of each image, and the rule that assigned it."""

    roles: Roles
    """train, valid, test, or None for an image that is not used; in the order of the names."""
    rule: str
    folders: dict[str, str]
    """Role by split folder."""


def _roles_by_hash(words: UInt64) -> list[str | None]:
    return [SPLITS[number] for number in hash_split(words)]


def roles_by_path(names: list[str]) -> Assignment:
    """Split images by the rules of version 1.

    If a top folder is called train, the top folders train, valid (val, validation) and test are the splits. Otherwise
    the SHA-256 of the path below the root decides; renaming images moves them between splits, so this rule was
    abandoned.
    """
    tops = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    if "train" in tops:
        return Assignment([_FOLDERS_1.get(top) for top in tops], "sub-folders", {})
    digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    words = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    return Assignment(_roles_by_hash(words), "hash of the path, 90/5/5", {})


def roles_by_content(names: list[str], words: UInt64, folders: dict[str, str]) -> Assignment:
    """Split images by split folders if there are any, else by the images' content.

    The content decides by the first 64 bits of the SHA-256 of the file: train 90 %, valid 5 %, test 5 %. It does not
    depend on names, paths or endings; adding or removing images moves no others; and copies of a file share a split.

    Args:
        names: paths of the images.
        words: uint64 [N], the start of each file's SHA-256.
        folders: role by split folder. If it is empty, all images are split by content. If all folders are train, the
            images in them are split by content. If none is, the folders are kept, and the images outside them are
            split by content among the other roles.
    """
    by_content = _roles_by_hash(words)
    if not folders:
        return Assignment(by_content, "hash of the content, 90/5/5", folders)
    by_folder = roles_by_folder(names, folders)
    given = set(folders.values())
    if given == {"train"}:
        within = [role and other for role, other in zip(by_folder, by_content, strict=True)]
        return Assignment(within, "hash of the content within train folders, 90/5/5", folders)
    if "train" in given:
        return Assignment(by_folder, "sub-folders", folders)
    rest = ["train" if role in given else role for role in by_content]
    kept = [role or other for role, other in zip(by_folder, rest, strict=True)]
    return Assignment(kept, f"sub-folders {' and '.join(sorted(given))}, others by hash of the content", folders)


def assign(root: Path, names: list[str], words: UInt64, split_by: SplitBy) -> Assignment:
    """Split the images of a folder by the chosen rule.

    Raises:
        DataError: split folders are requested, but there are none.
    """
    if split_by == "path":
        return roles_by_path(names)
    folders = {} if split_by == "content" else split_folders(names)
    if split_by == "folders" and not folders:
        raise DataError(
            f"{root} has no sub-folders train, valid or test; make them, or split by content (--split-by content)"
        )
    return roles_by_content(names, words, folders)


def copies_of_train(words: UInt64, roles: Roles, usable: npt.NDArray[np.bool_]) -> str:
    """Count held-out images that are copies of training images, which split folders may hold; "" for none."""
    of = {split: words[usable & np.array([role == split for role in roles])] for split in SPLITS}
    copies = {split: int(np.isin(of[split], of["train"]).sum()) for split in ("valid", "test")}
    return "".join(f"; {num:,} of {split} are copies of training images" for split, num in copies.items() if num)
