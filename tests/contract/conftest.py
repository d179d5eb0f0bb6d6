"""All families, and a toy ladder VAE that is added as a user would add one: a package, a module and a script."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from launch.families import FAMILIES
from tests.contract import ladder_family, train_ladder
from tests.launch import toy


@pytest.fixture(scope="session", autouse=True)
def _ladder() -> Iterator[None]:
    """Register the ladder family, as its line in launch/families/__init__.py would, and add launch/train_ladder.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "ladder", ladder_family.FAMILY)
        patch.setitem(sys.modules, "launch.train_ladder", train_ladder)
        toy.register(patch)
        yield
