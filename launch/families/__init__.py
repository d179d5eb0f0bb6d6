"""The model families by name; a new family needs a module here and a line below."""

from __future__ import annotations

from typing import Any

from launch.console.config import SharedConfig
from launch.families import flat_vae, nvae
from launch.families.family import Family

FAMILIES: dict[str, Family[Any]] = {family.name: family for family in (nvae.FAMILY, flat_vae.FAMILY)}


def family_of(config: SharedConfig) -> Family[Any]:
    """The family that a configuration belongs to."""
    return next(family for family in FAMILIES.values() if type(config) is family.config)
