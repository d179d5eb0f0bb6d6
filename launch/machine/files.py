"""Files that survive a kill or a power cut: written whole or not at all, and read with care."""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from datasets.files import open_regular, read_bytes

LARGEST_ARRAYS = 2**36  # bytes of the arrays of an npz: 64 GiB of codes
UNREADABLE = (  # what the readers of zip and npz files raise for bytes that are not what they say
    *(ValueError, LookupError, EOFError, OSError, RuntimeError, NotImplementedError, MemoryError, TypeError),
    *(SyntaxError, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)
LARGEST_RECORD = 2**28  # bytes of a JSON file; the scores of a model with hundreds of latents take a few MB


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Let ``write(file)`` make ``path``: the old content or the whole new one, never a part, also after a power cut.

    Raises:
        OSError: from the file system; the old file is untouched and nothing else is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Atomically write a small text file."""

    def write(file: IO[bytes]) -> None:
        file.write(text.encode())

    write_atomically(path, write)


def write_json(path: Path, content: Any) -> None:
    """Atomically write a record, numbers that are not finite as null; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(content), indent=1) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a record: a JSON object in a regular file.

    Raises:
        ValueError: it is missing, damaged, too large, or holds something else.
    """
    try:
        record = json.loads(read_bytes(path, LARGEST_RECORD))
    except RecursionError as error:
        raise ValueError(f"{path} is damaged (nested too deeply); delete it and run the same command again") from error
    except ValueError as error:
        if str(path) in str(error):  # already said by the reader
            raise
        raise ValueError(f"{path} is damaged ({str(error)[:80]}); delete it and run the same command again") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} holds no record; delete it and run the same command again")
    return record


def read_npz(path: Path, limit: int = LARGEST_ARRAYS) -> dict[str, np.ndarray[Any, Any]]:
    """Read all arrays of an npz; nothing is unpickled, and no member may grow beyond the limit when it is unpacked.

    Raises:
        ValueError: it is missing, no regular file, too large, no npz, or damaged; an array holds Python objects.
    """
    with open_regular(path, limit) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                total = sum(member.file_size for member in archive.infolist())
            if total > limit:
                raise ValueError(f"its arrays take {total:,} bytes")
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except UNREADABLE as error:
            raise ValueError(f"{path} is no readable npz ({str(error)[:80]}); make it again") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value: Any) -> Any:
    """JSON has no NaN or infinity: they become null, in any depth of a record."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
