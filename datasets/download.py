"""Downloads: a file is verified before it is renamed into place, and errors explain how to get it by hand."""

from __future__ import annotations

import hashlib
import importlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from datasets.spec import DataError

_MOST_BYTES = 2**31  # the largest file is 170 MB


def fetch(url: str, target: Path, check: Callable[[Path], None]) -> None:
    """Download a file; `check` raises DataError for wrong content, and only a valid file gets its name."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with urllib.request.urlopen(url, timeout=60) as source, temporary.open("wb") as file:
            _copy(source, file, url)
        check(temporary)
        temporary.rename(target)
    except (urllib.error.URLError, OSError) as error:
        raise DataError(f"cannot download {url} ({error}); get it by hand and save it as {target}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _copy(source: BinaryIO, target: BinaryIO, url: str) -> None:
    """Copy at most `_MOST_BYTES`, because a faulty server may send without end."""
    total = 0
    while block := source.read(2**20):
        total += len(block)
        if total > _MOST_BYTES:
            raise DataError(f"{url} sends more than {_MOST_BYTES:,} bytes; get it by hand")
        target.write(block)


def celeba(root: Path, home: str) -> None:
    """Download CelebA's zip and text files with gdown if it is installed; else raise an error with instructions."""
    wanted = ("img_align_celeba.zip", "list_eval_partition.txt", "list_attr_celeba.txt")
    by_hand = f"get {', '.join(wanted)} from {home} and put them into {root}"
    try:
        gdown = importlib.import_module("gdown")
    except ImportError as error:
        raise DataError(f"downloading CelebA needs gdown (pip install gdown); or {by_hand}") from error
    from torchvision.datasets import CelebA  # knows the addresses and checksums

    root.mkdir(parents=True, exist_ok=True)
    for file_id, md5, name in CelebA.file_list:
        target = root / name
        if name not in wanted or target.exists():
            continue
        temporary = target.with_name(f".{name}.{os.getpid()}.tmp")
        try:
            gdown.download(id=file_id, output=str(temporary))
            if not temporary.exists() or _md5(temporary) != md5:
                raise DataError(f"Google gave no valid {name} (its quota is often used up); {by_hand}")
            temporary.rename(target)
        finally:
            temporary.unlink(missing_ok=True)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
