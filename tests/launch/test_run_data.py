"""A run and its data: other images are refused or reported by every script; flags reach the data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
from launch.console import errors
from launch.console.config import DataConfig
from launch.results.run import open_run
from launch.training import memory
from tests.launch import running
from tests.launch.running import call

LENGTH = ["--max-steps", "2", "--batch-size", "8", "--iw-samples", "1", "--figure-images", "4"]
SMALL = ["--preset", "tiny", "--latent-dim", "2", *LENGTH]


def draw(root: Path, count: int = 150, seed: int = 0, size: int = 16) -> Path:
    root.mkdir(parents=True)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(root / f"{i}.png")
    return root


def train(data: Path, run: Path, *more: object) -> running.Result:
    where = ["--dataset", "folder", "--data-root", data, "--run-dir", run]
    return call("train_flat_vae", *where, *SMALL, *more)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images") / "mine")


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "run"
    result = train(images, run)
    assert result.code == 0, result.err
    assert "split by hash of the content" in result.out
    assert "of split valid" in result.out
    return run


def evaluate(run: Path, root: Path, *more: object) -> running.Result:
    return call("evaluate", "--run", run, "--data-root", root, "--iw-samples", "0", "--no-baseline", *more)


def test_the_same_images_elsewhere_are_taken(images: Path, trained: Path, tmp_path: Path) -> None:
    where = tmp_path / "deep" / "train" / "x"
    shutil.copytree(images, where, ignore=shutil.ignore_patterns(".*"))
    for path in list(where.iterdir()):
        path.rename(path.with_suffix(".PNG"))
    numbers = []
    for root in (images, tmp_path / "deep"):
        result = evaluate(trained, root)
        assert result.code == 0, result.err
        numbers.append(json.loads((trained / "evaluation-test.json").read_text())["elbo"])
    assert numbers[0] == pytest.approx(numbers[1])


READERS: dict[str, list[str]] = {
    "evaluate": ["--iw-samples", "0"],
    "score": ["--images", "8", "--no-untrained"],
    "compress": ["--images", "1", "--out", "nowhere"],
    "traverse": ["--images", "2"],
}


@pytest.mark.parametrize("script", READERS)
def test_every_reader_refuses_other_images_unless_told_to(
    script: str, images: Path, trained: Path, tmp_path: Path
) -> None:
    other = draw(tmp_path / "other", seed=1)
    result = call(script, "--run", trained, "--data-root", other, *READERS[script])
    running.assert_one_error(result, "other images in the split", "--other-data")
    if script == "evaluate":
        insisted = call(script, "--run", trained, "--data-root", other, "--other-data", *READERS[script])
        assert insisted.code == 0, insisted.err
        assert "warning: the data differ" in insisted.err


def test_images_of_another_size_are_brought_to_the_size_of_the_run(trained: Path, tmp_path: Path) -> None:
    other = draw(tmp_path / "large", seed=2, size=20)
    result = evaluate(trained, other, "--other-data")
    assert result.code == 0, result.err


def test_readers_get_the_stored_images_of_a_run_that_mirrors_them(images: Path, tmp_path: Path) -> None:
    assert train(images, tmp_path / "run", "--hflip", "True").code == 0
    run = open_run(tmp_path / "run")
    stored = datasets.open_dataset("folder", images, "train", size=16)
    assert run.config.data.hflip
    torch.testing.assert_close(run.data("train").images(range(len(stored))), stored.images(range(len(stored))))


def test_a_split_that_is_not_there_names_those_that_are(trained: Path, tmp_path: Path) -> None:
    for split, count in (("train", 20), ("val", 9)):
        draw(tmp_path / "two" / split, count, seed=count)
    running.assert_one_error(evaluate(trained, tmp_path / "two", "--other-data"), "--split", "valid")
    assert evaluate(trained, tmp_path / "two", "--other-data", "--split", "valid").code == 0
    prepared = call("prepare_data", "--dataset", "folder", "--data-root", tmp_path / "two")
    assert prepared.code == 0
    assert "val/" in prepared.out


def test_resuming_on_other_images_of_equal_number_is_refused(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("other", 9)):
        for split, count in (("train", 16), ("val", 4)):
            draw(tmp_path / name / split, count, seed=seed + count)
    assert train(tmp_path / "one", tmp_path / "run").code == 0
    result = train(tmp_path / "other", tmp_path / "run", "--resume", "auto", "--max-steps", "4")
    running.assert_one_error(result, "trained on other data (other images in the split)")


def test_without_a_valid_split_the_test_images_are_held_out_and_reported(tmp_path: Path) -> None:
    for split, count in (("train", 20), ("test", 9)):
        draw(tmp_path / "data" / split, count, seed=count)
    result = train(tmp_path / "data", tmp_path / "run", "--dry-run")
    assert result.code == 0, result.err
    assert "held out during training: 9 images of split test" in result.out


def test_flags_reach_the_data_sets(tmp_path: Path) -> None:
    config = DataConfig(
        dataset="folder", data_root=draw(tmp_path / "a", 40), channels=3, split_by="content", hflip=True
    )
    data = config.open("train", seed=7)
    assert data.spec.channels == 3
    assert data.recipe["seed"] == 7
    assert data.recipe["hflip"]
    held_out = config.open("valid", seed=7)
    assert "seed" not in held_out.recipe
    # A recorded recipe's seed and rules win: its run was trained so.
    again = config.open("train", seed=9, recorded=data.recipe)
    assert again.recipe == data.recipe
    assert DataConfig(dataset="mnist", binarise=False, num_valid=5).options() == {"binarise": False, "num_valid": 5}
    assert "labels" in DataConfig(dataset="folder", labels=tmp_path).options()


def test_a_flag_that_the_data_set_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match="frey has no option --image-size"):
        DataConfig(dataset="frey", image_size=(8,)).options()
    running.assert_one_error(call("prepare_data", "--dataset", "frey", "--num-valid", "5"), "--num-valid", "frey")


def test_a_run_recorded_before_the_rules_keeps_its_split(images: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    record: dict[str, Any] = json.loads((run / "config.json").read_text())
    old = datasets.open_dataset("folder", images, split_by="path")
    record["data"] = {"name": "folder", "num_images": len(old), "recipe": old.recipe}
    (run / "config.json").write_text(json.dumps(record))
    result = evaluate(run, images)
    assert result.code == 0, result.err
    expected = len(datasets.open_dataset("folder", images, "test", split_by="path"))
    assert json.loads((run / "evaluation-test.json").read_text())["num_images"] == expected
    assert evaluate(run, draw(tmp_path / "other", seed=1)).code == errors.EXIT_BAD_INPUT


def test_too_few_steps_are_reported_before_training(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thirty epochs of 150 images are too short, so a warning is printed, but not if the user chose the number of steps."""
    monkeypatch.setattr(memory, "seconds_of_step", lambda *_: 1.0)
    where = [
        "--dataset",
        "folder",
        "--data-root",
        images,
        "--run-dir",
        tmp_path / "run",
        "--preset",
        "small",
        "--batch-size",
        "8",
        "--dry-run",
    ]
    result = call("train_flat_vae", *where)
    assert result.code == 0, result.err
    steps = 30 * (len(datasets.open_dataset("folder", images, "train")) // 8)
    assert f"are {steps} steps" in result.out
    assert "--max-steps" in result.out
    assert "are 100 steps" not in call("train_flat_vae", *where, "--max-steps", "100").out
