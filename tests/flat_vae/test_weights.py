from __future__ import annotations

import pytest

from datasets import ImageSpec
from flat_vae import ObjectiveConfig, betas, describe
from flat_vae.objectives import OBJECTIVES

FREY = ImageSpec(channels=1, height=28, width=20, num_bits=8)


def test_normalised_beta_is_beta_times_latents_over_pixels() -> None:
    # Higgins et al. 2017: beta_norm = beta M / N; 4 * 10 / 560 and 4 / 560 by hand
    forms = betas(ObjectiveConfig(objective="beta", beta=4.0), FREY, 10)
    assert (forms.beta, forms.beta_norm, forms.beta_pixel_mean) == pytest.approx((4.0, 0.0714285714, 0.0071428571))


@pytest.mark.parametrize("form", ["beta", "beta_norm", "beta_pixel_mean"])
def test_the_three_forms_are_one_weight(form: str) -> None:
    expected = betas(ObjectiveConfig(objective="tc", beta=2.5), FREY, 3)
    again = betas(ObjectiveConfig(objective="tc", **{form: getattr(expected, form)}), FREY, 3)  # type: ignore[arg-type]
    assert vars(again) == pytest.approx(vars(expected))


def test_the_thesis_convention() -> None:
    # the ELBO is at beta-pixel-mean 1/560 on Frey Faces
    assert betas(ObjectiveConfig(objective="beta", beta_pixel_mean=1 / 560), FREY, 2).beta == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            {"objective": "beta", "beta": 1.0, "beta_norm": 1.0},
            "--beta and --beta-norm are forms of one weight; give one",
        ),
        (
            {"objective": "vae", "beta": 4.0},
            "--beta does nothing for objective vae; .* --objective beta or tc or grouped",
        ),
        ({"objective": "factor", "beta_norm": 4.0}, "--beta-norm does nothing for objective factor"),
        ({"objective": "beta", "gamma": 1.0}, "--objective capacity or tc or factor"),
        ({"objective": "beta", "beta": -1.0}, "--beta is -1.0; give 0 or a positive number"),
        ({"objective": "beta", "beta": float("nan")}, "--beta is nan"),
        ({"objective": "capacity", "capacity_warmup": 2.0}, "--capacity-warmup is 2.0; give a fraction of the run"),
        ({"objective": "dip", "dip": "iii"}, "choose one of i, ii"),
        ({"objective": "grouped", "latent_groups": (3, 0)}, "--latent-groups"),
        ({"objective": "wae"}, "objective is 'wae'; choose one of ae, denoising"),
    ],
)
def test_contradictions_are_named(typed: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ObjectiveConfig(**typed)  # type: ignore[arg-type]


def test_resolved_fills_in_what_is_used_and_nothing_else() -> None:
    for objective, row in OBJECTIVES.items():
        resolved = ObjectiveConfig(objective=objective).resolved()  # type: ignore[arg-type]
        typed = resolved.typed()
        assert typed.keys() <= row.defaults.keys()
        assert all(value is None or name in typed for name, value in row.defaults.items())
        assert resolved.resolved() == resolved
    assert ObjectiveConfig(objective="beta", beta_norm=0.1).resolved().beta is None


def test_dip_weights_of_the_diagonal() -> None:
    assert ObjectiveConfig(objective="dip", lambda_od=3.0).resolved().lambda_d == 30.0
    assert ObjectiveConfig(objective="dip", dip="ii", lambda_od=3.0).resolved().lambda_d == 3.0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_says_its_loss_in_a_line(objective: str) -> None:
    line = describe(ObjectiveConfig(objective=objective), FREY, 4)  # type: ignore[arg-type]
    assert line.startswith(objective)
    assert "None" not in line
    assert ("beta-norm" in line) == ("beta" in OBJECTIVES[objective].defaults)
