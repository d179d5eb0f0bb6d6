"""Every model of the zoo passes its checksum, gives the samples of the day it was stored, and agrees with its card."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from launch.results.run import open_run
from launch.training import checkpoint
from tests.conftest import ROOT

ZOO = sorted(path.parent for path in (ROOT / "zoo").glob("*/config.json"))
MOST_BYTES = 12 * 2**20
SAME_MEAN = 1e-3  # of an image's mean pixel: four of 4,096 pixels, for processors that round differently


def test_the_zoo_is_small() -> None:
    assert sum(path.stat().st_size for path in (ROOT / "zoo").rglob("*") if path.is_file()) <= MOST_BYTES


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: folder.name)
def test_a_model_draws_what_it_drew(folder: Path) -> None:
    check = json.loads((folder / "check.json").read_text())
    run = open_run(folder)
    samples = run.sample(len(check["mean_of_samples"]), seed=check["seed"])
    assert np.allclose(samples.mean(dim=(1, 2, 3)), check["mean_of_samples"], atol=SAME_MEAN)
    assert run.reconstruct(samples.round()).shape == samples.shape


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: folder.name)
def test_scores_and_card_are_of_these_weights(folder: Path) -> None:
    scores = json.loads((folder / "scores.json").read_text())
    (path,) = checkpoint.find(folder / "checkpoints")
    assert scores["checkpoint_sha256"] == checkpoint.recorded_sha256(path) == checkpoint.sha256(path)
    card = (folder / "README.md").read_text()
    assert f"{-scores['held_out']['elbo']:.1f} nats" in card
    assert f"{scores['samples']['samples']['score']:.2f}" in card


@pytest.mark.parametrize("folder", ZOO, ids=lambda folder: folder.name)
def test_no_folder_of_a_machine_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["run"]["run_dir"] is config["config"]["data"]["data_root"] is None
    assert "argv" not in config
