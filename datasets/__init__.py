"""Data sets: uint8 images by index from decoded caches, and batches of indices that resume anywhere."""

from datasets import dsprites, recipes, resident
from datasets.arrays import SPLITS, Dataset, with_seed
from datasets.batches import Batches
from datasets.loader import Batch, Loader
from datasets.registry import NAMES, default_root, open_dataset, option_names, prepare
from datasets.spec import DataError, ImageSpec, NoSuchSplit, to_float
from datasets.subset import Subset, choose_rows

__all__ = [
    "NAMES",
    "SPLITS",
    "Batch",
    "Batches",
    "DataError",
    "Dataset",
    "ImageSpec",
    "Loader",
    "NoSuchSplit",
    "Subset",
    "choose_rows",
    "default_root",
    "dsprites",
    "open_dataset",
    "option_names",
    "prepare",
    "recipes",
    "resident",
    "to_float",
    "with_seed",
]
