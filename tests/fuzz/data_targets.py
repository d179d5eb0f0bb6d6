"""Fuzzed readers of data sets."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.io
from PIL import Image

from datasets import cache, celeba_lists, cifar, dsprites, folder, frey, mnist
from tests.fuzz import mutate
from tests.fuzz.ends import Target, refused


def _npz(save: Callable[..., None] = np.savez_compressed) -> bytes:
    classes = np.stack(np.unravel_index(np.arange(64), (1, *dsprites.FACTOR_SIZES)), axis=1).astype(np.int64)
    packed = io.BytesIO()
    images = dsprites.render(classes[:, 1:])
    save(packed, imgs=images, latents_classes=classes, latents_values=classes.astype(np.float64))
    return packed.getvalue()


def dsprites_npz(home: Path) -> Target:
    """The whole file is hashed first, so every damaged one must be refused, whatever it would do to the reader."""
    raw, path = _npz(), home / "d.npz"

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage(raw, chance))
        assert refused(lambda: dsprites.check_official(path)), "a file that is not the official one was taken"
        return False

    return one


def dsprites_reader(home: Path) -> Target:
    """Bypass the hash, so that damage reaches the reader; whatever it accepts is right."""
    dsprites.NUM_IMAGES = 64
    raws, path = [_npz(np.savez), _npz(np.savez_compressed)], home / "d.npz"
    classes = np.stack(np.unravel_index(np.arange(64), dsprites.FACTOR_SIZES), axis=1)
    expected = np.packbits(dsprites.render(classes).reshape(64, -1), axis=1)

    def one(chance: random.Random) -> bool:
        path.write_bytes(mutate.damage(chance.choice(raws), chance))
        rows: list[Any] = []

        def begin(shape: tuple[int, ...]) -> Callable[[Any], None]:
            assert shape == expected.shape
            return rows.append

        if refused(lambda: dsprites.pack_official(path, begin)):
            return False
        assert np.array_equal(np.concatenate(rows), expected), "other images than were put in"
        return True

    return one


def mnist_files(home: Path) -> Target:
    """One of the four files is damaged; values of pixels are covered by no checksum."""
    raw_folder = home / "MNIST" / "raw"
    raw_folder.mkdir(parents=True)
    raws = {}
    for name in ("train", "t10k"):
        pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
        raws[f"{name}-images-idx3-ubyte"] = struct.pack(">4I", 2051, 12, 28, 28) + pixels.tobytes()
        raws[f"{name}-labels-idx1-ubyte"] = struct.pack(">2I", 2049, 12) + bytes(12)

    def one(chance: random.Random) -> bool:
        for name, raw in raws.items():
            (raw_folder / name).write_bytes(raw)
        name = chance.choice(list(raws))
        (raw_folder / name).write_bytes(mutate.damage(raws[name], chance))
        split = "train" if name.startswith("train") else "test"

        def read() -> None:
            data = mnist.open_mnist(home, split, num_valid=0)
            assert data.images([0]).shape == (1, 1, 28, 28)

        return not refused(read)

    return one


def cifar10_files(home: Path) -> Target:
    """An unpacked file, or the archive with a checksum that fits: what is taken has the size and labels of records."""
    cifar.NUM_RECORDS = 3
    names = (*cifar.TRAIN_FILES, *cifar.TEST_FILES)
    content = np.random.default_rng(0).integers(0, 10, 3 * cifar.RECORD_BYTES, dtype=np.uint8).tobytes()
    packed, archive, folder = io.BytesIO(), home / cifar.ARCHIVE, home / "unpacked" / cifar.FOLDER
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(f"{cifar.FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    folder.mkdir(parents=True)
    plain = gzip.decompress(packed.getvalue())

    def one(chance: random.Random) -> bool:
        kind = chance.random()
        if kind < 0.3:
            for name in names:
                (folder / name).write_bytes(content)
            (folder / chance.choice(names)).write_bytes(mutate.damage(content, chance))
        else:
            damaged = mutate.damage(packed.getvalue(), chance) if kind < 0.6 else None
            archive.write_bytes(damaged or gzip.compress(mutate.damage(plain, chance), 1))
            cifar.SHA256 = hashlib.sha256(archive.read_bytes()).hexdigest()

        def read() -> None:
            root = home / "unpacked" if kind < 0.3 else home
            data = cifar.open_cifar10(root, chance.choice(["train", "test"]), num_valid=0)
            assert data.images([len(data) - 1]).shape == (1, 3, 32, 32)

        return not refused(read)

    return one


def frey_mat(home: Path) -> Target:
    frames = np.random.default_rng(0).integers(0, 256, (560, 1965), dtype=np.uint8)
    raws = []
    for compress in (False, True):
        file = io.BytesIO()
        scipy.io.savemat(cast(Any, file), {"ff": frames // 32, "other": np.arange(3.0)}, do_compression=compress)
        raws.append(file.getvalue())

    def one(chance: random.Random) -> bool:
        (home / frey.FILE_NAME).write_bytes(mutate.damage(chance.choice(raws), chance))
        return not refused(lambda: frey.open_frey(home, "all").images([0, 1964]))

    return one


def celeba_partition(home: Path) -> Target:
    text = "".join(f"{i:06d}.jpg {i % 3}\n" for i in range(1, 20))

    def one(chance: random.Random) -> bool:
        path = home / "p.txt"
        path.write_bytes(mutate.damage_text(text, chance))

        def read() -> None:
            assert set(celeba_lists.read_partition(path).values()) <= {0, 1, 2}

        return not refused(read)

    return one


def celeba_attributes(home: Path) -> Target:
    names = [f"{i:06d}.jpg" for i in range(1, 20)]
    rows = "".join(f"{n} {' '.join('1' if (i >> k) & 1 else '-1' for k in range(5))}\n" for i, n in enumerate(names))
    text = f"19\nBald Smiling Young Male Hat\n{rows}"

    def one(chance: random.Random) -> bool:
        path = home / "a.txt"
        path.write_bytes(mutate.damage_text(text, chance))

        def read() -> None:
            table = celeba_lists.read_attributes(path)
            assert table.values.shape == (len(table.rows), len(table.names))
            assert set(np.unique(table.values)) <= {0, 1}

        return not refused(read)

    return one


def images(home: Path) -> Target:
    """Two damaged files among three good ones, decoded as a user's folder."""
    chance = random.Random(0)
    raws: list[tuple[str, bytes]] = []
    for kind in ("jpeg", "png", "webp", "bmp"):
        for mode in ("RGB", "L") if kind != "png" else ("RGB", "L", "RGBA", "P", "LA", "I;16"):
            file = io.BytesIO()
            pixels = np.random.default_rng(1).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            picture = Image.fromarray(pixels).convert("L") if mode == "I;16" else Image.fromarray(pixels)
            exif = Image.Exif()
            exif[0x0112] = 6
            more: dict[str, Any] = {} if kind == "bmp" else {"exif": exif.tobytes()}
            picture.convert(mode).save(file, format=kind, **more)
            raws.append((kind, file.getvalue()))
    good = chance.choice([raw for kind, raw in raws if kind == "png"])

    def one(chance: random.Random) -> bool:
        where = home / "images"
        shutil.rmtree(where, ignore_errors=True)
        (where / "train").mkdir(parents=True)
        for i in range(3):
            (where / "train" / f"good{i}.png").write_bytes(good)
        for i in range(2):
            kind, raw = chance.choice(raws)
            (where / "train" / f"bad{i}.{kind}").write_bytes(mutate.damage(raw, chance))
        bad = 0

        def read() -> None:
            nonlocal bad
            data = folder.open_folder(where, "train", size=8, channels=3, skip_bad=True)
            bad = 5 - len(data)
            assert data.images([0]).shape == (1, 3, 8, 8)

        assert not refused(read), "three good images were refused for two bad ones"
        return bad == 0

    return one


def cache_meta(home: Path) -> Target:
    """The meta file or the head of the array is damaged: opened with the right rows, or built again."""
    rows = np.arange(60, dtype=np.uint8).reshape(5, 12)

    def build(begin: cache.Begin) -> dict[str, Any]:
        begin(rows.shape)(rows)
        return {}

    def open_it() -> cache.Cached:
        return cache.open_cached([home], "c", {"name": "c"}, "0123456789", build)

    open_it()
    meta, array = next(home.glob("*.json")), next(home.glob("*.npy"))
    text, raw = meta.read_text(), array.read_bytes()
    head = len(raw) - rows.size  # the rows themselves are checked with verify=True only

    def one(chance: random.Random) -> bool:
        meta.write_text(text)
        array.write_bytes(raw)
        kind = chance.random()
        if kind < 0.4:
            meta.write_bytes(mutate.damage_text(text, chance))
        elif kind < 0.7:
            meta.write_text(json.dumps(mutate.damage_tree(json.loads(text), chance)))
        else:
            array.write_bytes(mutate.damage(raw[:head], chance) + raw[head:])
        before = meta.stat().st_ino

        def read() -> None:
            assert np.array_equal(open_it().array, rows), "other rows than were put in"

        assert not refused(read), "a damaged cache was not built again"
        return meta.stat().st_ino == before

    return one
