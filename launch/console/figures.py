"""Grids of images and plots, as uint8 arrays [H, W, 3] for TensorBoard and as PNG files."""

from __future__ import annotations

import functools
import io
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from launch.machine.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

GAP = 2  # pixels between images
FONT_SIZE = 13
LETTERS_PER_INCH = 13  # in the title of a plot
LEAST_WIDTH = 320  # pixels of a title's lines
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [0, 1] to bytes; values that are not finite become 0."""
    return (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255.0).round().to(torch.uint8).cpu()


def _enlarge(images: Tensor) -> Tensor:
    """Enlarge small images by a whole factor, so that their pixels can be seen."""
    factor = max(1, 96 // max(images.shape[-2:]))
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def grid(
    images: Tensor,
    columns: int | None = None,
    *,
    title: str = "",
    rows: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> Picture:
    """Arrange images [N, C, H, W] in [0, 1] row by row; as square as possible by default.

    Args:
        images: the images.
        columns: number of columns.
        title: line above the grid.
        rows: label of each row, on its left.
        heads: label of each column, above it.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    shown = _enlarge(to_uint8(images if images.shape[1] in (1, 3) else images[:, :1]))
    picture = _arrange(shown, columns)
    if not (title or rows or heads):
        return picture
    return _label(picture, (shown.shape[-2] + GAP, shown.shape[-1] + GAP), title, rows, heads)


def _arrange(images: Tensor, columns: int) -> Picture:
    """Put images [N, 1 or 3, H, W] row by row on white, with gaps between and around them; a single image has none.

    Like torchvision's make_grid, whose import would delay the start of every script by three seconds.
    """
    images = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    num, height, width, _ = images.shape
    if num == 1:
        return np.asarray(images[0].contiguous())
    columns = min(columns, num)
    num_rows = math.ceil(num / columns)
    picture = np.full((num_rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (
            GAP + place * (size + GAP) for place, size in zip(divmod(i, columns), (height, width), strict=True)
        )
        picture[top : top + height, left : left + width] = image
    return picture


def _label(picture: Picture, cell: tuple[int, int], title: str, rows: Sequence[str], heads: Sequence[str]) -> Picture:
    """Write a title above a grid and a label beside each row and above each column; ``cell`` is (height, width)."""
    font = _font()
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    line = FONT_SIZE + 6
    left = max((math.ceil(pen.textlength(row, font)) + 10 for row in rows), default=0)
    lines = _wrap(title, max(left + picture.shape[1], LEAST_WIDTH) - 8, lambda text: pen.textlength(text, font))
    top = line * (len(lines) + bool(heads)) + 4
    width = max([left + picture.shape[1], *(math.ceil(pen.textlength(text, font)) + 8 for text in lines)])
    canvas = Image.new("RGB", (width, top + picture.shape[0]), "white")
    canvas.paste(Image.fromarray(picture), (left, top))
    pen = ImageDraw.Draw(canvas)
    for i, text in enumerate(lines):
        pen.text((4, 3 + i * line), text, "black", font)
    for i, text in enumerate(rows):
        pen.text((left - 5, top + int((i + 0.5) * cell[0])), text, "black", font, anchor="rm")
    for i, text in enumerate(heads):
        pen.text((left + int((i + 0.5) * cell[1]), top - line // 2), text, "black", font, anchor="mm")
    return np.asarray(canvas)


@functools.cache
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(FONT_SIZE)


def _wrap(text: str, width: float, measure: Callable[[str], float]) -> list[str]:
    """Break a text into lines that are no wider than ``width``, where its words allow it."""
    lines: list[str] = []
    for word in text.split():
        if lines and measure(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def pairs(originals: Tensor, reconstructions: Tensor, *, title: str = "") -> Picture:
    """Arrange originals above their reconstructions, eight to a row."""
    parts = list(zip(originals.split(8), reconstructions.split(8), strict=True))
    images = torch.cat([half for part in parts for half in part])
    return grid(images, min(8, len(originals)), title=title, rows=["original", "reconstruction"] * len(parts))


def save(picture: Picture, path: Path) -> Path:
    """Write a PNG atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, format="png"))
    return path


def subplots(*args: Any, size: tuple[float, float], layout: Any = None, **named: Any) -> tuple[Figure, Any]:
    """Make a figure of ``size`` inches with axes, as ``pyplot.subplots`` does, but outside pyplot, which never frees one.

    Matplotlib is imported here, because scripts that draw nothing start most of a second sooner without it.
    """
    from matplotlib.figure import Figure

    figure = Figure(size, layout=layout)
    return figure, figure.subplots(*args, **named)


def entitle(figure: Figure, title: str) -> None:
    """Write a title above a plot, so that the file can be understood on its own."""
    lines = textwrap.wrap(title, max(30, int(LETTERS_PER_INCH * figure.get_figwidth())))
    if lines:
        said = figure.text(0.5, 1.01, "\n".join(lines), ha="center", va="bottom", fontsize=10)
        said.set_parse_math(False)  # names may hold a dollar sign


def settle(figure: Figure) -> Bbox:
    """Fix the layout of a figure and return its extent in inches; this takes as long as drawing it."""
    from matplotlib import rcParams

    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # "none" would leave a placeholder, and savefig would lay it out again
    return figure.get_tightbbox().padded(rcParams["savefig.pad_inches"])


def rasterise(figure: Figure, extent: Bbox) -> Picture:
    """Draw the part of a figure that ``settle`` measured."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches=extent, pil_kwargs={"compress_level": 1})  # read at once
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))


def render(figure: Figure, title: str) -> Picture:
    """Draw a matplotlib figure below its title."""
    entitle(figure, title)
    return rasterise(figure, settle(figure))


def kl_bars(kl: Sequence[float], *, of: str = "group", title: str = "") -> Picture:
    """Draw the mean KL in nats of each group (top first) or latent as bars; ``title`` names the model."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = subplots(size=(max(4.5, 0.22 * len(kl) + 2.0), 3.0))
    axes.bar(range(len(kl)), kl, color="#4472a8")
    axes.set_xlabel(f"{of}" + (", top (coarsest) first" if of == "group" else ""))
    axes.set_ylabel("KL, nats per image")
    said = f"KL per {of}, {sum(kl):.1f} nats in total"
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return render(figure, f"{title}: {said}".removeprefix(": "))
