"""Recipes: a run's record of its images, compared with the present images."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from datasets.views import Int64

# Keys that determine the stored pixels; others, such as seed and hflip, determine their random views in training.
_PIXELS = ("name", "source", "size", "channels", "num_bits", "binarise", "crop", "frame", "resize")
_CONTENT = {
    "count": "another number of images",
    "images_sha256": "other images in the split",
    "rows_sha256": "other images in the split",
    "sha256": "other pixels",
}


def rows_sha256(rows: Int64) -> str:
    """Return the SHA-256 of the row numbers of a split."""
    return hashlib.sha256(rows.astype("<i8").tobytes()).hexdigest()


def options_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of `open_dataset` that rebuild a recorded split, independent of today's rules and defaults.

    Folder recipes without "rules" are of version 1, which split by path. MNIST and CIFAR-10 then held out 5,000 images
    by default, as their recorded rule states. Random views keep their recorded seed.
    """
    options: dict[str, Any] = {}
    if recipe.get("name") == "folder" and "rules" not in recipe:
        options["split_by"] = "path"
    held_out = re.search(r"last (\d+) of train", str(recipe.get("split_rule")))
    if held_out:
        options["num_valid"] = int(held_out[1])
    if isinstance(recipe.get("seed"), int):
        options["seed"] = recipe["seed"]
    return options


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any], *, in_order: bool = False) -> list[str]:
    """Describe how the images of two recipes of the same split differ; empty if they are the same.

    Only keys in both recipes are compared, so that older recipes can be read. Seeds and mirroring do not count as
    differences.

    Args:
        recorded: the recipe of a run.
        found: the recipe of the present data.
        in_order: also require the same order of the images, which an exact continuation of training needs.
    """
    is_folder = recorded.get("name") == "folder"  # its source is the name of the folder
    both = [key for key in recorded if key in found and not (is_folder and key == "source")]
    said = [f"{key} {recorded[key]} -> {found[key]}" for key in _PIXELS if key in both and recorded[key] != found[key]]
    by_content = "images_sha256" in both  # digest of the images in any order: another rule may give the same images
    if "split_rule" in both and not by_content and recorded["split_rule"] != found["split_rule"]:
        said.append(f"split by {recorded['split_rule']!r} -> {found['split_rule']!r}")
    for key, what in _CONTENT.items():
        if key in both and recorded[key] != found[key] and not (key == "sha256" and by_content):
            said.append(f"{recorded[key]} -> {found[key]} images" if key == "count" else what)
    if in_order and not said and by_content and recorded.get("sha256") != found.get("sha256"):
        said.append("the same images in another order (files were renamed)")
    return list(dict.fromkeys(said))
