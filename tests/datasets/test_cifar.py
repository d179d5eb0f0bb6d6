"""CIFAR-10 from the binary version, packed and unpacked; anything else is refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import datasets
from datasets import cifar, download
from datasets.spec import DataError

COUNT = 4  # images of a file


def content_of(number: int) -> bytes:
    """Records whose values say where they stand: file, image, plane, row and column."""
    image, plane, row, column = np.ogrid[:COUNT, :3, :32, :32]
    pixels = (7 * number + 50 * image + 16 * plane + 3 * row + column).astype(np.uint8).reshape(COUNT, -1)
    labels = np.arange(COUNT, dtype=np.uint8)[:, None] + 6
    return np.concatenate([labels, pixels], axis=1).tobytes()


FILES = {name: content_of(i) for i, name in enumerate((*cifar.TRAIN_FILES, *cifar.TEST_FILES))}


def pack(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for info in more:
            archive.addfile(info)
        for name, content in files.items():
            info = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def believe(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accept a small archive as the official one."""
    monkeypatch.setattr(cifar, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "NUM_RECORDS", COUNT)


@pytest.fixture(params=["packed", "unpacked"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "packed":
        pack(tmp_path / cifar.ARCHIVE, {"readme.html": b"hello", **FILES})
        believe(tmp_path / cifar.ARCHIVE, monkeypatch)
    else:
        (tmp_path / cifar.FOLDER).mkdir()
        for name, content in FILES.items():
            (tmp_path / cifar.FOLDER / name).write_bytes(content)
    return tmp_path


def test_splits_and_the_layout_of_an_image(root: Path) -> None:
    before = sorted(root.rglob("*"))
    splits = {name: datasets.open_dataset("cifar10", root, name, num_valid=3) for name in datasets.SPLITS}
    assert {name: len(data) for name, data in splits.items()} == {"train": 17, "valid": 3, "test": 4}
    spec = splits["train"].spec
    assert (spec.channels, spec.height, spec.width, spec.num_bits) == (3, 32, 32, 8)
    for split, index, file, image in (("train", 0, 0, 0), ("train", 13, 3, 1), ("valid", 2, 4, 3), ("test", 1, 5, 1)):
        plane, row, column = torch.meshgrid(torch.arange(3), torch.arange(32), torch.arange(32), indexing="ij")
        expected = (7 * file + 50 * image + 16 * plane + 3 * row + column).remainder(256)
        assert torch.equal(splits[split].images([index])[0].long(), expected), (split, index)
    assert sorted(root.rglob("*")) == before, "reading writes nothing"


def test_flips_are_of_training_only(root: Path) -> None:
    options: dict[str, Any] = {"num_valid": 3}
    flips = datasets.open_dataset("cifar10", root, hflip=True, **options).images(range(17))
    plain = datasets.open_dataset("cifar10", root, **options).images(range(17))
    mirrored = (flips == plain.flip(-1)).flatten(1).all(dim=1)
    assert 0 < int(mirrored.sum()) < 17
    assert torch.equal(flips[~mirrored], plain[~mirrored])
    test = datasets.open_dataset("cifar10", root, "test", hflip=True, num_bits=5, **options)
    assert test.recipe["hflip"] is False
    assert int(test.images(range(4)).max()) <= 31


def test_absent_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no cifar10 in .*; .*--download.*, or put cifar-10-binary\.tar\.gz"):
        datasets.open_dataset("cifar10", tmp_path)


class Attack:
    """Unpickled, this would make a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def test_the_pickled_version_is_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cifar-10-batches-py").mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        Path("cifar-10-batches-py", name).write_bytes(pickle.dumps({b"data": Attack(), "data": Attack()}))
    for split in ("train", "test"):
        with pytest.raises(DataError, match="the Python version is a pickle and is not read"):
            datasets.open_dataset("cifar10", tmp_path, split)
    assert not Path("executed").exists()


def test_an_archive_that_is_not_the_official_one_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / cifar.ARCHIVE, FILES)
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(DataError, match="is not the official archive"):
        datasets.open_dataset("cifar10", tmp_path)


def test_links_and_names_that_point_elsewhere_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with the right checksum: only regular files of the six names are read, and nothing is written."""
    (tmp_path / "secret").write_bytes(FILES["test_batch.bin"])
    root = tmp_path / "root"
    root.mkdir()
    link = tarfile.TarInfo(f"{cifar.FOLDER}/test_batch.bin")
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
    outside = tarfile.TarInfo("../outside")
    pack(root / cifar.ARCHIVE, {name: FILES[name] for name in cifar.TRAIN_FILES}, link, outside)
    believe(root / cifar.ARCHIVE, monkeypatch)
    assert len(datasets.open_dataset("cifar10", root, num_valid=3)) == 17
    with pytest.raises(DataError, match=r"cannot be unpacked .*test_batch\.bin"):
        datasets.open_dataset("cifar10", root, "test")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [cifar.ARCHIVE, "root", "secret"]


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x04" + bytes(6), b"\x1f\x8b\x08\x00" + bytes(600)])
def test_what_fuzzing_found_behind_the_hash(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile meets the end of a gzip header with a TypeError."""
    (tmp_path / cifar.ARCHIVE).write_bytes(content)
    believe(tmp_path / cifar.ARCHIVE, monkeypatch)
    with pytest.raises(DataError, match="cannot be unpacked"):
        datasets.open_dataset("cifar10", tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[:-1], r"has 12,291 bytes, not 4 records of 3,073"),
        (lambda content: content + b"\0", "has more bytes, not 4 records"),
        (lambda content: b"", "has 0 bytes"),
        (lambda content: b"\x0a" + content[1:], "has a label 10, not 0 to 9"),
    ],
)
def test_damaged_files_are_named(change: Any, words: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {**FILES, "data_batch_3.bin": change(FILES["data_batch_3.bin"])}
    if (root / cifar.FOLDER).exists():
        (root / cifar.FOLDER / "data_batch_3.bin").write_bytes(files["data_batch_3.bin"])
    else:
        pack(root / cifar.ARCHIVE, files)
        believe(root / cifar.ARCHIVE, monkeypatch)
    with pytest.raises(DataError, match=rf"data_batch_3\.bin {words}.*; download it again"):
        datasets.open_dataset("cifar10", root, num_valid=3)
    assert len(datasets.open_dataset("cifar10", root, "test")) == COUNT


def test_a_file_that_is_not_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (root / cifar.FOLDER).exists():
        (root / cifar.FOLDER / "data_batch_2.bin").unlink()
    else:
        pack(root / cifar.ARCHIVE, {name: FILES[name] for name in FILES if name != "data_batch_2.bin"})
        believe(root / cifar.ARCHIVE, monkeypatch)
    with pytest.raises(DataError, match=r"data_batch_2\.bin"):
        datasets.open_dataset("cifar10", root, num_valid=3)


def test_a_download_is_checked_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "elsewhere.tar.gz", FILES)
    asked = []

    def fetch(url: str, target: Path, check: Any) -> None:
        asked.append(url)
        check(tmp_path / "elsewhere.tar.gz")
        os.link(tmp_path / "elsewhere.tar.gz", target)

    monkeypatch.setattr(download, "fetch", fetch)
    with pytest.raises(DataError, match="is not the official archive"):
        datasets.open_dataset("cifar10", tmp_path, download=True)
    believe(tmp_path / "elsewhere.tar.gz", monkeypatch)
    assert len(datasets.open_dataset("cifar10", tmp_path, download=True, num_valid=3)) == 17
    assert len(datasets.open_dataset("cifar10", tmp_path, download=True, num_valid=3)) == 17
    assert asked == [cifar.URL] * 2, "what is there is not fetched again"
