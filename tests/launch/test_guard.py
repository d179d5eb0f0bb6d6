"""Steps skipped on the device: the same state as if the host had decided, and no synchronisation in a step."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import waiting_for_the_device_is_an_error
from benchmarks.steps import random_images, trainer_of
from datasets import ImageSpec
from launch.console import errors
from launch.families.flat_vae import FLAT_PRESETS
from launch.training import step as stepping
from metrics import likelihoods
from tests.launch import running
from tests.launch import test_train_step as steps
from tests.launch.running import assert_same

BAD = (0, 2, 3)


def both(one: stepping.Trainer) -> tuple[stepping.Trainer, stepping.Trainer]:
    """The same trainer twice: steps are skipped by the host, or by the device as on a GPU."""
    other = copy.deepcopy(one)
    other.settles_late = True
    return one, other


@pytest.mark.parametrize("optimizer", ["adamax", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_device_decides_as_the_host_does(optimizer: str, scaled: bool) -> None:
    subject = steps.toy(
        optimizer=optimizer,
        grad_clip=2.0,
        grad_skip=1e3,
        weight_decay=0.01,
        precision="fp16" if scaled else "fp32",
        factor=lambda step: float("nan") if step in BAD else 1e4 if step == 5 else 1.0,
    )
    host, device = both(subject)
    for step in range(8):
        reports = [one.train_step(steps.images(step)) for one in (host, device)]
        assert [r.settled for r in reports] == [True, False]
        device.settle()
        assert reports[0].skipped is reports[1].skipped is (step in (*BAD, 5))
        assert reports[0].notes == reports[1].notes
        assert_same(device.state.state_dict(), host.state.state_dict(), f"after step {step}")
    assert host.state.num_skipped == 4


def test_batch_norm_is_put_back_on_the_device() -> None:
    host, device = both(steps.nvae()[0])
    spec = steps.nvae()[1]
    for step in range(4):
        for one in (host, device):
            noise = one.noise()
            if step == 2:
                noise[-1][0, 0, 0, 0] = float("nan")
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(one, "noise", lambda noise=noise: noise)
                one.train_step(steps.images(step, 4, spec))
    device.settle()
    assert host.state.num_skipped == 1
    assert_same(device.state.state_dict(), host.state.state_dict())


def test_what_was_found_is_counted_while_the_next_step_is_under_way() -> None:
    _, subject = both(steps.toy(factor=lambda step: float("nan") if step == 1 else 1.0))
    reports = [subject.train_step(steps.images(step)) for step in range(3)]
    assert [r.settled for r in reports] == [True, True, False]
    assert subject.state.num_skipped == 1
    assert [r.skipped for r in reports] == [False, True, False]
    assert "step 1: loss or gradient not finite" in reports[1].notes[0]


def _decide_on_the_device(patch: pytest.MonkeyPatch) -> None:
    real = stepping.Trainer.__init__

    def init(self: stepping.Trainer, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        self.settles_late = True

    patch.setattr(stepping.Trainer, "__init__", init)


def test_a_late_diagnosis_names_the_same_step_and_images(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps._poison(monkeypatch, range(5, 99))
    said = []
    for name in ("host", "device"):
        if name == "device":
            _decide_on_the_device(monkeypatch)
        run = tmp_path / name
        often = ["--max-bad-steps", "5", "--log-every", "7", "--checkpoint-every", "99", "--eval-every", "99"]
        result = running.call("train_nvae", *running.flags(data, run, *often))
        assert result.code == errors.EXIT_DIVERGED
        assert "error: 5 steps in a row were not finite, up to step 10" in result.err
        assert result.err.count("step skipped") == 5
        said.append(json.loads((run / "diverged.json").read_text()))
    assert said[0] == said[1]


def test_a_run_that_decides_on_the_device_is_the_same_run(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _decide_on_the_device(monkeypatch)
    result = running.call("train_nvae", *running.flags(data, tmp_path / "run"))
    assert result.code == 0, result.err
    running.assert_same_run(tmp_path / "run", trained)


class Questions(TorchDispatchMode):
    """Counts what would make the host wait for a GPU: values read, and scalars copied to the device."""

    NAMES = ("_local_scalar_dense", "lift_fresh", "is_nonzero", "nonzero", "equal", "unique", "masked_select")

    def __init__(self, allowed: Sequence[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.allowed = {id(tensor) for tensor in allowed}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in self.NAMES and id(args[0]) not in self.allowed:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def questions(one: stepping.Trainer, images: Tensor) -> Counter[str]:
    """Synchronisations of the third step. Counters of optimisers that are not fused stay on the host unless
    captured."""
    one.settles_late = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likelihoods, "check_pixels", lambda x: None)  # on a GPU it reads no values
        return _questions(one, images)


def _questions(one: stepping.Trainer, images: Tensor) -> Counter[str]:
    for _ in range(2):
        one.train_step(images)
    optimizers = [one.state.optimizer, *filter(None, [getattr(one.state.objective, "optimizer", None)])]
    counters = [values["step"] for optimizer in optimizers for values in optimizer.state.values()]
    with Questions(counters) as asked:
        one.train_step(images)
    if not one.state.optimizer.defaults.get("fused"):
        asked.counts["lift_fresh"] -= 1  # what is added to the counters
    return +asked.counts


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_of_nvae_asks_the_device_nothing(precision: str) -> None:
    subject, spec = steps.nvae()
    run = replace(subject.config.run, precision=precision)
    config = replace(subject.config, run=run, optim=replace(subject.config.optim, grad_clip=1.0, grad_skip=1e6))
    again = trainer_of(config, spec, torch.device("cpu"))
    assert not questions(again, steps.images(0, 4, spec))


@pytest.mark.parametrize("preset", ["burgess", "beta4", "capacity", "factor", "tc", "grouped", "frey"])
def test_a_step_of_a_flat_vae_asks_the_device_nothing(preset: str) -> None:
    """But FactorVAE's asks once: whether its discriminator may learn from the step."""
    config = FLAT_PRESETS[preset].build()
    config = replace(config, run=replace(config.run, batch_size=4, precision="fp32"))
    height, width, bits = (28, 20, 8) if preset == "frey" else (64, 64, 1)
    spec = ImageSpec(channels=1, height=height, width=width, num_bits=bits)
    subject = trainer_of(config, spec, torch.device("cpu"))
    expected = Counter({"_local_scalar_dense": 1}) if preset == "factor" else Counter()
    assert questions(subject, random_images(spec, 4)) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_training_step_does_not_wait_for_the_gpu(accumulation: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    small, spec = steps.nvae()
    config = replace(
        small.config,
        run=replace(small.config.run, precision="bf16", device="cuda"),
        optim=replace(small.config.optim, grad_clip=1.0, accumulation=accumulation),
    )
    subject = trainer_of(config, spec, torch.device("cuda", 0))
    images = steps.images(0, 4 * accumulation, spec).pin_memory()
    for _ in range(3):
        subject.train_step(images)
    with waiting_for_the_device_is_an_error():
        for _ in range(3):
            subject.train_step(images)
    subject.settle()
    assert subject.state.num_skipped == 0
