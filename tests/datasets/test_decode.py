"""Every photo is read, or named in an error: EXIF, bit depths, formats, stray files, and files that are not images."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_data import draw_image
from PIL import Image

import datasets
from datasets import decode, files
from datasets.decode import upright
from datasets.spec import DataError

AddImage = Callable[..., Path]
PIXELS = np.asarray(draw_image(0, 6, 4))


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes), little-endian."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3].ljust(4, b"\0") for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)


def opened(kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_followed(kind: str, value: int) -> None:
    block = Image.Exif()
    block[0x0112] = value
    turns: list[Callable[[np.ndarray], np.ndarray]] = [  # type: ignore[type-arg]
        *(lambda a: a, lambda a: a[:, ::-1], lambda a: a[::-1, ::-1], lambda a: a[::-1]),
        *(lambda a: a.swapaxes(0, 1), lambda a: np.rot90(a, -1), lambda a: np.rot90(a, -1)[:, ::-1], np.rot90),
    ]
    expected = turns[value - 1](PIXELS)
    if value == 7:
        expected = PIXELS[::-1, ::-1].swapaxes(0, 1)
    image = opened(kind, exif=block)
    assert decode.header(image) == (*expected.shape[:2], False)
    np.testing.assert_array_equal(np.asarray(upright(image, 3)), expected)


@pytest.mark.parametrize(
    "block",
    [
        exif((0x0112, 2, 2, b"6\0")),  # a text
        exif((0x0112, 5, 1, struct.pack("<I", 200))),  # a fraction beyond the end
        exif((0x0112, 3, 1, struct.pack("<H", 9))),
        exif((0x0112, 4, 0xFFFFFFFF, b"\xff" * 4)),
        exif((0x0112, 12, 1, b"\xff" * 4)),
        exif((0x0112, 3, 1, b"\6"))[:20],
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
    ],
)
def test_a_damaged_exif_block_leaves_the_image_as_it_is_stored(tmp_path: Path, block: bytes) -> None:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "JPEG", exif=block)
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    assert datasets.open_dataset("folder", tmp_path, "all").spec.height == 4


def test_depths_formats_and_palettes_are_read(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)
    Image.fromarray(levels).save(tmp_path / "a.png")
    Image.fromarray(levels).save(tmp_path / "b.tif")
    Image.fromarray((levels >> 8).astype(np.uint8)).save(tmp_path / "c.TIFF")
    Image.fromarray((levels >> 8).astype(np.uint8)).save(tmp_path / "d.gif")
    Image.fromarray((levels >> 8).astype(np.uint8)).convert("P").save(tmp_path / "e.png")
    Image.fromarray((levels >> 8).astype(np.uint8)).save(tmp_path / "f.pgm")
    (tmp_path / "notes.txt").write_text("no image")
    data = datasets.open_dataset("folder", tmp_path, "all")
    assert (len(data), data.spec.channels) == (6, 1)
    for image in data.images(range(6)).numpy():
        np.testing.assert_array_equal(image[0], levels >> 8)
    assert "1 .txt" in data.note


def test_one_stray_image_does_not_change_the_set(tmp_path: Path, add_image: AddImage) -> None:
    for i in range(40):
        add_image(tmp_path / f"{i}.png", seed=i, mode="L")
    before = datasets.open_dataset("folder", tmp_path, "all").images(range(40))
    colour = add_image(tmp_path / "stray.png", seed=99)
    data = datasets.open_dataset("folder", tmp_path, "all")
    assert data.spec.channels == 1
    assert "stray.png" in data.note
    assert "--channels 3" in data.note
    assert (data.images(range(40)) == before).all()
    colour.write_bytes(colour.read_bytes()[:-60])  # its header is whole
    assert datasets.open_dataset("folder", tmp_path, "all", skip_bad=True).spec.channels == 1
    colour.unlink()
    other = add_image(tmp_path / "large.png", seed=99, size=(30, 30), mode="L")
    with pytest.raises(DataError, match=r"--image-size.*large\.png"):
        datasets.open_dataset("folder", tmp_path, "all")
    other.write_bytes(other.read_bytes()[:-60])
    assert len(datasets.open_dataset("folder", tmp_path, "all", skip_bad=True)) == 40
    with pytest.raises(DataError, match=r"1 of 41 .*large\.png"):
        datasets.open_dataset("folder", tmp_path, "all")


def test_pipes_devices_and_oversized_files_are_named_and_never_waited_for(
    tmp_path: Path, add_image: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_image(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    with (tmp_path / "sparse.png").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("folder", tmp_path, "all")
    assert all(name in str(caught.value) for name in ("4 of 5", "pipe.png", "endless.png", "circle.png", "sparse.png"))
    assert str(tmp_path / "pipe.png") not in str(caught.value)  # the reasons do not repeat the path
    assert len(datasets.open_dataset("folder", tmp_path, "all", skip_bad=True)) == 1


@pytest.mark.parametrize("read", [files.read_bytes, lambda path, limit: files.read_text(path, limit)])
def test_only_regular_files_within_the_limit_are_read(tmp_path: Path, read: Callable[[Path, int], object]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    assert len(read(path, 8)) == 8  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at most 7"):
        read(path, 7)
    for other in (tmp_path, tmp_path / "nothing", Path("/dev/zero")):
        with pytest.raises(DataError):
            read(other, 8)
    assert files.read_text(path) == "12345678"
    path.write_bytes(b"\xef\xbb\xbfname")
    assert files.read_text(path) == "name"


def test_a_huge_image_is_refused_before_it_is_decoded(
    tmp_path: Path, add_image: AddImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_image(tmp_path / "good.png")
    add_image(tmp_path / "huge.png", size=(200, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)
    monkeypatch.setattr(decode, "upright", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"huge\.png .*40000 pixels"):
        datasets.open_dataset("folder", tmp_path, "all")


def test_folders_linked_across_are_listed_once(tmp_path: Path, add_image: AddImage) -> None:
    for name in "ab":
        add_image(tmp_path / name / f"{name}.png", seed=ord(name))
    for name, other in ("ab", "ba"):
        for i in range(12):  # followed as often as they can be: 2^12 folders
            (tmp_path / name / f"to {i}").symlink_to(tmp_path / other)
    (tmp_path / "a" / "circle").symlink_to(tmp_path / "a" / "circle")
    assert list(files.folder_files(tmp_path, (".png",)).stamps) == ["b/b.png", "a/a.png"]


def test_the_same_reason_is_reported_once(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(b"text")
    with pytest.raises(DataError) as caught:
        datasets.open_dataset("folder", tmp_path, "all")
    assert str(caught.value).count("is not a JPEG") == 1
    assert all(f"{i}.png" in str(caught.value) for i in range(5))
