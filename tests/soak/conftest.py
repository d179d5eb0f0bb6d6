"""The images that the soaks train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import running


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return running.draw(tmp_path_factory.mktemp("data") / "images")
