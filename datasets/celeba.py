"""CelebA (Liu et al. 2015), aligned and cropped: faces with 40 binary attributes, from the official folder or zip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets import download as downloads
from datasets.arrays import SPLITS, ArrayDataset, Factors, check_split
from datasets.cache import cache_folder, open_cached
from datasets.decode import Files, crop_and_resize, decode_all, fit_box, folder_files, to_array, zip_files
from datasets.spec import DataError, check_bits, check_size
from datasets.views import Int64, UInt8, Views

FRAME = (178, 218)  # width, height of an official image
CROP = (15, 40, 163, 188)  # left, top, right, bottom: the face, as NVAE cuts it
HOME = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
PARTITION, ATTRIBUTES, IMAGES = "list_eval_partition.txt", "list_attr_celeba.txt", "img_align_celeba"


def crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Box of the face in px: `CROP` as a fraction of the frame, so that it fits any resolution of it.

    ValueError for an image that has not the aspect ratio of the frame, to a pixel.
    """
    if abs(width - height * FRAME[0] / FRAME[1]) > 1 and abs(height - width * FRAME[1] / FRAME[0]) > 1:
        raise ValueError(f"is {width}x{height}, not of the aligned frame {FRAME[0]}:{FRAME[1]}")
    left, top, right, bottom = CROP
    return left * width / FRAME[0], top * height / FRAME[1], right * width / FRAME[0], bottom * height / FRAME[1]


def read_partition(path: Path) -> dict[str, int]:
    """Read `list_eval_partition.txt`: file name -> 0 train, 1 valid, 2 test. DataError names a wrong line."""
    splits: dict[str, int] = {}
    for number, line in enumerate(_text(path).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2") or words[0] in splits:
            why = "is listed twice" if words[0] in splits else "should read: <file name> <0, 1 or 2>"
            raise DataError(f"{path} line {number}: {line.strip()[:60]!r} {why}; take the official file ({HOME})")
        splits[words[0]] = int(words[1])
    if not splits:
        raise DataError(f"{path} is empty; take the official file ({HOME})")
    return splits


def read_attributes(path: Path, names: list[str]) -> npt.NDArray[np.uint8]:
    """Read `list_attr_celeba.txt` for these images: uint8 {0, 1} [N, K]. DataError names a wrong line."""
    wanted = {name: row for row, name in enumerate(names)}
    columns = len(attribute_names(path))
    table = np.full((len(names), columns), 255, np.uint8)
    for number, line in enumerate(_text(path).splitlines(), start=1):
        name, *values = line.split() or [""]
        if number <= 2 or name not in wanted:
            continue
        if len(values) != columns or not set(values) <= {"1", "-1"}:
            raise DataError(
                f"{path} line {number}: {name} should have {columns} values of 1 or -1; take the official file ({HOME})"
            )
        table[wanted[name]] = [value == "1" for value in values]
    missing = [name for name, row in wanted.items() if table[row, 0] == 255]
    if missing:
        raise DataError(f"{path} lacks {len(missing)} images, such as {missing[0]}; take the official file ({HOME})")
    return table


def attribute_names(path: Path) -> tuple[str, ...]:
    """Names of the attributes: the second line of `list_attr_celeba.txt`."""
    with path.open(encoding="utf-8", errors="replace") as file:
        file.readline()
        names = tuple(file.readline().split())
    if not names:
        raise DataError(f"{path} line 2: no names of attributes; take the official file ({HOME})")
    return names


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _find(root: Path) -> Files:
    """Find the images; DataError says what is missing and where to put it."""
    how = (
        f"put {IMAGES}/ or {IMAGES}.zip, {PARTITION} and {ATTRIBUTES} from {HOME} there, "
        "or name the folder that has them (--data-root)"
    )
    if not root.is_dir():
        raise DataError(f"no CelebA: there is no folder {root}; {how}")
    if not (root / PARTITION).is_file():
        raise DataError(f"no CelebA: {root} has no {PARTITION}; {how}")
    if (root / IMAGES).is_dir():
        files = folder_files(root / IMAGES, (".jpg", ".png"))
    elif (root / f"{IMAGES}.zip").is_file():
        files = zip_files(root / f"{IMAGES}.zip", f"{IMAGES}/")
    else:
        raise DataError(f"no CelebA: {root} has neither {IMAGES}/ nor {IMAGES}.zip; {how}")
    if not files.stamps:
        raise DataError(f"no CelebA: {files.where} has no images; {how}")
    return files


def _require(names: list[str], files: Files) -> None:
    """Refuse a copy that lacks images."""
    missing = [name for name in names if name not in files.stamps]
    if missing:
        raise DataError(
            f"{files.where} lacks {len(missing)} of the {len(names)} images in {PARTITION}: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}; unpack {IMAGES}.zip again"
        )


def open_celeba(
    root: Path,
    split: str = "train",
    *,
    size: int | tuple[int, int] = 64,
    num_bits: int = 8,
    hflip: bool = False,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    skip_bad: bool = False,
    download: bool = False,
    verify: bool = False,
) -> ArrayDataset:
    """Open CelebA: the face cut out as NVAE does, resized (bilinear, antialiased) to `size`, 40 attributes as factors.

    Splits train, valid, test by `list_eval_partition.txt` (official: 162,770 / 19,867 / 19,962), and all. Images of any
    resolution of the 178:218 frame will do. A `size` that is not square takes the middle of the square crop. `hflip`
    mirrors at random in split train only. `num_bits` below 8 keeps the highest bits: floor(x / 2^(8 - num_bits)).
    """
    check_split("celeba", split)
    check_bits(num_bits)
    height, width = check_size(size)
    if download:
        downloads.celeba(root, HOME)
    files = _find(root)
    partition = read_partition(root / PARTITION)
    names = list(partition)
    _require(names, files)

    def pixels(image: Image.Image) -> UInt8:
        box = fit_box(crop_box(*image.size), height, width)
        return to_array(crop_and_resize(image.convert("RGB"), box, height, width))

    recipe: dict[str, Any] = {"name": "celeba", "size": [height, width], "crop": list(CROP), "frame": list(FRAME)}
    recipe |= {"resize": "bilinear"}
    cached = open_cached(
        cache_folder(root, cache_dir),
        f"celeba-{height}x{width}",
        recipe | {"skip_bad": skip_bad},
        files.fingerprint(names),
        lambda begin: decode_all(begin, files, names, (3, height, width), pixels, skip_bad),
        verify,
    )
    rows = np.array(
        [row for row, name in enumerate(names) if split in ("all", SPLITS[partition[name]]) and name not in cached.bad],
        np.int64,
    )
    if not len(rows):
        raise DataError(f"{root / PARTITION} puts no image in split {split}; choose another split")
    flips = hflip and split == "train"
    recipe |= {"split": split, "split_rule": PARTITION, "num_bits": num_bits, "hflip": flips, "count": len(rows)}
    recipe |= {"num_bad": len(cached.bad), "sha256": cached.meta["sha256"]} | ({"seed": seed} if flips else {})
    return ArrayDataset(
        name="celeba",
        array=cached.array,
        rows=rows,
        num_bits=num_bits,
        views=Views(seed=seed, hflip=flips),
        recipe=recipe,
        factor_source=_factors(root / ATTRIBUTES, names, rows),
        no_factors=f"has no attributes, for {root / ATTRIBUTES} is missing",
    )


def _factors(path: Path, names: list[str], rows: Int64) -> Factors | None:
    if not path.is_file():
        return None
    attributes = attribute_names(path)
    chosen = [names[row] for row in rows]
    return Factors(names=attributes, sizes=(2,) * len(attributes), load=lambda: read_attributes(path, chosen))
