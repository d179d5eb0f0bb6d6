"""Both families on every kind of image, from the command line: train, stop, resume, evaluate, sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launch.running import LENGTH, STEPS, assert_same_run, call, draw, flags


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey images of 11 x 14 pixels, which no stride divides."""
    root = draw(tmp_path_factory.mktemp("grey") / "images", height=11, width=14)
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    return root


def flat(data: Path, run: Path, *more: str) -> list[str]:
    where = ["--dataset", "folder", "--data-root", str(data), "--run-dir", str(run), "--preset", "tiny"]
    return [*where, *LENGTH, "--batch-size", "4", *more]


def assert_usable(run: Path) -> dict[str, object]:
    """Evaluate and sample with the same two commands for every model."""
    result = call("evaluate", "--run", run, "--iw-samples", "2")
    assert result.code == 0, result.err
    assert call("sample", "--run", run, "--num", "2", "--pixels", "sample", "--out", run / "samples.png").code == 0
    assert np.asarray(Image.open(run / "samples.png")).std() > 0
    record = json.loads((run / "evaluation-test.json").read_text())
    assert isinstance(record, dict)
    return record


@pytest.mark.parametrize(("bits", "most"), [(1, 1.1), (5, 5.5), (8, 9.5)])
def test_nvae_on_grey_images_of_any_depth(bits: int, most: float, grey: Path, tmp_path: Path) -> None:
    """The likelihood alone depends on the depth: Bernoulli for 1 bit, a discretised mixture for the others."""
    run = tmp_path / "run"
    result = call("train_nvae", *flags(grey, run, "--num-bits", str(bits)))
    assert result.code == 0, result.err
    record = assert_usable(run)
    assert json.loads((run / "config.json").read_text())["spec"] == {
        "channels": 1,
        "height": 11,
        "width": 14,
        "num_bits": bits,
    }
    assert 0.0 < float(str(record["bits_per_dim"])) < most


@pytest.mark.parametrize("objective", ["beta", "factor"])
def test_a_flat_vae_stops_and_goes_on_bit_for_bit(objective: str, data: Path, tmp_path: Path) -> None:
    """FactorVAE trains a discriminator of its own, whose weights and optimiser belong in the checkpoint."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    chosen = ["--objective", objective]
    assert call("train_flat_vae", *flat(data, whole, *chosen)).code == 0
    for more in (["--stop-at-step", "7"], []):
        result = call("train_flat_vae", *flat(data, parts, *chosen, "--resume", "auto", *more))
        assert result.code == 0, result.err
    assert_same_run(parts, whole)
    assert assert_usable(whole)["step"] == STEPS
