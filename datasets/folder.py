"""Any folder of images: your own data, ImageNet 32, CelebA-HQ, FFHQ."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets.arrays import SPLITS, ArrayDataset, check_split
from datasets.cache import Begin, Cached, cache_folders, open_cached
from datasets.decode import SUFFIXES, crop_and_resize, decode_all, fit_box, to_array, upright
from datasets.files import Files, folder_files, normalised, printable
from datasets.folder_shape import Channels, survey
from datasets.folder_splits import RULES, Assignment, SplitBy, assign, copies_of_train
from datasets.labels import read_labels
from datasets.spec import DataError, NoSuchSplit, check_bits, check_size
from datasets.split_folders import describe_unused
from datasets.views import UInt8, UInt64, Views

_SUFFIXES_1 = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # in runs that were split by path


def _list(root: Path, suffixes: tuple[str, ...]) -> Files:
    how = f"put images ({', '.join(suffixes)}) there, in any sub-folders, or name another folder (--data-root)"
    if not root.is_dir():
        raise DataError(f"there is no folder {root}; {how}")
    files = folder_files(root, suffixes)
    if not files.stamps:
        raise DataError(f"the folder {root} has no images; {how}")
    return files


def _note(names: list[str], split: Assignment, files: Files, cached: Cached, copies: str) -> str:
    """Describe in one line the rule of the split, and which images are used."""
    good = [(name, role) for name, role in zip(names, split.roles, strict=True) if name not in cached.bad]
    counts = Counter(role for _, role in good)
    where = {part: ", ".join(path for path, role in split.folders.items() if role == part) for part in SPLITS}
    parts = [f"{p} {counts[p]:,}" + (f" ({where[p]})" if where[p] else "") for p in SPLITS if counts[p] or where[p]]
    unused = describe_unused([name for name, _ in good], [role for _, role in good])
    others = ", ".join(f"{count:,} {ending}" for ending, count in files.others.most_common(4))
    said = [
        f"split by {split.rule}: {', '.join(parts)}{copies}",
        f"not used: {unused}" if unused else "",
        f"bad images left out: {len(cached.bad):,}" if cached.bad else "",
        f"files of other kinds: {others}" if others else "",
        *cached.meta["extra"].get("notes", []),
    ]
    return "; ".join(part for part in said if part)


def _rows(root: Path, split: str, assignment: Assignment, usable: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Rows of a split; DataError if it has no image."""
    roles = assignment.roles
    mine = np.array([role is not None and split in ("all", role) for role in roles])
    rows = np.flatnonzero(mine & usable).astype(np.int64)
    if len(rows):
        return rows
    there = tuple(part for part in SPLITS if part in roles)
    named = f"choose one of {', '.join(there)} (--split), or " if there else ""
    raise NoSuchSplit(
        f"no image of the {len(roles)} in {root} falls into split {split} ({assignment.rule}); {named}sort the images "
        "into sub-folders train, valid and test, or split all of them by content (--split-by content)",
        there,
    )


def _decoded(
    root: Path,
    files: Files,
    names: list[str],
    made: dict[str, Any],
    *,
    size: tuple[int, int] | None,
    cache_dir: str | Path | None,
    verify: bool,
) -> Cached:
    """Open the decoded images [N, C, H, W] in the order of `names`; `made` is their recipe."""

    def build(begin: Begin) -> dict[str, Any]:
        shape, notes = survey(files, names, size, made["channels"])

        def pixels(image: Image.Image) -> UInt8:
            seen = upright(image, shape[0])
            box = fit_box((0, 0, *seen.size), shape[1], shape[2])
            return to_array(crop_and_resize(seen, box, shape[1], shape[2]))

        return decode_all(begin, files, names, shape, pixels, made["skip_bad"]) | {"notes": notes}

    label = f"folder-{size[0]}x{size[1]}" if size else "folder"
    return open_cached(cache_folders(root, cache_dir), label, made, files.fingerprint(names), build, verify)


def _content_words(cached: Cached, num_images: int) -> UInt64:
    """Return the start of each file's SHA-256, uint64 [N]; zeros in caches of version 1, which have none."""
    digits: str = cached.meta["extra"].get("contents", "0" * 16 * num_images)
    return np.frombuffer(bytes.fromhex(digits), ">u8").astype(np.uint64)


def _digest(words: UInt64) -> str:
    return hashlib.sha256(np.sort(words).astype(">u8").tobytes()).hexdigest()


def _check_choices(channels: Channels, split_by: SplitBy) -> None:
    if channels not in ("auto", 1, 3):
        raise DataError(f"channels is {channels!r}; choose auto, 1 (grey) or 3 (RGB)")
    if split_by not in ("auto", "folders", "content", "path"):
        raise DataError(f"split_by is {split_by!r}; choose auto, folders, content or path")


def open_folder(
    root: Path,
    split: str = "train",
    *,
    size: int | tuple[int, int] | None = None,
    channels: Channels = "auto",
    num_bits: int = 8,
    hflip: bool = False,
    seed: int = 0,
    split_by: SplitBy = "auto",
    labels: str | Path | None = None,
    cache_dir: str | Path | None = None,
    skip_bad: bool = False,
    verify: bool = False,
) -> ArrayDataset:
    """Open all images below `root`, at any depth (PNG, JPEG, WebP, BMP, TIFF, GIF, PPM); hidden files are left out.

    Args:
        root: the folder.
        split: train, valid, test or all.
        size: side of a square, or (height, width): each image is cropped to the largest centred box of that aspect
            ratio and resized, bilinear and antialiased. None: all images must have one size, which is kept.
        channels: 1 (grey), 3 (RGB), or "auto": grey if nearly all images are (fewer than one in 20 in colour).
        num_bits: bits of a value; below 8 the highest are kept.
        hflip: mirror at random in split train only.
        seed: seed of the mirroring.
        split_by: "folders" by sub-folders train, valid, test in any usual spelling at any level; "content" by a hash of
            each file's content (`roles_by_content`); "auto" by folders if there are any; "path" as runs recorded
            before these rules were split (`roles_by_path`).
        labels: a CSV file with a row of factors for each image (`labels.read_labels`).
        cache_dir: folder for decoded images.
        skip_bad: leave out unreadable images and record which, instead of raising an error.
        verify: check the checksum of the decoded images.

    Returns:
        The data set. EXIF orientation is applied, transparent images are composited over black, and 16-bit values are
        reduced to their upper 8 bits.

    Raises:
        DataError: there are no images, some cannot be used (all are named), or the split has none.
    """
    check_split("folder", split)
    check_bits(num_bits)
    wanted = None if size is None else check_size(size)
    _check_choices(channels, split_by)
    is_old = split_by == "path"
    files = _list(root, _SUFFIXES_1 if is_old else SUFFIXES)
    names = sorted(files.stamps) if is_old else sorted(files.stamps, key=lambda name: (normalised(name), name))
    recipe: dict[str, Any] = {"name": "folder", "size": wanted and list(wanted), "channels": channels}
    recipe |= {"resize": "bilinear"} | ({} if is_old else {"rules": RULES})
    made = recipe | {"skip_bad": skip_bad}
    cached = _decoded(root, files, names, made, size=wanted, cache_dir=cache_dir, verify=verify)
    words, usable = _content_words(cached, len(names)), np.array([name not in cached.bad for name in names])
    assignment = assign(root, names, words, split_by)
    rows = _rows(root, split, assignment, usable)
    used = [name for name, role, good in zip(names, assignment.roles, usable, strict=True) if role and good]
    factors, said = read_labels(Path(labels).expanduser(), used, [names[row] for row in rows]) if labels else (None, "")
    copies = "" if is_old else copies_of_train(words, assignment.roles, usable)
    note = _note(names, assignment, files, cached, copies)
    flips = hflip and split == "train"
    recipe |= {"split": split, "split_rule": assignment.rule, "num_bits": num_bits, "hflip": flips}
    recipe |= {"size": list(cached.array.shape[2:]), "channels": cached.array.shape[1], "count": len(rows)}
    recipe |= {"num_bad": len(cached.bad), "sha256": cached.meta["sha256"]} | ({"seed": seed} if flips else {})
    recipe |= {"source": root.resolve().name} if is_old else {"images_sha256": _digest(words[rows])}
    return ArrayDataset(
        name="folder",
        array=cached.array,
        rows=rows,
        num_bits=num_bits,
        views=Views(seed=seed, hflip=flips),
        recipe=recipe,
        factor_source=factors,
        no_factors="has no labels (give a table of them: --labels FILE.csv)",
        note=printable("; ".join(part for part in (note, said) if part)),
    )
