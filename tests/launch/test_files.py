"""Files of unknown origin: reading ends at once, with their content or one kind of error."""

from __future__ import annotations

import errno
import io
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.spec import DataError
from launch.machine import files

REMEDY = "use another file"


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def _link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


def _npz_of_zeros(path: Path) -> None:
    """A terabyte by its table of contents, a few bytes on the disk."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codes.npy", b"x")
        archive.infolist()[0].file_size = 2**40


def _encrypted(path: Path) -> None:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("codes.npy", b"x")
    data = bytearray(raw.getvalue())
    for signature, flag in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flag] |= 1
    path.write_bytes(data)


def _packed_checkpoint(path: Path) -> None:
    raw = io.BytesIO()
    torch.save({"a": torch.zeros(4_000_000)}, raw)
    with zipfile.ZipFile(raw) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert path.stat().st_size < 100_000


def _no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


READERS: dict[str, Callable[..., Any]] = {
    "json": files.read_json,
    "arrays": files.read_npz,
    "tensors": files.read_tensors,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "make",
    [
        *(os.mkdir, _fifo, _socket, _link_to_zeros, _link_to_itself, _sparse, lambda path: None),
        *(_npz_of_zeros, _encrypted, _packed_checkpoint, _no_text),
    ],
)
def test_no_file_is_waited_for_or_trusted(make: Callable[[Path], None], reader: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(ValueError, match="; ") as caught:
        reader(path, remedy=REMEDY)
    assert str(path) in str(caught.value)
    assert str(caught.value).count("; ") == 1
    assert type(caught.value) in (ValueError, DataError)


@pytest.mark.parametrize("text", ["[" * 100_000, "", "[1, 2]", '{"a": NaN'])
def test_json_of_another_kind(text: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(ValueError, match=REMEDY) as caught:
        files.read_json(tmp_path / "file", remedy=REMEDY)
    assert type(caught.value) is ValueError


def test_what_is_whole_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"a": [1, "é"]}')
    assert files.read_json(path, remedy=REMEDY) == {"a": [1, "é"]}
    np.savez(tmp_path / "a.npz", codes=np.arange(3))
    assert files.read_npz(tmp_path / "a.npz", remedy=REMEDY)["codes"].tolist() == [0, 1, 2]
    torch.save({"a": torch.arange(3)}, path)
    assert files.read_tensors(path, remedy=REMEDY)["a"].tolist() == [0, 1, 2]


def test_a_limit_is_the_largest_size_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text('{"a":1}')
    assert files.read_json(path, limit=7) == {"a": 1}
    with pytest.raises(ValueError, match="7 bytes"):
        files.read_json(path, limit=6)


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "0")
    (tmp_path / f".out.0{files.TEMPORARY}").symlink_to(victim)
    with pytest.raises(FileExistsError):
        files.write_text(tmp_path / "out", "new")
    (tmp_path / "out").symlink_to(victim)
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "1")
    files.write_text(tmp_path / "out", "new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "out").read_text() == "new"
    assert not (tmp_path / "out").is_symlink()


def test_a_name_that_is_not_utf_8_can_be_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "out", os.fsdecode(b"run-\xff"))
    assert (tmp_path / "out").read_text() == "run-\\udcff"


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / f".a.1{files.TEMPORARY}", tmp_path / ".a.1.tmp"
    ours.touch()
    theirs.touch()
    files.remove_leftovers(tmp_path, tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == [theirs.name]


def test_a_refused_write_names_the_file(tmp_path: Path) -> None:
    """The system's error names no file for a failed write, and the temporary file for a failed open."""

    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for path, number in ((tmp_path / "summary.json", errno.ENOSPC), (tmp_path / "gone" / "summary.json", errno.ENOENT)):
        with pytest.raises(OSError, match=r"summary\.json") as refused:
            files.write_atomically(path, full)
        assert (refused.value.errno, refused.value.filename) == (number, str(path))
    assert list(tmp_path.iterdir()) == []
