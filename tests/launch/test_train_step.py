"""One step of the trainer: accumulation, clipping, what is skipped, and that a skipped step leaves no trace."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datasets import ImageSpec
from launch.console import errors
from launch.console.config import OptimConfig, RunConfig
from launch.families import family_of
from launch.families.nvae import NVAETrainConfig
from launch.machine import noise
from launch.machine.distributed import Ranks
from launch.training import checkpoint
from launch.training import step as stepping
from launch.training.vectors import FlatState
from tests.launch import running
from tests.launch.running import assert_same

ALONE = Ranks(0, 1, torch.device("cpu"))
SPEC = ImageSpec(channels=1, height=2, width=3)


class Toy(nn.Module):
    """Linear, so that nothing mixes the images of a batch and a gradient can be written down."""

    def __init__(self) -> None:
        super().__init__()
        self.spec, self.group_shapes = SPEC, [(2,)]
        self.linear = nn.Linear(6, 2)

    def forward(self, x: Tensor, noise: Sequence[Tensor]) -> Tensor:
        out: Tensor = self.linear(x.flatten(1)) + noise[0]
        return out


@dataclass
class ToyLoss:
    total: Tensor
    terms: dict[str, Tensor]
    kl_per_group: Tensor


class ToyObjective(nn.Module):
    def __init__(self, factor: Callable[[int], float] = lambda step: 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.noise_shapes = [(2,)]
        self.skipped: list[bool] = []

    def path(self, step: int) -> None:
        """Numbers that depend on the step are among the operations."""

    def prepare(self, step: int) -> None:
        pass

    def one_step(self, num_batches: int) -> AbstractContextManager[None]:
        return nullcontext()

    def after_step(self, skipped: bool | Tensor) -> None:
        self.skipped.append(bool(skipped))

    def forward(self, model: Any, x: Tensor, step: int, noise: Sequence[Tensor]) -> ToyLoss:
        total = model(x, noise).float().square().sum(1).mean() * self.factor(step)
        return ToyLoss(total, {"elbo": -total.detach()}, total.detach()[None])


def toy(
    *, batch: int = 8, factor: Callable[[int], float] = lambda step: 1.0, precision: Any = "fp32", **optim: Any
) -> stepping.Trainer:
    torch.manual_seed(3)
    model, objective = Toy(), ToyObjective(factor)
    settings = {"lr": 0.05, "lr_warmup": 0.0, "lr_schedule": "constant", **optim}
    config = NVAETrainConfig(
        optim=OptimConfig(**settings), run=RunConfig(batch_size=batch, max_steps=50, precision=precision)
    )
    state = stepping.new_state(model, objective, config, ALONE.device)  # type: ignore[arg-type]
    return stepping.Trainer(state, config, ALONE, total_steps=50)


def images(step: int, count: int = 8, spec: ImageSpec = SPEC) -> Tensor:
    source = torch.Generator().manual_seed(step)
    shape = (count, spec.channels, spec.height, spec.width)
    return torch.randint(0, 256, shape, generator=source, dtype=torch.uint8)


def snapshot(one: stepping.Trainer) -> Any:
    return copy.deepcopy(one.state.state_dict())


def nvae() -> tuple[stepping.Trainer, ImageSpec]:
    """A small NVAE with batch norm, squeeze-and-excite and power iteration."""
    torch.manual_seed(0)
    spec = ImageSpec(channels=3, height=8, width=8)
    preset = NVAETrainConfig(
        optim=OptimConfig(lr_warmup=0.0, lr_schedule="constant"),
        run=RunConfig(batch_size=4, max_steps=20, precision="fp32"),
    )
    small = {"num_scales": 1, "groups_per_scale": (2,), "latent_channels": 2, "channels_enc": 4, "channels_dec": 4}
    config = replace(preset, model=replace(preset.model, num_mixtures=2, cell_arch="res_bnswish", **small))
    family = family_of(config)
    model = family.build_model(config, spec)
    objective = family.build_objective(config, model, 20, 100)
    state = stepping.new_state(model, objective, config, ALONE.device)
    return stepping.Trainer(state, config, ALONE, 20), spec


def test_steps_are_those_of_a_calculation_in_float64() -> None:
    """Five steps (forward pass, noise, Adamax, averaged weights) computed without the trainer's code."""
    subject = toy(weight_decay=0.01, ema_decay=0.9)
    reference = copy.deepcopy(subject.state.model).double()  # type: ignore[type-var]
    weights = list(reference.parameters())  # type: ignore[attr-defined]
    m, u = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    average = [w.detach().clone() for w in weights]
    for step in range(5):
        source = noise.generator(ALONE.device, noise.TRAIN, 0, step)
        eps = torch.randn(8, 2, generator=source).double()
        report = subject.train_step(images(step))
        loss = reference(images(step).double() / 255.0, [eps]).square().sum(1).mean()
        grads = torch.autograd.grad(loss, weights)
        assert float(report.terms["loss"]) == pytest.approx(float(loss.detach()), rel=1e-5)
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        assert float(report.grad_norm) == pytest.approx(float(norm), rel=1e-5)
        for i, (w, grad) in enumerate(zip(weights, grads, strict=True)):
            decayed = grad + 0.01 * w.detach()
            m[i] = 0.9 * m[i] + 0.1 * decayed
            u[i] = torch.maximum(0.999 * u[i], decayed.abs() + 1e-3)
            with torch.no_grad():
                w -= 0.05 / (1 - 0.9 ** (step + 1)) * m[i] / u[i]
            decay = min(0.9, (1 + step) / (10 + step))
            average[i] = decay * average[i] + (1 - decay) * w.detach()
    assert subject.state.step == 5
    for mine, theirs in zip(subject.parameters, weights, strict=True):
        torch.testing.assert_close(mine.detach().double(), theirs.detach(), rtol=1e-5, atol=1e-6)  # 5 float32 steps
    assert subject.state.ema is not None
    for mine, theirs in zip(subject.state.ema.model.parameters(), average, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-6)


def test_accumulating_equals_one_large_batch() -> None:
    """2 x 4 images as 1 x 8, noise included, to the rounding of float32 sums.

    A model with batch norm can't be equal: its statistics are those of 4 images, not of 8.
    """
    whole, parts = toy(batch=8), toy(batch=4, accumulation=2)
    for step in range(5):
        one, two = (subject.train_step(images(step)) for subject in (whole, parts))
        assert float(one.terms["loss"]) == pytest.approx(float(two.terms["loss"]), rel=1e-6)
        assert float(one.grad_norm) == pytest.approx(float(two.grad_norm), rel=1e-5)
    for mine, theirs in zip(parts.parameters, whole.parameters, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def _gradient_at_the_step(subject: stepping.Trainer, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    norms: list[float] = []
    real = FlatState.move

    def move(self: FlatState, *arguments: Any) -> None:
        norms.append(float(self.gradient.square().sum().sqrt()))
        real(self, *arguments)

    monkeypatch.setattr(FlatState, "move", move)
    return norms


def test_clipping_shortens_long_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for clip in (0.5, 1e6):
        subject = toy(grad_clip=clip)
        norms = _gradient_at_the_step(subject, monkeypatch)
        report = subject.train_step(images(0))
        assert float(report.grad_norm) > 0.5  # what is reported is the length before clipping
        assert norms == [pytest.approx(min(clip, float(report.grad_norm)), rel=1e-4)]


def test_gradients_past_the_limit_are_skipped_and_counted() -> None:
    subject = toy(grad_skip=1e3, factor=lambda step: 1e6 if step == 1 else 1.0)
    subject.train_step(images(0))
    before = snapshot(subject)
    report = subject.train_step(images(1))
    assert report.skipped
    assert subject.state.num_bad_in_a_row == 0  # long, but finite
    after = snapshot(subject)
    assert (before.pop("num_skipped"), after.pop("num_skipped")) == (0, 1)
    assert_same(after, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_skips_the_step_without_a_trace(bad: float) -> None:
    subject = toy(factor=lambda step: bad if step in (1, 2) else 1.0)
    reports = [subject.train_step(images(0))]
    before = snapshot(subject)
    reports += [subject.train_step(images(step)) for step in (1, 2)]
    after = snapshot(subject)
    assert [r.skipped for r in reports] == [False, True, True]
    assert "not finite" in reports[1].notes[0]
    assert (subject.state.step, subject.state.num_skipped, subject.state.num_bad_in_a_row) == (3, 2, 2)
    assert subject.state.objective.skipped == [False, True, True]  # type: ignore[attr-defined]
    assert (before.pop("num_skipped"), after.pop("num_skipped")) == (0, 2)
    assert (before.pop("num_bad_in_a_row"), after.pop("num_bad_in_a_row")) == (0, 2)
    assert_same(after, before)
    subject.train_step(images(3))
    assert subject.state.num_bad_in_a_row == 0
    assert not torch.equal(subject.parameters[0], before["model"]["linear.weight"])
    assert all(p.isfinite().all() for p in subject.parameters)


def test_a_gradient_that_is_not_finite_skips_the_step() -> None:
    subject = toy()
    subject.train_step(images(0))
    before = snapshot(subject)
    subject.parameters[0].register_hook(lambda grad: grad * float("nan"))
    report = subject.train_step(images(1))
    assert report.skipped
    assert torch.isfinite(report.terms["loss"])
    after = snapshot(subject)
    assert (before.pop("num_skipped"), after.pop("num_skipped")) == (0, 1)
    assert (before.pop("num_bad_in_a_row"), after.pop("num_bad_in_a_row")) == (0, 1)
    assert_same(after, before)


def test_a_spoilt_forward_pass_leaves_no_trace_in_batch_norm() -> None:
    """NaN activations would stay in the running statistics for ever, and in every evaluation and checkpoint after."""
    subject, spec = nvae()
    subject.train_step(images(0, 4, spec))
    before = snapshot(subject)
    with pytest.MonkeyPatch.context() as patch:
        bad = subject.noise()
        bad[-1][0, 0, 0, 0] = float("nan")
        patch.setattr(subject, "noise", lambda: bad)
        report = subject.train_step(images(1, 4, spec))
    assert report.skipped
    after = snapshot(subject)
    del before["objective"], after["objective"]  # power iteration depends on the weights alone, and goes on
    assert (before.pop("num_skipped"), after.pop("num_skipped")) == (0, 1)
    assert (before.pop("num_bad_in_a_row"), after.pop("num_bad_in_a_row")) == (0, 1)
    assert_same(after, before)
    assert not subject.train_step(images(2, 4, spec)).skipped
    assert all(torch.isfinite(v).all() for v in snapshot(subject)["model"].values())


def test_fp16_overflow_shrinks_the_scale_and_is_no_fault() -> None:
    subject = toy(precision="fp16")
    subject.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    weights = [p.detach().clone() for p in subject.parameters]
    skipped = [subject.train_step(images(step)).skipped for step in range(40)]
    assert skipped[0]
    assert not skipped[-1]
    assert skipped == sorted(skipped, reverse=True)  # shrinks until it fits, then goes
    assert subject.state.scaler.get_scale() == 2.0 ** (40 - sum(skipped))
    assert subject.state.num_bad_in_a_row == 0
    assert not torch.equal(weights[0], subject.parameters[0])


def test_a_gradient_that_stays_infinite_is_a_fault_once_the_scale_is_small() -> None:
    subject = toy(precision="fp16")
    subject.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**3)
    subject.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    counts = []
    for step in range(6):
        assert subject.train_step(images(step)).skipped
        counts.append(subject.state.num_bad_in_a_row)
    assert counts == [0, 0, 1, 2, 3, 4]  # the scale is 4, 2, 1, ... after each


def test_a_loss_that_is_not_finite_is_a_fault_with_a_scaler_too() -> None:
    subject = toy(precision="fp16", factor=lambda step: float("nan") if step < 2 else 1.0)
    assert [subject.train_step(images(step)).skipped for step in range(3)] == [True, True, False]
    assert subject.state.num_skipped == 2
    assert not subject.train_step(images(3)).skipped


def _poison(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    real = stepping.Trainer.noise

    def noise_of(self: stepping.Trainer) -> list[Tensor]:
        drawn = real(self)
        return [d * float("nan") for d in drawn] if self.state.step in steps else drawn

    monkeypatch.setattr(stepping.Trainer, "noise", noise_of)


def test_too_many_in_a_row_stop_the_run_with_a_diagnosis(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _poison(monkeypatch, range(5, 99))
    run = tmp_path / "run"
    result = running.call("train_nvae", *running.flags(data, run, "--max-bad-steps", "4"))
    assert result.code == errors.EXIT_DIVERGED
    assert "error: 4 steps in a row were not finite, up to step 9" in result.err
    assert "fix: " in result.err
    assert "Traceback" not in result.err
    said = json.loads((run / "diverged.json").read_text())
    assert said["step"] == 9
    assert len(said["ranks"][0]["indices"]) == 4
    assert said["ranks"][0]["loss"] is None  # JSON has no NaN
    assert said["terms"]["kl_coefficient"] == 1.0
    assert len(said["kl_per_group"]) == 2
    assert (run / "checkpoints" / said["last_good_checkpoint"]).exists()
    for path in checkpoint.find(run / "checkpoints"):
        content = checkpoint.load(path)
        for part in ("model", "ema"):
            assert all(torch.isfinite(v.float()).all() for v in content[part].values()), path
    assert not (run / "summary.json").exists()


def test_a_few_in_a_row_do_not(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _poison(monkeypatch, range(5, 8))
    run = tmp_path / "run"
    result = running.call("train_nvae", *running.flags(data, run, "--max-bad-steps", "4"))
    assert result.code == 0, result.err
    assert result.err.count("not finite on some rank, step skipped") == 3
    assert json.loads((run / "summary.json").read_text())["skipped_steps"] == 3
    lines = running.records(run)
    assert [line["optim/skipped_steps"] for line in lines if "optim/lr" in line][-1] == 3
    assert [line["train/loss"] for line in lines if line["step"] in (6, 7, 8) and "optim/lr" in line] == [None] * 3


def test_a_disk_that_fills_up_does_not_end_the_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checkpoint.save

    def save(folder: Path, step: int, *arguments: Any, **named: Any) -> Path:
        if step >= 6:
            raise OSError(28, "No space left on device")
        return real(folder, step, *arguments, **named)

    monkeypatch.setattr(checkpoint, "save", save)
    run = tmp_path / "run"
    result = running.call("train_nvae", *running.flags(data, run))
    assert result.code == errors.EXIT_BAD_INPUT
    assert "checkpoint of step 6 could not be written (No space left on device)" in result.err
    assert "error: the weights of step 16 are not on disk, the newest checkpoint is of step 3\n  fix: " in result.err
    assert [p.name for p in checkpoint.find(run / "checkpoints")] == ["step-000000003.pt"]
    assert running.records(run)[-1]["step"] == running.STEPS, "trained and evaluated to the end"
    assert not (run / "summary.json").exists()
