"""Sharing a run: the copy is small, names no folder of its machine, and gives the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launch.results.run import open_run
from launch.training import checkpoint
from tests.launch import toy
from tests.launch.running import assert_one_error, call


@pytest.fixture(scope="module", params=["nvae", "flat_vae"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        toy.register(patch)
        yield toy.train(request.param, tmp_path_factory.mktemp("shared") / "run")


def test_a_copy_gives_the_same_model_from_less(run: Path, tmp_path: Path) -> None:
    quick = ["--images", "40", "--elbo-images", "8", "--metrics", "total_correlation"]
    assert call("score", "--run", run, *quick).code == 0
    out = tmp_path / "copy"
    result = call("export", "--run", run, "--out", out)
    assert result.code == 0, result.err
    first, second = open_run(run), open_run(out)
    assert torch.equal(first.sample(4, seed=1), second.sample(4, seed=1))
    assert second.step == first.step
    assert len(checkpoint.find(out / "checkpoints")) == 1
    assert second.checkpoint.stat().st_size < first.checkpoint.stat().st_size
    assert str(run.parent) not in "".join(path.read_text() for path in out.glob("*.json*"))
    assert json.loads((out / "scores.json").read_text())["checkpoint_sha256"] == checkpoint.sha256(second.checkpoint)
    assert (out / "summary.json").is_file()
    assert len(json.loads((out / "check.json").read_text())["mean_of_samples"]) == 8
    assert call("sample", "--run", out, "--num", "2", "--out", tmp_path / "samples.png").code == 0


def test_a_copy_does_not_overwrite_another_run(run: Path, tmp_path: Path) -> None:
    assert call("export", "--run", run, "--out", tmp_path / "copy").code == 0
    assert_one_error(call("export", "--run", run, "--out", tmp_path / "copy"), "--out")


def test_a_damaged_copy_is_refused(run: Path, tmp_path: Path) -> None:
    assert call("export", "--run", run, "--out", tmp_path / "copy").code == 0
    path = checkpoint.find(tmp_path / "copy" / "checkpoints")[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_one_error(call("sample", "--run", tmp_path / "copy"), "checkpoint")
