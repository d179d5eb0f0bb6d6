"""Fuzzed folders of images: damaged EXIF blocks, CelebA's lists in every layout, and trees drawn at random."""

from __future__ import annotations

import io
import random
import re
import shutil
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image

import datasets
from datasets import celeba, folder
from tests.fuzz import mutate
from tests.fuzz.ends import Target, refused

EXIF_VALUES = {
    **{0x010E: "a description", 0x011A: 72.0, 0x0132: "2020:01:01 00:00:00", 0x0213: 1},
    **{0x8769: {0x9286: b"comment", 0x829A: 0.01}, 0x8825: {1: "N", 2: (1.0, 2.0, 3.0)}},
}


def _png(number: int, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (number % 256, number // 256, 9)).convert(mode).save(file, "PNG")
    return file.getvalue()


def _exif_photo(chance: random.Random) -> bytes:
    """A JPEG, PNG or WebP whose EXIF block has a few entries and then one to four faults."""
    block = Image.Exif()
    block[0x0112] = chance.randint(1, 8)
    for tag in chance.sample(sorted(EXIF_VALUES), 3):
        block[tag] = EXIF_VALUES[tag]
    raw = mutate.damage(block.tobytes(), chance)
    if chance.random() < 0.5:
        raw = b"Exif\0\0" + mutate.damage(block.tobytes().removeprefix(b"Exif\0\0"), chance)
    file = io.BytesIO()
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 9
    Image.fromarray(pixels).save(file, chance.choice(["JPEG", "PNG", "WEBP"]), exif=raw[:60_000], lossless=True)
    return file.getvalue()


def exif(home: Path) -> Target:
    """Five photos with damaged EXIF blocks beside a good one: each is read or named, the others go on."""

    def one(chance: random.Random) -> bool:
        root = home / "photos"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        (root / "good.png").write_bytes(_png(1))
        for i in range(5):
            (root / f"{i}.jpg").write_bytes(_exif_photo(chance))
        data = folder.open_folder(root, "all", size=2, channels=3, skip_bad=True)
        assert len(data) + data.recipe["num_bad"] == 6, "an image was lost without a word"
        assert folder.open_folder(root, "all", size=2, channels=3, skip_bad=True).recipe == data.recipe
        return data.recipe["num_bad"] == 0

    return one


CELEBA_IMAGES = 8
CELEBA_LAYOUTS = ("official", "kaggle", "drive", "torchvision")


def _celeba(root: Path, layout: str) -> tuple[Path, Path]:
    """A copy of CelebA in a layout that people have; its two lists."""
    places = {
        "official": ("img_align_celeba", "", ".txt"),
        "kaggle": ("img_align_celeba/img_align_celeba", "", ".csv"),
        "drive": ("Img/img_align_celeba", "Anno", ".txt"),
        "torchvision": ("celeba/img_align_celeba", "celeba", ".txt"),
    }
    images, lists, ending = places[layout]
    (root / images).mkdir(parents=True)
    (root / lists).mkdir(exist_ok=True)
    names = [f"{i + 1:06d}.jpg" for i in range(CELEBA_IMAGES)]
    for i, name in enumerate(names):
        Image.new("RGB", (9, 11), (20 * i, 9, 9)).save(root / images / name)
    comma, values = ("," if ending == ".csv" else " "), ("-1", "1")
    partition = [comma.join((name, str(min(2, i // 4)))) for i, name in enumerate(names)]
    rows = [comma.join((name, *(values[i >> k & 1] for k in range(3)))) for i, name in enumerate(names)]
    attributes = ["Bald", "Smiling", "Young"]
    if ending == ".csv":
        partition.insert(0, "image_id,partition")
        rows.insert(0, ",".join(("image_id", *attributes)))
    else:
        rows[0:0] = [str(CELEBA_IMAGES), " ".join(attributes)]
    paths = root / lists / f"list_eval_partition{ending}", root / lists / f"list_attr_celeba{ending}"
    for path, lines in zip(paths, (partition, rows), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return paths


def celeba_lists(home: Path) -> Target:
    """Damage a list in each layout: it is refused, or every image is in a split or reported as left out."""
    copies = [_celeba(home / layout, layout) for layout in CELEBA_LAYOUTS]
    genuine = [[path.read_text() for path in paths] for paths in copies]
    splits = (*datasets.SPLITS, "all")

    def one(chance: random.Random) -> bool:
        number = chance.randrange(len(copies))
        root = home / CELEBA_LAYOUTS[number]
        for path, text in zip(copies[number], genuine[number], strict=True):
            path.write_text(text)
        which = chance.randrange(2)
        raw = mutate.damage_text(genuine[number][which], chance)
        copies[number][which].write_bytes(b"\xef\xbb\xbf" * (chance.random() < 0.2) + raw)

        def read() -> None:
            counts = {}
            for split in splits:
                try:
                    data = celeba.open_celeba(root, split, size=4)
                except datasets.NoSuchSplit:
                    counts[split] = 0
                    continue
                counts[split] = len(data)
                assert data.factors([0]).shape == (1, len(data.factor_names))
                assert set(data.factors(range(len(data))).unique().tolist()) <= {0, 1}
            said = re.search(r"not listed, left out: (\d+)", data.note)
            assert counts["all"] == sum(counts[split] for split in datasets.SPLITS)
            assert counts["all"] + (int(said[1]) if said else 0) == CELEBA_IMAGES, "images were lost without a word"

        return not refused(read)

    return one


SPELLINGS = {
    "train": ["train", "Train", "TRAIN", "training", "Training", "train_images", "train2017", "trainset", "Train-Data"],
    "valid": ["val", "valid", "Validation", "VAL", "dev", "val_images", "validation_set", "Valid"],
    "test": ["test", "Test", "TESTING", "testing", "test_images", "testset", "Test-Set", "holdout"],
}
CLASSES = ["cats", "Hunde", "été", "日本", "train_station", "test tube", "a b"]
RENAMINGS = {
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "upper": str.upper,
    "same": str,
}


def _tree(root: Path, chance: random.Random) -> tuple[dict[str, str | None], int]:
    """Generate a tree of images; return the split that each image's folder names, or None, and the number of strays."""
    wrapper = "/".join(chance.sample(["data", "my set", "été", "v1.0"], chance.randrange(3)))
    style = chance.choice(["flat", "classes", "splits", "splits", "splits in classes"])
    roles = chance.sample(sorted(SPELLINGS), chance.randint(2, 3)) if style.startswith("splits") else []
    folders = {role: chance.choice(SPELLINGS[role]) for role in roles}
    classes = chance.sample(CLASSES, 2)
    made: dict[str, str | None] = {}
    for number in range(chance.randint(8, 30)):
        role = chance.choice(roles) if roles else None
        parts = [classes[number % 2]] if style != "flat" else []
        if role:
            parts.insert(len(parts) if style == "splits in classes" else 0, folders[role])
        ending = chance.choice(
            [".png", ".PNG", ".jpg", ".jpeg", ".Webp", ".bmp"]
        )  # the content decides, not the ending
        path = root.joinpath(wrapper, *parts, f"{chance.choice(['é', 'e', 'Ü'])}{number}{ending}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_png(number + 1, chance.choice(["RGB", "RGBA"])))
        made[bytes((number + 1, 0, 9)).hex()] = role
    strays = chance.randrange(4)
    for number in range(strays):
        place = root / chance.choice([wrapper, "", "extra"])
        place.mkdir(parents=True, exist_ok=True)
        (place / f"stray{number}.{chance.choice(['txt', 'png', 'json'])}").write_bytes(
            chance.choice([b"", b"text", _png(1000)])
        )
    if set(made.values()) == {"train"}:
        made = dict.fromkeys(made)  # a split folder that is alone says nothing
    return made, strays


def _rename(source: Path, target: Path, how: str) -> None:
    """The same files under other names, one folder deeper."""
    for path in source.rglob("*"):
        inside = path.relative_to(source)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts):
            stem = RENAMINGS[how](str(inside.with_suffix("")))
            other = target / f"{stem}{inside.suffix.swapcase() if how == 'upper' else inside.suffix}"
            other.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, other)


def _contents(root: Path, split: str) -> tuple[set[str], str]:
    try:
        data = folder.open_folder(root, split, size=2, channels=3, skip_bad=True)
    except datasets.NoSuchSplit:
        return set(), ""
    return {image[:, 0, 0].numpy().tobytes().hex() for image in data}, data.note


def folder_layouts(home: Path) -> Target:
    """Read a tree of images under two names of its root: no test image is trained on, and each omission is reported."""

    def one(chance: random.Random) -> bool:
        for name in ("a", "b"):
            shutil.rmtree(home / name, ignore_errors=True)
        made, _ = _tree(home / "a" / "root", chance)
        renamed = home / "b" / chance.choice(["root", "train", "test", "été", "x/y"])
        _rename(home / "a" / "root", renamed, chance.choice(sorted(RENAMINGS)))
        one_root = {split: _contents(home / "a" / "root", split) for split in (*datasets.SPLITS, "all")}
        other_root = {split: _contents(renamed, split) for split in (*datasets.SPLITS, "all")}
        for split in datasets.SPLITS:
            assert one_root[split][0] == other_root[split][0], f"{split} depends on names"
            for content in one_root[split][0] & made.keys():
                assert made[content] in (None, split), "an image is not in the split of its folder"
        assert not one_root["train"][0] & other_root["test"][0], "test images are trained on"
        used, note = one_root["all"]
        assert not made.keys() - used or "not used" in note, "images are unused without a word"
        return any(made.values())

    return one
