"""Files: writes that survive a kill or a power cut, and a reader that trusts no file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import torch

from datasets.files import open_regular

T = TypeVar("T")

TEMPORARY = ".strata.tmp"
GIB = 2**30
MOST_BYTES, MOST_ARRAYS = 256 * GIB, 64 * GIB
LARGEST_RECORD = 2**28  # bytes of a JSON file; the scores of a model with hundreds of latents take a few MB


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Write ``path`` by ``write(file)``: it holds the old content or all of the new, even after a power cut.

    The bytes go to a new file with a random name, so a planted link is replaced and never followed.

    Raises:
        OSError: from the file system, naming ``path``; the old file is untouched and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise OSError(error.errno, reason(error), str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # if the file system became read-only, it can't be removed either
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""

    def write(file: IO[bytes]) -> None:
        file.write(content)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically; characters that UTF-8 cannot encode are escaped."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write a record atomically, with null for numbers that are not finite; create the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(content), indent=1) + "\n")


def remove_leftovers(*folders: Path) -> None:
    """Remove the temporary files that a killed ``write_atomically`` left in these folders, and nothing else."""
    for folder in folders:
        for leftover in folder.glob(f".*{TEMPORARY}"):
            leftover.unlink(missing_ok=True)


def read(path: Path, parse: Callable[[IO[bytes]], T], *, remedy: str, limit: int = MOST_BYTES) -> T:
    """Read a file of unknown origin.

    Args:
        path: the file.
        parse: turns the open file into the result. Any exception from it means that the file is damaged, because
            parsers raise all kinds (zlib.error, struct.error, EOFError, MemoryError, RecursionError, ...).
        remedy: what to do if the file is damaged.
        limit: largest size in bytes.

    Raises:
        ValueError: anything went wrong; the message names file, reason and remedy. A pipe or a device is refused at
            once instead of being waited for.
    """
    with open_regular(path, limit) as file:
        try:
            return parse(file)
        except Exception as error:
            raise ValueError(f"{path} is damaged or has another format ({reason(error)}); {remedy}") from error


def reason(error: BaseException) -> str:
    """First line of an exception's message, shortened, without the "; " that separates our remedies."""
    said = error.strerror if isinstance(error, OSError) else str(error)
    return ((said or type(error).__name__).splitlines() or [""])[0][:120].replace("; ", ", ")


def read_json(
    path: Path, *, remedy: str = "delete it and run the same command again", limit: int = LARGEST_RECORD
) -> dict[str, Any]:
    """Read a record (a JSON object); errors as in :func:`read`."""

    def parse(file: IO[bytes]) -> dict[str, Any]:
        record = json.loads(file.read(limit + 1))
        if not isinstance(record, dict):
            raise ValueError("it is not a JSON object")
        return record

    return read(path, parse, remedy=remedy, limit=limit)


def read_npz(path: Path, *, remedy: str = "make it again", limit: int = MOST_ARRAYS) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of an npz of at most ``limit`` unpacked bytes, without unpickling; errors as in :func:`read`."""

    def parse(file: IO[bytes]) -> dict[str, np.ndarray[Any, Any]]:
        with zipfile.ZipFile(file) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > limit:
            raise ValueError(f"it unpacks to {unpacked:,} bytes, more than {limit:,}")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays.files}
        if not all(isinstance(value, np.ndarray) for value in content.values()):
            raise ValueError("it holds objects that are not arrays")
        return content

    return read(path, parse, remedy=remedy, limit=limit)


def read_tensors(path: Path, *, remedy: str, limit: int = MOST_BYTES) -> Any:
    """Read tensors and plain data that ``torch.save`` wrote; nothing is unpickled; errors as in :func:`read`.

    torch never compresses, so a file with compressed parts is refused: a small one may unpack to any size.
    """
    return read(path, load_tensors, remedy=remedy, limit=limit)


def load_tensors(file: IO[bytes]) -> Any:
    """Load tensors and plain data from an open file.

    Raises:
        Exception: any kind, if the file holds something else.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("its parts are compressed, which torch never does")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def sha256(path: Path) -> str:
    """Hex digest of a regular file's bytes.

    Raises:
        ValueError: it is missing, can't be read, or is not a regular file.
    """
    with open_regular(path, MOST_BYTES) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by null at any depth of a record."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
