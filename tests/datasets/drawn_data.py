"""Small generated data sets: plain functions, which conftest.py turns into fixtures."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

ATTRIBUTES = tuple(f"Attribute_{k}" for k in range(40))


def draw_image(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth background with a few ellipses: like a photograph, it survives JPEG and resizing."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width * 2, height * 2), tuple(rng.integers(40, 200, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(4):
        x, y, r = rng.uniform(0.3, 0.7) * 2 * width, rng.uniform(0.3, 0.7) * 2 * height, rng.uniform(0.1, 0.3) * width
        pen.ellipse((x - r, y - r, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return image.resize((width, height), Image.Resampling.BILINEAR).convert(mode)


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def make_celeba(root: Path, num: int = 20, size: tuple[int, int] = (178, 218), zipped: bool = False) -> Path:
    """The official layout with drawn images; image i is in split i % 10 -> 0..7 train, 8 valid, 9 test."""
    root.mkdir(parents=True)
    names = [f"{i + 1:06d}.jpg" for i in range(num)]
    contents = {name: jpeg(draw_image(i, *size)) for i, name in enumerate(names)}
    if zipped:
        with zipfile.ZipFile(root / "img_align_celeba.zip", "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"img_align_celeba/{name}", content)
    else:
        (root / "img_align_celeba").mkdir()
        for name, content in contents.items():
            (root / "img_align_celeba" / name).write_bytes(content)
    split = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2]
    partition = "".join(f"{name} {split[i % 10]}\n" for i, name in enumerate(names))
    (root / "list_eval_partition.txt").write_text(partition)
    rows = [" ".join([name, *("1" if (i >> k % 5) & 1 else "-1" for k in range(40))]) for i, name in enumerate(names)]
    (root / "list_attr_celeba.txt").write_text("\r\n".join([str(num), " ".join(ATTRIBUTES) + " ", *rows]) + "\r\n")
    return root
