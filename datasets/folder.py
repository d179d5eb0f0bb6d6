"""Any folder of images: people's own data, ImageNet 32, CelebA-HQ, FFHQ."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps

from datasets.arrays import SPLITS, ArrayDataset, check_split
from datasets.cache import Begin, cache_folder, open_cached
from datasets.decode import Files, crop_and_resize, decode_all, each_image, fit_box, folder_files, refuse_bad, to_array
from datasets.spec import DataError, check_bits, check_size
from datasets.views import UInt8, UInt64, Views, hash_split

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_SPLIT_FOLDERS = {"train": "train", "valid": "valid", "val": "valid", "validation": "valid", "test": "test"}
_GREY = ("1", "L", "LA")
Channels = Literal["auto", 1, 3]


def split_names(names: list[str], split: str) -> tuple[list[str], str]:
    """Return the images of a split, and the rule: by sub-folder where one is called train, else by a hash of the name.

    Sub-folders train, valid (or val, validation) and test; what lies outside them is not used. The hash is the SHA-256
    of the path relative to the root, 90/5/5 %: images may come and go without moving others from split to split.
    """
    tops = {name.split("/", 1)[0] for name in names if "/" in name}
    if "train" in tops:
        roles = {name: _SPLIT_FOLDERS.get(name.split("/", 1)[0]) if "/" in name else None for name in names}
        return [name for name, role in roles.items() if role and split in ("all", role)], "sub-folders"
    digests = (hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names)
    words: UInt64 = np.array([int.from_bytes(digest[:8], "big") for digest in digests], np.uint64)
    roles_by_hash = (SPLITS[number] for number in hash_split(words))
    chosen = [name for name, role in zip(names, roles_by_hash, strict=True) if split in ("all", role)]
    return chosen, "hash of the path, 90/5/5"


def _header(image: Image.Image) -> tuple[int, int, bool]:
    """Height, width (as it is to be seen) and whether it is grey, without decoding."""
    turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5 to 8 lie on their side
    width, height = reversed(image.size) if turned else image.size
    return height, width, image.mode in _GREY


def _upright(image: Image.Image, channels: int) -> Image.Image:
    """Image turned as its EXIF orientation says, transparency over black, in grey or RGB; ValueError if not 8-bit."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"has mode {image.mode}, which is not 8-bit")
    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "RGBA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("L" if channels == 1 else "RGB")


def _survey(files: Files, names: list[str], size: tuple[int, int] | None, channels: Channels) -> tuple[int, int, int]:
    """Find the shape (C, H, W) that all images get, from their headers where it is not given."""
    if size is not None and channels != "auto":
        return channels, *size
    seen: Counter[tuple[int, int]] = Counter()
    all_grey = True
    bad: dict[str, str] = {}
    for headers, failed in each_image(files, names, _header, f"looking at {files.where.name}"):
        bad |= failed
        found = [header for header in headers if header is not None]
        seen.update((height, width) for height, width, _ in found)
        all_grey = all_grey and all(grey for _, _, grey in found)
    if not seen:
        refuse_bad(files.where, bad, len(names))
    if size is None and len(seen) > 1:
        sizes = ", ".join(f"{h}x{w} ({n} images)" for (h, w), n in seen.most_common(4))
        raise DataError(
            f"the images in {files.where} have {len(seen)} sizes (height x width): {sizes}"
            f"{', ...' if len(seen) > 4 else ''}; give a size, to which all are cropped and resized"
        )
    height, width = size or next(iter(seen))
    return (1 if all_grey else 3) if channels == "auto" else channels, height, width


def _list(root: Path) -> Files:
    how = f"put images ({', '.join(SUFFIXES)}) there, in any sub-folders, or name another folder (--data-root)"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {how}")
    files = folder_files(root, SUFFIXES)
    if not files.stamps:
        raise DataError(f"the folder {root} has no images; {how}")
    return files


def open_folder(
    root: Path,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    channels: Channels = "auto",
    num_bits: int = 8,
    hflip: bool = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    skip_bad: bool = False,
    verify: bool = False,
) -> ArrayDataset:
    """Open all PNG, JPEG, WebP and BMP images below `root`, at any depth; `split_names` says how they are split.

    `size` (an int is square, or (height, width)): each image is cropped to its middle of that aspect ratio and resized,
    bilinear and antialiased; None keeps the size that all images must then have. `channels` "auto" is grey (1) when all
    images are, else RGB. EXIF orientation is followed, transparency is laid over black. `hflip` mirrors at random in
    split train only. Hidden files are not looked at.
    """
    check_split("folder", split)
    check_bits(num_bits)
    wanted = None if size is None else check_size(size)
    if channels not in ("auto", 1, 3):
        raise DataError(f"channels {channels!r} makes no sense; choose auto, 1 (grey) or 3 (RGB)")
    files = _list(root)
    names = sorted(files.stamps)
    chosen, rule = split_names(names, split)

    def build(begin: Begin) -> dict[str, Any]:
        shape = _survey(files, names, wanted, channels)

        def pixels(image: Image.Image) -> UInt8:
            upright = _upright(image, shape[0])
            box = fit_box((0, 0, *upright.size), shape[1], shape[2])
            return to_array(crop_and_resize(upright, box, shape[1], shape[2]))

        return decode_all(begin, files, names, shape, pixels, skip_bad)

    recipe: dict[str, Any] = {
        "name": "folder",
        "size": wanted and list(wanted),
        "channels": channels,
        "resize": "bilinear",
    }
    label = f"folder-{wanted[0]}x{wanted[1]}" if wanted else "folder"
    cached = open_cached(
        cache_folder(root, cache_dir), label, recipe | {"skip_bad": skip_bad}, files.fingerprint(names), build, verify
    )
    row_of = {name: row for row, name in enumerate(names)}
    rows = np.array([row_of[name] for name in chosen if name not in cached.bad], np.int64)
    if not len(rows):
        raise DataError(
            f"no image of the {len(names)} in {root} falls into split {split} ({rule}); "
            "add images, or sort them into sub-folders train, valid and test"
        )
    flips = hflip and split == "train"
    recipe |= {"source": root.resolve().name, "split": split, "split_rule": rule, "num_bits": num_bits, "hflip": flips}
    recipe |= {"size": list(cached.array.shape[2:]), "channels": cached.array.shape[1], "count": len(rows)}
    recipe |= {"num_bad": len(cached.bad), "sha256": cached.meta["sha256"]} | ({"seed": seed} if flips else {})
    views = Views(seed=seed, hflip=flips)
    return ArrayDataset(name="folder", array=cached.array, rows=rows, num_bits=num_bits, views=views, recipe=recipe)
