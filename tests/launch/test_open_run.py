"""Run folders opened from Python, and the examples of docs/python.md."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.spec import ImageSpec
from launch.results import open_run
from tests.conftest import ROOT
from tests.launch import toy

STORED = ROOT / "tests" / "fixtures" / "runs"


@pytest.fixture(autouse=True)
def _data(monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)


@pytest.mark.parametrize("name", ["nvae", "flat"])
def test_a_run_encodes_reconstructs_and_samples(name: str) -> None:
    run = open_run(str(STORED / name))
    assert (run.step, run.folder, run.config.run.seed) == (16, STORED / name, 0)
    assert run.spec == run.model.spec
    assert not run.model.training  # type: ignore[attr-defined]
    images = run.data("test").images(range(5))
    codes = run.encode(images)
    with torch.no_grad():
        expected = run.model.encode(images.float())
    assert [tuple(code.shape) for code in codes] == [(5, *shape) for shape in run.model.group_shapes]
    for code, one in zip(codes, expected, strict=True):
        torch.testing.assert_close(code, one)
    assert run.reconstruct(images).shape == images.shape
    drawn = run.sample(70, temperature=0.7, seed=3)
    assert drawn.shape == (70, *images.shape[1:])
    torch.testing.assert_close(drawn, run.sample(70, temperature=0.7, seed=3), rtol=0, atol=0)
    assert not torch.equal(drawn, run.sample(70, temperature=0.7, seed=4))


def test_levels_floats_and_arrays_are_the_same_images() -> None:
    run = open_run(STORED / "flat")
    levels = run.data("valid").images(range(3))
    (expected,) = run.encode(levels)
    others: list[Any] = [levels.float(), levels.numpy(), levels.double().numpy()]
    for other in others:
        torch.testing.assert_close(run.encode(other)[0], expected)


@pytest.mark.parametrize(
    ("images", "word"),
    [
        (torch.zeros(1, 1, 8, 8), "[N, 1, 16, 16]"),
        (torch.zeros(1, 16, 16), "[N, 1, 16, 16]"),
        (torch.zeros(0, 1, 16, 16), "at least one"),
        (torch.zeros(1, 1, 16, 16, dtype=torch.int64), "uint8"),
        (torch.full((1, 1, 16, 16), 255, dtype=torch.uint8), "255"),
        (torch.full((1, 1, 16, 16), 1.5), "1.5"),
        (np.full((1, 1, 16, 16), np.nan), "nan"),
    ],
)
def test_images_that_the_model_does_not_take_are_named(images: Any, word: str) -> None:
    with pytest.raises(ValueError, match=re.escape(word)):
        open_run(STORED / "flat").encode(images)


def test_averaged_weights_are_the_default() -> None:
    averaged, raw = (open_run(STORED / "nvae", weights=w).model.state_dict() for w in ("auto", "raw"))  # type: ignore
    assert any(not torch.equal(averaged[name], raw[name]) for name in averaged)


def change(folder: Path, **values: Any) -> Path:
    record = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(record | values))
    return folder


@pytest.fixture
def copied_flat(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STORED / "flat", tmp_path / "run"))


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_a_newer_format_is_refused(version: Any, copied_flat: Path) -> None:
    with pytest.raises(ValueError, match=r"format .*up to 1"):
        open_run(change(copied_flat, format=version))


def test_a_record_without_a_format_is_the_first(copied_flat: Path) -> None:
    record = json.loads((copied_flat / "config.json").read_text())
    del record["format"]
    (copied_flat / "config.json").write_text(json.dumps(record))
    assert open_run(copied_flat).step == 16


def test_weights_are_read_only_when_needed(copied_flat: Path) -> None:
    shutil.rmtree(copied_flat / "checkpoints")
    run = open_run(copied_flat)
    assert run.spec == ImageSpec(channels=1, height=16, width=16, num_bits=1)
    with pytest.raises(ValueError, match="no valid checkpoint"):
        run.sample(1)


def test_other_data_is_brought_to_the_size_of_the_run(trained: Path, tmp_path: Path) -> None:
    """Images of 12 x 16 pixels were trained on; a folder of larger ones is cropped and resized to them."""
    from tests.launch import running

    other = running.draw(tmp_path / "other", {"train": 2, "valid": 2, "test": 3}, height=30, width=30)
    run = open_run(trained, data_root=other, other_data=True)
    data = run.data("test")
    assert data.spec == run.spec
    assert run.reconstruct(data.images([0, 1, 2])).shape == (3, 3, 12, 16)


def test_data_that_changed_its_shape_is_refused(trained: Path, tmp_path: Path) -> None:
    from tests.launch import running

    other = running.draw(tmp_path / "other", {"train": 2, "valid": 2, "test": 3}, height=30, width=30)
    record = json.loads((trained / "config.json").read_text())
    record["config"]["data"]["data_root"] = str(other)
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    with pytest.raises(ValueError, match="--data-root"):
        open_run(change(folder, **record)).data("test")


def test_the_examples_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples run in order, as one program, on a small run in place of the quickstart's."""
    shutil.copytree(STORED / "nvae", tmp_path / "runs" / "quickstart" / "nvae")
    monkeypatch.chdir(tmp_path)
    examples = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(examples) == 4
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "docs/python.md", "exec"), names)
    assert names["new"].shape[0] == 4
    assert names["loss"].item() > 0
