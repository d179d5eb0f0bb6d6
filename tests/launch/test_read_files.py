"""Readers of a run's own arrays: any bytes give a value or one kind of error, within bounds."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from launch.machine import files
from launch.results import importing


def test_arrays_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(3), b=np.zeros((2, 2)))
    found = files.read_npz(tmp_path / "a.npz")
    assert found.keys() == {"a", "b"}
    assert found["a"].tolist() == [0, 1, 2]


def damaged(path: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "objects":
        np.savez(path, a=np.array([{}], dtype=object))
    elif kind == "no zip":
        path.write_bytes(b"text")
    elif kind == "folder":
        path.mkdir()
    elif kind in ("lzma", "encrypted"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
            archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + bytes(50))
        raw = bytearray(path.read_bytes())
        if kind == "encrypted":
            for at in (raw.find(b"PK\x03\x04") + 6, raw.find(b"PK\x01\x02") + 8):
                raw[at] |= 1
        else:
            raw[60:70] = bytes(10)
        path.write_bytes(bytes(raw))


@pytest.mark.parametrize("kind", ["pipe", "objects", "no zip", "folder", "lzma", "encrypted", "missing"])
def test_everything_else_is_one_kind_of_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.npz"
    damaged(path, kind)
    with pytest.raises(ValueError, match=r"a\.npz"):
        files.read_npz(path)


def test_arrays_that_unpack_to_too_much_are_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(10_000))
    with pytest.raises(ValueError, match="80,"):
        files.read_npz(tmp_path / "a.npz", limit=20_000)


def test_a_compressed_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(ValueError, match="compressed"):
        importing.read(tmp_path / "c.pt")
