from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import registry
from datasets.arrays import ArrayDataset
from datasets.views import Views
from launch.console.config import RunConfig
from launch.training import checkpoint, loop
from tests.launch import running, toy


def weights(run: Path) -> dict[str, torch.Tensor]:
    _, content = next(checkpoint.newest_valid(run / "checkpoints", print))
    model: dict[str, torch.Tensor] = content["model"]
    return model


def test_a_run_does_not_depend_on_where_its_images_are(tmp_path: Path) -> None:
    data = running.draw(tmp_path / "data")
    trained: list[tuple[dict[str, torch.Tensor], Any]] = []
    for choice in ("no", "yes"):
        run = tmp_path / choice
        result = running.call("train_nvae", *running.flags(data, run, "--hflip", "True", "--data-on-device", choice))
        assert result.code == 0, result.err
        assert ("kept on the device" in result.out) == (choice == "yes")
        trained.append((weights(run), json.loads((run / "summary.json").read_text())["valid"]))
    (host, host_result), (device, device_result) = trained
    assert host_result == device_result
    assert all(torch.equal(host[name], device[name]) for name in host)


def test_drawn_pixels_are_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(root: Path, split: str = "train") -> ArrayDataset:
        array = np.zeros((40, 1, 16, 16), dtype=np.uint8)
        return ArrayDataset(name="drawn", array=array, rows=np.arange(40), recipe={}, views=Views(binarise=True))

    monkeypatch.setitem(registry._OPENERS, "toy", drawn)
    where = ["--dataset", "toy", "--run-dir", str(tmp_path / "run"), *running.MODEL, *running.LENGTH]
    result = running.call("train_nvae", *where, "--data-on-device", "yes")
    assert result.code == 2
    assert "draws its pixels anew in each epoch" in result.err
    assert not (tmp_path / "run").exists()


def test_auto_keeps_on_a_gpu_what_is_small_there(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 40 * 256 * 10  # of a GPU; forty images of 256 bytes are a tenth

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    gpu, auto = torch.device("cuda"), RunConfig()

    def images(count: int) -> ArrayDataset:
        array = np.zeros((count, 1, 16, 16), dtype=np.uint8)
        return ArrayDataset(name="drawn", array=array, rows=np.arange(count), recipe={})

    assert loop.keeps_on_device(auto, images(40), gpu)
    assert not loop.keeps_on_device(auto, images(41), gpu)
    assert not loop.keeps_on_device(auto, images(40), torch.device("cpu"))
    assert not loop.keeps_on_device(RunConfig(data_on_device="no"), images(40), gpu)


def test_replicas_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.register(monkeypatch)
    states = []
    for choice in ("no", "yes"):
        where = ["--dataset", "toy", "--preset", "tiny", "--run-dir", str(tmp_path / choice), "--batch-size", "8"]
        more = ["--replicas", "2", "--data-on-device", choice]
        assert running.call("train_flat_vae", *where, *running.LENGTH, *more).code == 0
        states.append([weights(tmp_path / choice / f"seed{seed}") for seed in (0, 1)])
    for host, device in zip(*states, strict=True):
        assert all(torch.equal(host[name], device[name]) for name in host)
