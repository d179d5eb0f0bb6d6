"""Padding of images to a size that the model's halvings divide."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from metrics.likelihoods import ImageSpec
from nvae.config import NVAEConfig


@dataclass(frozen=True)
class Padding:
    """Black border around an image, equal on opposite sides; an odd row or column goes to the bottom or the right."""

    image_height: int
    image_width: int
    height: int
    width: int

    @classmethod
    def of(cls, config: NVAEConfig, spec: ImageSpec) -> Padding:
        """Padding to ``config.padded_size``, or by default to the next multiples of ``config.stride``."""
        stride, sizes = config.stride, (spec.height, spec.width)
        if min(sizes) < stride:
            raise ValueError(
                f"images of {spec.height} x {spec.width} pixels are smaller than this model's stride {stride} "
                f"(patch_size * 2^(preprocess_blocks + num_scales - 1)); give sides of {stride}, {2 * stride}, {3 * stride}, ... "
                f"(others from {stride} up are padded) or lower num_scales"
            )
        padded = config.padded_size or tuple(-(-size // stride) * stride for size in sizes)
        for size, target in zip(sizes, padded, strict=True):
            if target < size or target % stride:
                raise ValueError(
                    f"padded_size {padded} does not fit images of {sizes} with stride {stride}; "
                    f"give multiples of {stride} that are no smaller, or None"
                )
        return cls(spec.height, spec.width, *padded)

    @property
    def _top_left(self) -> tuple[int, int]:
        return (self.height - self.image_height) // 2, (self.width - self.image_width) // 2

    def pad(self, x: Tensor) -> Tensor:
        """Surround images by zeros: ``[B, C, image_height, image_width]`` -> ``[B, C, height, width]``."""
        top, left = self._top_left
        bottom, right = self.height - self.image_height - top, self.width - self.image_width - left
        return F.pad(x, (left, right, top, bottom)) if top + bottom + left + right else x

    def crop(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`pad`."""
        top, left = self._top_left
        return y[:, :, top : top + self.image_height, left : left + self.image_width]
