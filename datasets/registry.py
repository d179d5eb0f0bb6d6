"""Data sets by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.arrays import SPLITS, Dataset
from datasets.celeba import open_celeba
from datasets.cifar import open_cifar10
from datasets.dsprites import open_dsprites
from datasets.folder import open_folder
from datasets.frey import open_frey
from datasets.mnist import open_mnist
from datasets.spec import DataError, NoSuchSplit

_OPENERS: dict[str, Callable[..., Dataset]] = {
    "celeba": open_celeba,
    "frey": open_frey,
    "dsprites": open_dsprites,
    "folder": open_folder,
    "mnist": open_mnist,
    "cifar10": open_cifar10,
}
NAMES = tuple(_OPENERS)


def default_root(name: str) -> Path:
    """Default folder of a data set: `data/<name>` in the checkout."""
    return Path(__file__).resolve().parents[1] / "data" / name


def _opener(name: str) -> Callable[..., Dataset]:
    if name not in _OPENERS:
        near = difflib.get_close_matches(name.lower(), NAMES, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else "use folder for your own images."
        raise DataError(f"no data set is called {name!r}; {hint} There are {', '.join(NAMES)}")
    return _OPENERS[name]


def option_names(name: str) -> tuple[str, ...]:
    """Options of a data set besides root and split."""
    return tuple(inspect.signature(_opener(name)).parameters)[2:]


def open_dataset(name: str, root: str | Path | None = None, split: str = "train", **options: Any) -> Dataset:
    """Open a split (train, valid, test; most also have all) of a data set, building its cache first if needed.

    `root` is the folder with the data (default `data/<name>` in the checkout); `options` are those of the data set's
    own function, such as `datasets.celeba.open_celeba`.

    Raises:
        DataError: the name, split or option is unknown, data are missing, or images cannot be used (all are named).
    """
    opener = _opener(name)
    taken = option_names(name)
    for option in options:
        if option not in taken:
            near = difflib.get_close_matches(option, taken, n=1)
            hint = f"did you mean {near[0]}? It" if near else "it"
            raise DataError(f"{name} has no option {option!r}; {hint} takes {', '.join(taken)}")
    return opener(default_root(name) if root is None else Path(root).expanduser(), split, **options)


def prepare(name: str, root: str | Path | None = None, **options: Any) -> dict[str, Dataset]:
    """Open every split that has images, with caches built and their checksums verified; the data sets by split.

    Raises:
        DataError: as `open_dataset`; no split has images.
    """
    more = {"verify": True} if "verify" in option_names(name) else {}
    opened: dict[str, Dataset] = {}
    missing: NoSuchSplit | None = None
    for split in SPLITS:
        try:
            opened[split] = open_dataset(name, root, split, **options, **more)
        except NoSuchSplit as error:
            missing = error
        more = {}  # once is enough, because all splits are rows of one array
    if missing is not None and not opened:
        raise missing
    return opened
