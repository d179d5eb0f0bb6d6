"""Grids of images and plots, as uint8 arrays [H, W, 3] for TensorBoard and as PNG files."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
import torch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from launch.machine.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

matplotlib.use("agg")
Picture = np.ndarray[Any, np.dtype[np.uint8]]


def to_uint8(images: Tensor) -> Tensor:
    """Convert floats in [0, 1] to bytes; values that are not finite become 0."""
    return (images.detach().float().nan_to_num(0.0).clamp(0, 1) * 255.0).round().to(torch.uint8).cpu()


def _enlarge(images: Tensor) -> Tensor:
    """Enlarge small images by a whole factor, so that their pixels can be seen."""
    factor = max(1, 96 // max(images.shape[-2:]))
    return images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def grid(images: Tensor, columns: int | None = None) -> Picture:
    """Arrange images [N, C, H, W] in [0, 1] row by row; as square as possible by default."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    shown = _enlarge(to_uint8(images if images.shape[1] in (1, 3) else images[:, :1]))
    picture: Picture = make_grid(shown, nrow=columns, padding=2, pad_value=255).permute(1, 2, 0).numpy()
    return picture


def pairs(originals: Tensor, reconstructions: Tensor) -> Picture:
    """Arrange originals above their reconstructions, eight to a row."""
    rows = []
    for above, below in zip(originals.split(8), reconstructions.split(8), strict=True):
        rows += [above, below]
    return grid(torch.cat(rows), columns=min(8, len(originals)))


def save(picture: Picture, path: Path) -> Path:
    """Write a PNG atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: Image.fromarray(picture).save(file, format="png"))
    return path


def render(figure: Figure) -> Picture:
    """Render a matplotlib figure and close it."""
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    pyplot.close(figure)
    buffer.seek(0)
    return np.asarray(Image.open(buffer).convert("RGB"))


def kl_bars(kl: Sequence[float], *, of: str = "group", title: str | None = None) -> Picture:
    """Draw the mean KL in nats of each group (top first) or latent as bars."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(max(4.0, 0.22 * len(kl) + 2.0), 3.0))
    axes.bar(range(len(kl)), kl, color="#4472a8")
    axes.set_xlabel(f"{of}" + (", top (coarsest) first" if of == "group" else ""))
    axes.set_ylabel("KL, nats per image")
    axes.set_title(title or f"KL per {of}: {sum(kl):.1f} nats in all")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return render(figure)
