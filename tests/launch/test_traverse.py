"""Traversals, interpolations, swaps and top-k reconstructions: against the models' own functions, and as commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig
from launch.results.pictures import TraverseConfig, axes_of, kl_map, show
from metrics import edits
from tests.launch import running
from tests.nvae.small import Images, images, small


def flat() -> FlatVAE:
    torch.manual_seed(4)
    model = FlatVAE(FlatVAEConfig(latent_dim=3, network="conv", conv_channels=4), Images(channels=1, num_bits=1))
    return model.eval()


def flat_images(num: int = 6) -> Tensor:
    return torch.randint(2, (num, 1, 16, 16), generator=torch.Generator().manual_seed(1)).float()


def config(**changes: Any) -> TraverseConfig:
    return TraverseConfig(**{"run": Path("run"), "steps": 5, "rows": 2, **changes})


def test_a_flat_traversal_decodes_the_moved_latent() -> None:
    model, x = flat(), flat_images()
    with torch.no_grad():
        rows = show(model, x, x[:2], config(by="latent", rows=1)).images
        mean = model.encode(x)[0]
        moved = int(kl_map(model, x, 0).flatten().argmax())
        for column, value in enumerate((-2.0, -1.0, 0.0, 1.0, 2.0)):
            z = mean[:1].clone()
            z[0, moved] = value
            torch.testing.assert_close(rows[0, column], model.decode([z]).mean[0], atol=1e-6, rtol=1e-5)


def test_rows_come_by_falling_kl() -> None:
    model = small().eval()
    x = images(model)
    with torch.no_grad():
        kl = kl_map(model, x, 1).sum((1, 2))
        rows = axes_of(model, x, config(group=1, rows=3))
    order = [int(axis.direction.flatten(1).sum(1).argmax()) for _, axis in rows]
    assert order == kl.argsort(descending=True).tolist()


@pytest.mark.parametrize("by", ["channel", "latent", "axis"])
def test_an_nvae_traversal_is_the_one_of_its_axis(by: Any) -> None:
    model = small().eval()
    x = images(model)
    chosen = config(by=by, group=1, below="latents")
    rows = show(model, x, x[:2], chosen).images
    with torch.no_grad():
        _, axis = axes_of(model, x, chosen)[1]
    expected = edits.traverse(model, x[:1], axis, [-2.0, -1.0, 0.0, 1.0, 2.0], "latents")[:, 0]
    torch.testing.assert_close(rows[1], expected)
    assert rows.shape == (2, 5, 3, 16, 16)


def test_interpolations_end_at_the_reconstructions() -> None:
    model, flat_model = small().eval(), flat()
    with torch.no_grad():
        for hierarchy, x, plain in (
            (model, images(model), model.reconstruct(images(model)[:2])),
            (flat_model, flat_images(), flat_model.reconstruct(flat_images()[:2])),
        ):
            row = show(hierarchy, x, x[:2], config(show="interpolate")).images[0]
            torch.testing.assert_close(row[[0, -1]], plain, atol=1e-5, rtol=1e-4)


def test_swap_shows_images_reconstructions_and_the_exchange() -> None:
    model = small().eval()
    pair = images(model)[:2]
    rows = show(model, pair, pair, config(show="swap", group=2)).images
    a, b = edits.swap(model, pair[:1], pair[1:], [2])
    torch.testing.assert_close(rows[0], pair)
    torch.testing.assert_close(rows[1], model.reconstruct(pair).detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rows[2], torch.cat([a, b]))


def test_top_keeps_more_groups_from_row_to_row() -> None:
    model = small().eval()
    x = images(model)
    rows = show(model, x, x[:2], config(show="top", steps=6)).images
    assert rows.shape == (3, 6, 3, 16, 16)
    assert (rows[0, 1:] - rows[0, 1]).abs().max() > 0  # drawn: they differ
    torch.testing.assert_close(rows[2], model.reconstruct(x[:1]).expand(6, -1, -1, -1).detach(), atol=1e-5, rtol=1e-4)


def test_what_a_model_does_not_have_is_refused() -> None:
    model, x = small().eval(), flat_images()
    with pytest.raises(ValueError, match="group 3 does not exist"):
        show(model, images(model), images(model)[:2], config(group=3))
    with pytest.raises(ValueError, match="this model has one; use"):
        show(flat(), x, x[:2], config(show="swap"))
    with pytest.raises(ValueError, match="temperature is 0"):
        show(model, images(model), images(model)[:2], config(show="top", temperature=0.0))


@pytest.mark.parametrize("changes", [{"steps": 1}, {"rows": 0}, {"range": (2.0, -2.0)}, {"range": (0.0, float("inf"))}])
def test_senseless_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; give"):
        config(**changes)


def test_commands_write_grids_and_gifs(copied: Path) -> None:
    for flags in (["--by", "axis", "--rows", 2], ["--show", "interpolate"], ["--show", "swap"], ["--show", "top"]):
        done = running.call("traverse", "--run", copied, "--steps", 3, "--images", 4, *flags)
        assert done.code == 0, done.err
    made = {path.name for path in (copied / "figures").iterdir()}
    assert {
        "traverse_g0_axis_i0.png",
        "traverse_g0_axis_i0.gif",
        "interpolate_i0-1.gif",
        "swap_g0_i0-1.png",
        "top_t0.7_i0_seed0.png",
    } <= made
    with Image.open(copied / "figures" / "traverse_g0_axis_i0.gif") as gif:
        assert gif.n_frames == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--group", 9], "group 9"),
        (["--image", 99], "no image 99"),
        (["--show", "top", "--temperature", 0], "temperature is 0"),
        (["--show", "top", "--temperature", -1], "temperature is -1"),
    ],
)
def test_bad_input_is_one_line_and_no_picture(copied: Path, flags: list[Any], word: str) -> None:
    before = sorted(copied.rglob("*"))
    running.assert_one_error(running.call("traverse", "--run", copied, *flags), word)
    assert sorted(copied.rglob("*")) == before
