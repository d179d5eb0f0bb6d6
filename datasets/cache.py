"""Decoded images on disk: a uint8 `.npy` memory map and a checksummed JSON meta file, built once, replaced atomically.

The meta file is the commit point: it names its array file, is renamed into place last, and carries a hash of itself
and of the array's bytes. A crash leaves only temporary files, which the next build removes. A file lock, which the
kernel frees when its holder dies, keeps two processes from building at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from tqdm import tqdm

from datasets.files import open_regular, printable, read_bytes
from datasets.spec import DataError
from datasets.views import UInt8

_FORMAT = 1
_LARGEST_META = 2**28  # bytes; a million images take 20 MB
_log = logging.getLogger(__name__)

Write = Callable[[UInt8], None]
Begin = Callable[[tuple[int, ...]], Write]
Build = Callable[[Begin], dict[str, Any]]
"""A builder calls `begin(shape)` once, the returned `write(rows)` until all rows are written, and returns extra meta."""


@dataclass(frozen=True, kw_only=True)
class Cached:
    """An array opened from the cache, and its meta data."""

    array: UInt8
    meta: dict[str, Any]

    @property
    def bad(self) -> dict[str, str]:
        """Source files that could not be used, with the reasons; their rows are zeros."""
        bad: dict[str, str] = self.meta["extra"].get("bad", {})
        return bad


def cache_folders(root: Path, cache_dir: str | Path | None) -> tuple[Path, ...]:
    """List the folders that may hold caches of the data at `root`: new ones are built in the first, all are searched.

    With `cache_dir`, a folder below it. Else `.strata_cache` beside the data if that is writable, else a folder in the
    user's cache; an existing cache beside read-only data is used. Folders outside the data are named after the root, so
    that data of the same name do not displace each other.

    Raises:
        DataError: the data are read-only and the user has no home folder.
    """
    beside = root / ".strata_cache"
    if cache_dir is None and _writable(root):
        return (beside,)
    own = f"{root.resolve().name}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]}"
    if cache_dir is not None:
        return (Path(cache_dir).expanduser() / own,)
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise DataError(
            f"{root} cannot be written and this user has no home folder; name a folder for decoded images (--cache-dir)"
        ) from error
    return home / "strata" / own, beside


def _writable(folder: Path) -> bool:
    while not folder.exists():
        folder = folder.parent
    # Check the mode too: the superuser may write anywhere, but should respect a read-only folder.
    return bool(folder.stat().st_mode & 0o222) and os.access(folder, os.W_OK)


def sha256(array: UInt8) -> str:
    """SHA-256 of the bytes of an array in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def progress(total: int, what: str, unit: str) -> tqdm[NoReturn]:
    """Progress bar of a build, with few updates if it goes to a file."""
    return tqdm(total=total, desc=printable(what), unit=unit, mininterval=0.2 if sys.stderr.isatty() else 30)


def open_cached(
    folders: Sequence[Path], label: str, recipe: dict[str, Any], fingerprint: str, build: Build, verify: bool = False
) -> Cached:
    """Open the array of this recipe and these sources; build it first if it is missing, stale or damaged.

    `recipe` describes how the rows are made, `fingerprint` identifies their sources. Shape, size and the hash of the
    meta file are always checked, the SHA-256 of the array's bytes only with `verify`. The first valid cache in
    `folders` is used; a new one is built in the first folder.

    Raises:
        DataError: the disk has too little space, or the folder cannot be written.
    """
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:8]
    for folder in folders:
        cached = _open(folder / f"{label}-{key}.json", recipe, fingerprint, verify)
        if isinstance(cached, Cached):
            return cached
    meta_path = folders[0] / f"{label}-{key}.json"
    try:
        meta_path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(meta_path.with_suffix(".lock")):
            again = _open(meta_path, recipe, fingerprint, verify)  # another process may have built it meanwhile
            if isinstance(again, Cached):
                return again
            _log.info("building %s: %s", meta_path.with_suffix(".npy"), again)
            _build(meta_path, recipe, fingerprint, build)
    except OSError as error:
        raise DataError(
            f"cannot write the cache {meta_path.with_suffix('.npy')}: {error.strerror or error}; "
            "free some space there or name another folder with cache_dir"
        ) from error
    built = _open(meta_path, recipe, fingerprint, verify=False)
    if not isinstance(built, Cached):
        raise DataError(f"the cache {meta_path} cannot be read back ({built}); check the disk or use another cache_dir")
    return built


def _open(meta_path: Path, recipe: dict[str, Any], fingerprint: str, verify: bool) -> Cached | str:
    """Open a cache that passes every check, or return the reason why it does not."""
    try:
        if not meta_path.exists():
            return "there is none yet"
        meta = json.loads(read_bytes(meta_path, _LARGEST_META))
        if meta["meta_sha256"] != _meta_hash(meta):
            return "the old meta file does not match its checksum"
        path = meta_path.parent / meta["array"]
        with open_regular(path, 2**63 - 1):
            pass  # a pipe or a device under this name is not an array
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        size = path.stat().st_size
    except Exception as error:  # damaged bytes can make numpy's reader raise anything
        return f"the old cache cannot be read ({error!r})"
    if not isinstance(array, np.memmap):
        return "the old array holds no values"
    if (meta["format"], meta["recipe"], meta["fingerprint"]) != (_FORMAT, recipe, fingerprint):
        return "the recipe or the source images changed"
    if array.dtype != np.uint8 or list(array.shape) != meta["shape"] or size != meta["file_bytes"]:
        return "the old array has the wrong size"
    if not array.flags.c_contiguous or array.offset + array.nbytes != size:
        return "the header of the old array does not fit its values"
    if verify and sha256(array) != meta["sha256"]:
        return "the old array does not match its checksum"
    return Cached(array=array, meta=meta)


def _meta_hash(meta: dict[str, Any]) -> str:
    rest = {key: value for key, value in meta.items() if key != "meta_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(meta_path: Path, recipe: dict[str, Any], fingerprint: str, build: Build) -> None:
    """Write the array, then the meta file; remove older arrays of this recipe and leftovers of crashes."""
    for leftover in meta_path.parent.glob(f"{meta_path.stem}*.tmp"):
        leftover.unlink()
    array_path = meta_path.with_name(f"{meta_path.stem}-{fingerprint[:8]}.npy")
    temporary = array_path.with_suffix(".npy.tmp")
    try:
        with temporary.open("wb") as file:
            writer = _Writer(file, temporary)
            extra = build(writer.begin)
            writer.finish()
        meta = {"format": _FORMAT, "array": array_path.name, "shape": list(writer.shape), "recipe": recipe}
        meta |= {"fingerprint": fingerprint, "sha256": writer.digest.hexdigest(), "extra": extra}
        meta["file_bytes"] = temporary.stat().st_size
        temporary.rename(array_path)
        _write_text(meta_path, json.dumps(meta | {"meta_sha256": _meta_hash(meta)}, indent=1, sort_keys=True))
    finally:
        temporary.unlink(missing_ok=True)
    for older in meta_path.parent.glob(f"{meta_path.stem}-*.npy"):
        if older != array_path:
            older.unlink()  # a process that has mapped it keeps its mapping


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the renames durable
    finally:
        os.close(folder)


class _Writer:
    """Writer of rows behind an `.npy` header; it hashes them as they come and never holds the whole set in RAM."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file, self.path = file, path
        self.digest = hashlib.sha256()
        self.shape: tuple[int, ...] = ()
        self.rows = 0

    def begin(self, shape: tuple[int, ...]) -> Write:
        assert not self.shape, "begin is called once"
        needed, free = int(np.prod(shape)), shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DataError(
                f"the cache {self.path.parent} needs {needed / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; "
                "free some space there or name another folder with cache_dir"
            )
        self.shape = shape
        np.lib.format.write_array_header_1_0(self.file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        return self.write

    def write(self, rows: UInt8) -> None:
        assert rows.dtype == np.uint8, rows.dtype
        assert rows.shape[1:] == self.shape[1:], (rows.shape, self.shape)
        data = np.ascontiguousarray(rows)
        self.digest.update(data.data)
        self.file.write(data.data)
        self.rows += len(rows)

    def finish(self) -> None:
        assert self.rows == self.shape[0], (self.rows, self.shape)
        self.file.flush()
        os.fsync(self.file.fileno())
