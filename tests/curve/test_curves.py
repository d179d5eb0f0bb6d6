"""A refactoring must not move the losses of a hundred steps of any family or objective."""

from __future__ import annotations

import pytest

from tests.curve import recipes

TOLERANCE = 1e-8  # kernels of other instruction sets were seen to move the curves by 1e-14


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_the_losses_are_the_stored_ones(name: str) -> None:
    losses = recipes.curve(recipes.RECIPES[name])
    expected = recipes.stored()[name]
    assert len(losses) == len(expected)
    first = next(
        (i for i, (a, b) in enumerate(zip(losses, expected, strict=True)) if a != pytest.approx(b, rel=TOLERANCE)), None
    )
    assert first is None, (
        f"the curve differs from the stored one at step {first}: {losses[first]}, not {expected[first]}"
    )


def test_the_stored_curves_tell_recipes_apart() -> None:
    """Models that learn nothing would give equal curves whatever their objective does."""
    curves = recipes.stored()
    assert curves.keys() == recipes.RECIPES.keys()
    assert len({tuple(losses) for losses in curves.values()}) == len(curves)
    assert all(losses[-1] < losses[0] for losses in curves.values())
