"""Users' files: bounded reading, and listing of folders and zips.

Every read goes through `open_regular`. A named pipe would block for ever, and /dev/zero or a sparse file would fill the
memory. So only regular files up to a stated size are read, and every failure becomes the same kind of error.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from datasets.spec import DataError

LARGEST_IMAGE_FILE = 2**28  # 256 MiB: ten times a 100-megapixel JPEG
LARGEST_TEXT_FILE = 2**28  # CelebA's attributes take 26 MB


@contextmanager
def open_regular(path: Path, limit: int) -> Iterator[io.BufferedReader]:
    """Open a regular file of at most `limit` bytes.

    Raises:
        DataError: it is missing, unreadable, larger, or not a regular file (a folder, a pipe, a device).
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to never returns.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({_reason(error)}); check that it is there and readable") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
        os.close(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a regular file; put a file there")
        raise DataError(f"{path} has {status.st_size:,} bytes; give a file of at most {limit:,}")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_bytes(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes, as `open_regular` opens it."""
    with open_regular(path, limit) as file:
        try:
            content = file.read(limit + 1)  # a file may grow while it is read
        except OSError as error:
            raise DataError(f"{path} cannot be read ({_reason(error)}); check the disk") from error
    if len(content) > limit:
        raise DataError(f"{path} has more than {limit:,} bytes; give a smaller file")
    return content


def read_text(path: Path, limit: int = LARGEST_TEXT_FILE) -> str:
    """Read a text file as UTF-8, without the byte order mark that some programs write; bad bytes become U+FFFD."""
    return read_bytes(path, limit).decode("utf-8-sig", errors="replace")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def normalised(name: str) -> str:
    """Return a name in Unicode normal form C: macOS writes é as two characters, Linux and Windows as one."""
    return unicodedata.normalize("NFC", name)


def printable(text: str) -> str:
    """Escape everything that is not printable: names may hold line ends, ESC, or bytes that are not UTF-8."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, kw_only=True)
class Files:
    """Image files by name, in a folder or in a zip."""

    where: Path
    stamps: dict[str, tuple[int, int]]
    """Signature by which a changed file is recognised: its size, and its time or CRC."""
    paths: dict[str, str] = field(default_factory=dict)
    """Path below `where` of the names that are not paths themselves."""
    others: Counter[str] = field(default_factory=Counter)
    """Number of other files by lower-case ending."""
    is_zip: bool = False

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], bytes]]:
        """Give a function that returns the bytes of a file; any number of threads may call it."""
        if not self.is_zip:
            yield lambda name: read_bytes(self.where / self.paths.get(name, name), LARGEST_IMAGE_FILE)
            return
        with zipfile.ZipFile(self.where) as archive:
            yield lambda name: _member(archive, self.paths.get(name, name))

    def renamed(self, names: dict[str, str]) -> Files:
        """Return some of the files under other names: new name -> name here."""
        return Files(
            where=self.where,
            stamps={new: self.stamps[old] for new, old in names.items()},
            paths={new: self.paths.get(old, old) for new, old in names.items()},
            is_zip=self.is_zip,
        )

    def fingerprint(self, names: Sequence[str]) -> str:
        """SHA-256 over names and stamps, in this order."""
        digest = hashlib.sha256()
        for name in names:
            size, mark = self.stamps[name]
            digest.update(f"{name}\0{size}\0{mark}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    with archive.open(name) as file:
        content = file.read(LARGEST_IMAGE_FILE + 1)  # the size stated in the archive may be wrong
    if len(content) > LARGEST_IMAGE_FILE:
        raise DataError(f"has more than {LARGEST_IMAGE_FILE:,} bytes")
    return content


def folder_files(folder: Path, suffixes: tuple[str, ...]) -> Files:
    """List the image files of a tree, by path relative to it.

    Hidden files and folders are left out. Links are followed, but each folder is listed once: links between folders
    could otherwise be followed for ever.

    Raises:
        DataError: a folder cannot be listed.
    """
    stamps: dict[str, tuple[int, int]] = {}
    others: Counter[str] = Counter()
    pending, seen = [(folder, "")], set[tuple[int, int]]()
    while pending:
        directory, prefix = pending.pop()
        try:
            status = directory.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(directory) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise DataError(
                f"the folder {directory} cannot be listed ({_reason(error)}); change its permissions or move it away"
            ) from error
        linked: list[tuple[Path, str]] = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else pending).append((Path(entry.path), f"{prefix}{entry.name}/"))
            elif entry.name.lower().endswith(suffixes):
                stamps[prefix + entry.name] = _stamp(entry)
            else:
                others[Path(entry.name).suffix.lower() or "no ending"] += 1
        pending[0:0] = linked  # last, so that a folder keeps its own name and not a link's
    return Files(where=folder, stamps=stamps, others=others)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _stamp(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return -1, -1  # a broken link is listed, so that decoding names it
    return status.st_size, status.st_mtime_ns


def zip_files(path: Path, suffixes: tuple[str, ...]) -> Files:
    """List the image files of a zip by their last name, without the folders in front of it.

    Raises:
        DataError: it is not a zip.
    """
    try:
        with open_regular(path, 2**63 - 1) as file, zipfile.ZipFile(file) as archive:
            members = [info for info in archive.infolist() if info.filename.lower().endswith(suffixes)]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a zip ({error}); download it again") from error
    named = {info.filename.rsplit("/", 1)[-1]: info for info in members if not info.filename.startswith("__MACOSX/")}
    return Files(
        where=path,
        stamps={name: (info.file_size, info.CRC) for name, info in named.items()},
        paths={name: info.filename for name, info in named.items()},
        is_zip=True,
    )
