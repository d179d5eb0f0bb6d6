"""One small run, trained once and shared by all tests that only read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.launch import running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 images of 12 x 16 pixels."""
    return running.draw(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="session")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after 16 uninterrupted steps; not to be written to."""
    run = tmp_path_factory.mktemp("trained") / "run"
    result = running.call("train_nvae", *running.flags(data, run))
    assert result.code == 0, result.err
    return run


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "copied"))
