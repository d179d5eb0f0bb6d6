"""Fixtures of the data sets' tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from drawn_data import draw_image, make_celeba


@pytest.fixture
def celeba_root(tmp_path: Path) -> Path:
    return make_celeba(tmp_path / "celeba")


@pytest.fixture
def add_image() -> Callable[..., Path]:
    """Save a drawn image at a path, whose suffix is the format."""

    def add(path: Path, seed: int = 0, size: tuple[int, int] = (20, 12), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_image(seed, *size, mode=mode).save(path)
        return path

    return add


@pytest.fixture(scope="session")
def dsprites_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder without the official file, in which the rendered grid is cached once for all tests (0.38 GB)."""
    root = tmp_path_factory.mktemp("dsprites")
    yield root
    shutil.rmtree(root)
