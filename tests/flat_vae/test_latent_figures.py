from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flat_vae import FlatVAE, FlatVAEConfig
from launch.families import flat_figures
from metrics.normal import Normal
from tests.flat_vae.cases import BINARY, COLOUR, levels


@pytest.mark.parametrize("num_latents", [1, 2, 5])
def test_every_picture_of_a_run(num_latents: int) -> None:
    model = FlatVAE(FlatVAEConfig(latent_dim=num_latents, conv_channels=4), COLOUR).eval()
    pictures = flat_figures.draw(model, levels(COLOUR, 70), seed=0)
    expected = {"traversal", "kl_per_latent", "aggregate_posterior"} | ({"manifold"} if num_latents == 2 else set())
    assert pictures.keys() == expected
    for picture in pictures.values():
        assert picture.dtype == "uint8"
        assert picture.shape[2] == 3
        assert picture.std() > 0


def test_every_plot_names_its_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The title names the model even if the panels have titles."""
    titles: list[str] = []
    monkeypatch.setattr(flat_figures.figures, "entitle", lambda figure, title: titles.append(title))
    model = FlatVAE(FlatVAEConfig(latent_dim=3, conv_channels=4), COLOUR).eval()
    flat_figures.draw(model, levels(COLOUR, 8), seed=0, title="a model")
    assert len(titles) == 2
    assert all(title.startswith("a model: ") for title in titles)


@pytest.mark.parametrize("num_latents", [1, 3])
def test_a_plane_needs_two_latents(num_latents: int) -> None:
    model = FlatVAE(FlatVAEConfig(latent_dim=num_latents, conv_channels=4), BINARY)
    with pytest.raises(ValueError, match=rf"has {num_latents};.*--latent-dim 2"):
        flat_figures.manifold(model)


def test_codes_are_the_posteriors_in_order(model: FlatVAE) -> None:
    x = levels(BINARY, 70)
    with torch.no_grad():
        codes = flat_figures.encode(model, x)
        posterior = model.groups_at_means(x)[0].posterior
        kl = posterior.kl(Normal(torch.zeros(70, 4), torch.ones(70, 4)))
    torch.testing.assert_close(codes.mean, posterior.mean)
    torch.testing.assert_close(codes.kl, kl)
    ranked = codes.kl.mean(0)[codes.order]
    assert (ranked[:-1] >= ranked[1:]).all()


def test_draws_of_the_aggregate_posterior() -> None:
    means = torch.tensor([[-3.0, 0.0], [3.0, 0.0]])
    codes = flat_figures.Codes(means, torch.full((2, 2), 0.1))
    drawn = codes.draw(4000, torch.Generator().manual_seed(0))
    assert float(drawn.std(0)[0]) == pytest.approx(math.sqrt(9.01), rel=0.02)
    assert float(drawn.std(0)[1]) == pytest.approx(0.1, rel=0.05)


def test_prior_quantiles() -> None:
    quantiles = flat_figures.prior_quantiles(3)
    torch.testing.assert_close(quantiles, torch.tensor([-1.6448536, 0.0, 1.6448536]))


class _Shown(FlatVAE):
    """Decodes z to an image whose pixel is z0 on the left half and z1 on the right."""

    def decode(self, zs: object) -> object:  # type: ignore[override]
        z: Tensor = zs[0]  # type: ignore[index]
        halves = z.repeat_interleave(4, dim=1)[:, None, None, :].expand(-1, 1, 8, 8)
        return type("L", (), {"mean": halves})()


def test_the_plane_has_z0_to_the_right_and_z1_upwards(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    monkeypatch.setattr(flat_figures.figures, "grid", lambda images, columns, **labels: drawn.append(images))
    model = _Shown(FlatVAEConfig(latent_dim=2, conv_channels=4), BINARY)
    flat_figures.manifold(model, torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    assert [[float(image[0, 0, 0]), float(image[0, 0, -1])] for image in drawn[0]] == [[0, 1], [1, 1], [0, 0], [1, 0]]
