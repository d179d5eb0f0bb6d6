"""The reader behind the hash of the official dSprites file: damage that fuzzing found, and attacks.

Nine damaged files in ten ended in a traceback of zipfile, zlib or tokenize, and one was read as other images.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datasets import dsprites
from datasets.spec import DataError

COUNT = 64
FACTORS = np.stack(np.unravel_index(np.arange(COUNT), dsprites.FACTOR_SIZES), axis=1)
CLASSES = np.concatenate([np.zeros((COUNT, 1), np.int64), FACTORS], axis=1)
IMAGES = dsprites.render(FACTORS)


class Attack:
    """Unpickled, this would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole file, which is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dsprites, "NUM_IMAGES", COUNT)
    save(tmp_path / "d.npz")
    packed = pack(tmp_path / "d.npz")
    np.testing.assert_array_equal(np.unpackbits(packed, axis=1).reshape(-1, 64, 64), IMAGES)
    return tmp_path / "d.npz"


def save(path: Path, **changed: Any) -> None:
    np.savez(path, **{"imgs": IMAGES, "latents_classes": CLASSES, **changed})


def pack(path: Path) -> np.ndarray:
    rows: list[np.ndarray] = []
    dsprites.pack_official(path, lambda shape: rows.append)
    return np.concatenate(rows)


@pytest.mark.parametrize(
    "changed",
    [
        {"imgs": np.array([Attack()] * COUNT, dtype=object)},
        {"latents_classes": np.array([[Attack()] * 6] * COUNT, dtype=object)},
        {"imgs": IMAGES[:-1]},
        {"imgs": np.concatenate([IMAGES, IMAGES[:1]])},
        {"imgs": IMAGES.astype(np.int16)},
        {"imgs": np.asfortranarray(IMAGES)},
        {"imgs": IMAGES.reshape(COUNT, 4096)},
        {"latents_classes": CLASSES[::-1]},
        {"latents_classes": CLASSES + 90},
        {"latents_classes": CLASSES[:, 1:]},
    ],
)
def test_other_arrays_are_refused(changed: dict[str, Any], path: Path) -> None:
    save(path, **changed)
    with pytest.raises(DataError, match="download it again"):
        pack(path)
    assert not Path("executed").exists()


def _flip(raw: bytes) -> bytes:
    at = raw.index(IMAGES[0].tobytes())  # the arrays are stored as they are
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda raw: b"", lambda raw: raw[: len(raw) // 2], lambda raw: raw[:-8], _flip, lambda raw: raw[9:]]
)
def test_damaged_bytes_are_refused(damage: Callable[[bytes], bytes], path: Path) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="download it again"):
        pack(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda npy: npy.replace(b"64), }", b"64 , }", 1),
        lambda npy: npy + b"more",
        lambda npy: npy[:-1],
        lambda npy: b"\x93NUMPY\x02\x00" + npy[8:],
        lambda npy: None,
    ],
)
def test_damaged_members_are_refused(change: Callable[[bytes], bytes | None], path: Path) -> None:
    """The checksums match the damaged members."""
    _rewrite(path, lambda name, npy: change(npy) if name == "imgs.npy" else npy)
    with pytest.raises(DataError, match=r"imgs cannot be read .*download it again"):
        pack(path)


def test_compressions_that_take_memory_are_refused(path: Path) -> None:
    _rewrite(path, lambda name, npy: npy, zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="that NumPy does not write"):
        pack(path)
    _rewrite(path, lambda name, npy: npy, zipfile.ZIP_DEFLATED)
    assert len(pack(path)) == COUNT


def _rewrite(path: Path, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: change(name, archive.read(name)) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, npy in members.items():
            if npy is not None:
                archive.writestr(name, npy)
