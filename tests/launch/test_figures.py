"""Grids of images and their labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from launch.console import figures


def test_labels_stand_around_a_grid_and_leave_its_pixels_alone() -> None:
    images = torch.rand(6, 3, 96, 96)
    plain = figures.grid(images, 3)
    labels = {"rows": ["original", "reconstruction"], "heads": ["a", "b", "c"]}
    picture = figures.grid(images, 3, title="NVAE tiny on dsprites: images", **labels)
    height, width, _ = plain.shape
    left = picture.shape[1] - width
    assert left > 0
    np.testing.assert_array_equal(picture[-height:, left:], plain)
    assert (picture[: picture.shape[0] - height] < 128).any()  # ink above
    assert (picture[-height:, : left - 1] < 128).any()  # ink on the left
    assert (picture[-1] == 255).all()  # opaque white paper, on any page


def test_a_long_title_is_broken_where_the_picture_ends() -> None:
    picture = figures.grid(torch.rand(1, 1, 8, 8), title="word " * 40)
    assert picture.shape[1] <= figures.LEAST_WIDTH
    assert picture.shape[0] > figures.grid(torch.rand(1, 1, 8, 8), title="word").shape[0]


def test_pairs_say_which_row_is_the_original() -> None:
    x = torch.rand(9, 1, 8, 8)
    plain, labelled = figures.grid(torch.cat([x[:8], x[:8]]), 8), figures.pairs(x, x)
    assert labelled.shape[1] > plain.shape[1]


def test_a_title_stands_above_a_plot_and_is_no_formula() -> None:
    def plot(title: str) -> figures.Picture:
        figure, axes = figures.subplots(size=(3.0, 2.0))
        axes.plot([0, 1])
        return figures.render(figure, title)

    plain, entitled = plot(""), plot("costs $x of a model $y " * 4)
    above = entitled.shape[0] - plain.shape[0]
    assert above > 0
    assert (entitled[:above] < 128).any()


@pytest.mark.parametrize(("num", "channels", "columns"), [(1, 3, 1), (1, 1, 1), (2, 3, 4), (7, 1, 3), (6, 3, 3)])
def test_a_grid_is_torchvisions(num: int, channels: int, columns: int) -> None:
    x = torch.rand(num, channels, 100, 97)  # large enough to stay as they are
    expected = make_grid(figures.to_uint8(x), nrow=columns, padding=figures.GAP, pad_value=255).permute(1, 2, 0)
    np.testing.assert_array_equal(figures.grid(x, columns), expected)
