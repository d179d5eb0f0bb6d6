"""CelebA (Liu et al. 2015), aligned and cropped: faces with 40 binary attributes, from the official folder or zip."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from datasets import download as downloads
from datasets.arrays import SPLITS, ArrayDataset, Factors, check_split
from datasets.cache import Cached, cache_folders, open_cached
from datasets.celeba_lists import ATTRIBUTES, HOME, PARTITION, read_attributes, read_partition, stem
from datasets.decode import crop_and_resize, decode_all, fit_box, to_array
from datasets.files import Files, folder_files, zip_files
from datasets.recipes import rows_sha256
from datasets.spec import DataError, NoSuchSplit, check_bits, check_size
from datasets.views import Int64, UInt8, Views

FRAME = (178, 218)  # width, height of an official image
CROP = (15, 40, 163, 188)  # left, top, right, bottom: the crop of NVAE
IMAGES = "img_align_celeba"
_ENDINGS = (".jpg", ".jpeg", ".png")


def crop_box(width: int, height: int) -> tuple[float, float, float, float]:
    """Box of the face in px: `CROP` as a fraction of the frame, so that it fits any resolution of it.

    ValueError for an image whose aspect ratio is not that of the frame, to a pixel.
    """
    if abs(width - height * FRAME[0] / FRAME[1]) > 1 and abs(height - width * FRAME[1] / FRAME[0]) > 1:
        raise ValueError(f"is {width}x{height}, not of the aligned frame {FRAME[0]}:{FRAME[1]}")
    left, top, right, bottom = CROP
    return left * width / FRAME[0], top * height / FRAME[1], right * width / FRAME[0], bottom * height / FRAME[1]


class _Found(NamedTuple):
    """Paths of the parts of a copy of CelebA."""

    files: Files  # by name without ending
    partition: Path
    attributes: Path | None


def _below(root: Path, depth: int = 3) -> list[Path]:
    """List files and folders below a root, nearest first, except the content of image folders."""
    found: list[Path] = []
    level = [root]
    for _ in range(depth):
        entries = [path for folder in level for path in _entries(folder)]
        found += entries
        level = [path for path in entries if path.is_dir() and not path.name.startswith((IMAGES, "."))]
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"the folder {folder} cannot be listed ({error.strerror}); change its permissions or move it away"
        ) from error


def _list(below: list[Path], name: str) -> Path | None:
    """Find a list by its name, as text or as CSV, in upper or lower case."""
    wanted = (f"{name}.txt", f"{name}.csv", f"{name}.txt.txt")
    return next((path for path in below if path.name.lower() in wanted), None)


def _images(below: list[Path]) -> Files | None:
    """Find the images, in a folder or a zip, however deep Kaggle's copy of it nests them; by name without ending."""
    for path in below:
        if path.name.lower().startswith(IMAGES) and (path.is_dir() or path.suffix.lower() == ".zip"):
            files = folder_files(path, _ENDINGS) if path.is_dir() else zip_files(path, _ENDINGS)
            stems = {stem(name.rsplit("/", 1)[-1]): name for name in sorted(files.stamps, reverse=True)}
            paths = {short: files.paths.get(name, name) for short, name in stems.items()}
            if stems:
                stamps = {short: files.stamps[name] for short, name in stems.items()}
                return Files(where=path, stamps=stamps, paths=paths, is_zip=files.is_zip)
    return None


def _find(root: Path) -> _Found:
    """Find a copy of CelebA; DataError names what is missing and where to put it."""
    how = (
        f"put {IMAGES}/ or {IMAGES}.zip, {PARTITION}.txt and {ATTRIBUTES}.txt from {HOME} there, "
        "or name the folder that has them (--data-root)"
    )
    if not root.is_dir():
        raise DataError(f"no CelebA: there is no folder {root}; {how}")
    below = _below(root)
    partition = _list(below, PARTITION)
    if partition is None:
        raise DataError(f"no CelebA: {root} has no {PARTITION}.txt or .csv; {how}")
    files = _images(below)
    if files is None:
        there = [path for path in below if path.name.lower().startswith(IMAGES)]
        what = f"{there[0]} has no images" if there else f"{root} has neither {IMAGES}/ nor {IMAGES}.zip"
        raise DataError(f"no CelebA: {what}; {how}")
    return _Found(files, partition, _list(below, ATTRIBUTES))


def _listed(partition: dict[str, int], found: _Found, *, skip_bad: bool) -> tuple[list[str], str]:
    """Return the listed images that exist, and a note about the others.

    Raises:
        DataError: listed images are missing and `skip_bad` is off.
    """
    names = [name for name in partition if stem(name) in found.files.stamps]
    missing = [name for name in partition if stem(name) not in found.files.stamps]
    if not names or (missing and not skip_bad):
        raise DataError(
            f"{found.files.where} lacks {len(missing):,} of the {len(partition):,} images in {found.partition.name}: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; complete the copy, or use the "
            "others with skip_bad=True (--skip-bad)"
        )
    said = [f"missing listed images, left out: {len(missing):,}"] if missing else []
    if len(found.files.stamps) > len(names):
        said.append(f"images not listed, left out: {len(found.files.stamps) - len(names):,}")
    return names, "; ".join(said)


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
    """Open CelebA, cropped as for NVAE and resized to `size` (bilinear, antialiased), with 40 attributes as factors.

    Splits train, valid, test by `list_eval_partition` (official: 162,770 / 19,867 / 19,962), and all. The lists may be
    the official text files or Kaggle's CSV files, the images a folder or a zip, nested or beside the lists, and of any
    resolution of the 178:218 frame. With `skip_bad`, unreadable and missing images are left out. A `size` that is not
    square takes the centre of the square crop. `hflip` mirrors at random in split train only. `num_bits` below 8 keeps
    the highest bits: floor(x / 2^(8 - num_bits)).
    """
    check_split("celeba", split)
    check_bits(num_bits)
    height, width = check_size(size)
    if download:
        downloads.celeba(root, HOME)
    found = _find(root)
    partition = read_partition(found.partition)
    names, note = _listed(partition, found, skip_bad=skip_bad)
    factors = _Attributes.of(found.attributes, names)
    cached = _decoded(root, found.files, names, (height, width), cache_dir=cache_dir, skip_bad=skip_bad, verify=verify)
    mine = [split in ("all", SPLITS[partition[name]]) and name not in cached.bad for name in names]
    rows = np.flatnonzero(mine).astype(np.int64)
    if not len(rows):
        there = tuple(part for number, part in enumerate(SPLITS) if number in {partition[name] for name in names})
        raise NoSuchSplit(
            f"{found.partition} assigns no image to split {split}; choose one of {', '.join(there)} (--split)",
            there,
        )
    flips = hflip and split == "train"
    recipe: dict[str, Any] = {**_made(height, width), "split": split, "split_rule": f"{PARTITION}.txt"}
    recipe |= {"num_bits": num_bits, "hflip": flips, "count": len(rows), "rows_sha256": rows_sha256(rows)}
    recipe |= {"num_bad": len(cached.bad), "sha256": cached.meta["sha256"]} | ({"seed": seed} if flips else {})
    if cached.bad:
        note += f"{'; ' if note else ''}bad images left out: {len(cached.bad):,}"
    return ArrayDataset(
        name="celeba",
        array=cached.array,
        rows=rows,
        num_bits=num_bits,
        views=Views(seed=seed, hflip=flips),
        recipe=recipe,
        factor_source=factors and factors.of_rows(rows),
        no_factors=f"has no attributes, because {ATTRIBUTES}.txt is missing",
        note=note,
    )


def _made(height: int, width: int) -> dict[str, Any]:
    """Recipe of the pixels."""
    made: dict[str, Any] = {"name": "celeba", "size": [height, width], "crop": list(CROP), "frame": list(FRAME)}
    return made | {"resize": "bilinear"}


def _decoded(
    root: Path,
    files: Files,
    names: list[str],
    size: tuple[int, int],
    *,
    cache_dir: str | Path | None,
    skip_bad: bool,
    verify: bool,
) -> Cached:
    """Open the decoded faces [N, 3, H, W] in the order of the list."""
    height, width = size

    def pixels(image: Image.Image) -> UInt8:
        box = fit_box(crop_box(*image.size), height, width)
        return to_array(crop_and_resize(image.convert("RGB"), box, height, width))

    by_name = files.renamed({name: stem(name) for name in names})
    return open_cached(
        cache_folders(root, cache_dir),
        f"celeba-{height}x{width}",
        _made(height, width) | {"skip_bad": skip_bad},
        by_name.fingerprint(names),
        lambda begin: {"bad": decode_all(begin, by_name, names, (3, height, width), pixels, skip_bad)["bad"]},
        verify,
    )


class _Attributes(NamedTuple):
    """The attributes of the listed images, in their order."""

    names: tuple[str, ...]
    values: npt.NDArray[np.uint8]  # [N, K]

    @classmethod
    def of(cls, path: Path | None, names: list[str]) -> _Attributes | None:
        """Read and check the list; None without one. DataError if it lacks an image."""
        if path is None:
            return None
        table = read_attributes(path)
        places = [table.rows.get(stem(name), -1) for name in names]
        missing = [name for name, place in zip(names, places, strict=True) if place < 0]
        if missing:
            raise DataError(
                f"{path} lacks {len(missing):,} images, such as {missing[0]}; take the official file ({HOME}), "
                "or move it away to use no attributes"
            )
        return cls(table.names, table.values[places])

    def of_rows(self, rows: Int64) -> Factors:
        """The factors of a split."""
        return Factors(names=self.names, sizes=(2,) * len(self.names), load=lambda: self.values[rows])
