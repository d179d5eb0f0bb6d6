"""Every script runs on the run folders of every family, including one that a user added."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.launch import running
from tests.launch.running import call

STEPS = 6
LENGTH = ["--dataset", "toy", "--max-steps", str(STEPS), "--checkpoint-every", "3", "--eval-every", "3"]
LENGTH += ["--log-every", "1", "--batch-size", "8", "--figure-images", "4", "--iw-samples", "2", "--score-every", "6"]
FAMILIES = {
    "nvae": running.MODEL,
    "flat_vae": ["--preset", "tiny", "--conv-channels", "4", "--latent-dim", "3"],
    "ladder": ["--preset", "tiny"],
}


def train(family: str, run: Path, *more: str) -> running.Result:
    return call(f"train_{family}", *LENGTH, *FAMILIES[family], "--run-dir", run, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each family, scored."""
    root = tmp_path_factory.mktemp("contract")
    for family in FAMILIES:
        result = train(family, root / family)
        assert result.code == 0, result.err
        scored = call(
            "score", "--run", root / family, "--dims", "2", "--shuffles", "1", "--resamples", "2", "--untrained"
        )
        assert scored.code == 0, scored.err
    return {family: root / family for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def run(family: str, runs: dict[str, Path]) -> Path:
    return runs[family]


def test_a_killed_run_goes_on_as_it_would_have(family: str, run: Path, tmp_path: Path) -> None:
    """A kill after a checkpoint leaves that checkpoint, and records of later steps, which are lost."""
    torn = shutil.copytree(run, tmp_path / "torn")
    for path in torn.glob(f"checkpoints/step-{STEPS:09d}.pt*"):
        path.unlink()
    (torn / "summary.json").unlink()
    result = train(family, torn, "--resume", "auto")
    assert result.code == 0, result.err
    running.assert_same_run(torn, run)


def test_a_run_leaves_records_and_pictures(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["step"] == STEPS
    drawn = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"reconstruction", "samples_t0.7", "samples_t1.0"} <= drawn
    assert {"kl_per_group", "kl_per_latent"} & drawn
    tags = {key for line in running.records(run) for key in line}
    assert {"train/loss", "train/elbo", "val/elbo", "val/rate", "kl_group/00", "score/mig_d10"} <= tags


def test_evaluate(run: Path) -> None:
    result = call("evaluate", "--run", run, "--iw-samples", "8")
    assert result.code == 0, result.err
    record = json.loads((run / "evaluation-test.json").read_text())
    assert record["importance_bound"] > record["elbo"]
    assert record["elbo"] == pytest.approx(-(record["rate"] + record["distortion"]))


def test_sample(run: Path, tmp_path: Path) -> None:
    result = call("sample", "--run", run, "--num", "4", "--temperature", "0.8", "--out", tmp_path / "s.png")
    assert result.code == 0, result.err
    assert np.asarray(Image.open(tmp_path / "s.png")).std() > 0


@pytest.mark.parametrize("show", ["traverse", "interpolate"])
def test_traverse(show: str, run: Path, tmp_path: Path) -> None:
    few = ["--steps", "3", "--rows", "2", "--images", "8", "--out", tmp_path]
    for how in (["--by", "latent"], ["--by", "axis"], []) if show == "traverse" else ([],):
        result = call("traverse", "--run", run, "--show", show, *few, *how)
        assert result.code == 0, result.err
    assert list(tmp_path.glob("*.png"))


@pytest.mark.parametrize("show", ["swap", "top"])
def test_traverse_across_groups(show: str, family: str, run: Path, tmp_path: Path) -> None:
    """A model with one group has nothing to swap, and is refused."""
    result = call("traverse", "--run", run, "--show", show, "--steps", "3", "--images", "8", "--out", tmp_path)
    if family == "flat_vae":
        running.assert_one_error(result, "--show")
    else:
        assert result.code == 0, result.err


def test_score(run: Path) -> None:
    record = json.loads((run / "scores.json").read_text())
    assert record["held_out"]["elbo"] < 0
    for scores in (record["scores"], record["untrained"]):
        assert 0.0 <= scores["reduced"]["score"] <= 1.0
        assert 0.0 <= scores["groups"]["score"] <= 1.0


def test_compress(run: Path, tmp_path: Path) -> None:
    """Coded images come back bit for bit."""
    packed = call("compress", "--run", run, "--images", "3", "--out", tmp_path / "c")
    assert packed.code == 0, packed.err
    restored = call("compress", "--run", run, "--decompress", tmp_path / "c", "--out", tmp_path / "images")
    assert restored.code == 0, restored.err
    assert np.load(tmp_path / "images" / "images.npy").shape == (3, 1, 16, 16)


def test_compare_puts_all_families_into_one_report(runs: dict[str, Path], tmp_path: Path) -> None:
    result = call("compare", "--runs", *runs.values(), "--out", tmp_path / "report")
    assert result.code == 0, result.err
    record = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert record["skipped"] == []
    (compared,) = record["sets"]
    assert any("ladder VAE" in label for label in compared["configurations"])
    assert len(compared["configurations"]) == len(FAMILIES)
