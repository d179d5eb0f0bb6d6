"""Captured steps equal eager ones bit for bit, and numbers left on the host are detected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.steps import random_images, trainer_of
from datasets import ImageSpec
from launch.console.config import OptimConfig, RunConfig
from launch.families.nvae import NVAETrainConfig
from launch.machine.execution import WARM_UP, Captured
from launch.training.step import Trainer
from nvae import NVAEConfig, NVAEObjective, ObjectiveConfig
from tests.launch.replay import EmulatedGraph
from tests.launch.running import assert_same

SPEC = ImageSpec(channels=3, height=8, width=8)
CPU = torch.device("cpu")
MODEL = NVAEConfig(
    num_scales=1,
    groups_per_scale=(2,),
    latent_channels=2,
    channels_enc=4,
    channels_dec=4,
    preprocess_cells=1,
    postprocess_cells=1,
    cells_per_group_enc=1,
    cells_per_group_dec=1,
    num_mixtures=2,
    num_flows=1,
)
DURING_WARM_UP, AFTER_WARM_UP = 100_000, 900_000
NUM_STEPS = WARM_UP + 4


def config(**changes: Any) -> NVAETrainConfig:
    model = replace(MODEL, checkpointing=changes.pop("checkpointing", False))
    run = RunConfig(batch_size=changes.pop("batch", 2), precision=changes.pop("precision", "fp32"))
    objective = ObjectiveConfig(spectral_weight_initial=1.0)
    return NVAETrainConfig(model=model, objective=objective, optim=OptimConfig(**changes), run=run)


def trained(chosen: NVAETrainConfig, start: int, *, captures: bool, poisons: bool = True) -> tuple[Trainer, list[Any]]:
    """A trainer after some steps, one of which is not finite, and what each step reported."""
    subject = trainer_of(chosen, SPEC, CPU)
    subject.state.step = start
    subject.captured = Captured(EmulatedGraph) if captures else None
    reports = []
    for i in range(NUM_STEPS):
        images = random_images(SPEC, 2 * chosen.optim.accumulation).roll(i, -1)
        with pytest.MonkeyPatch.context() as patch:
            if poisons and i == WARM_UP + 2:
                noise = subject.noise()
                noise[-1][0, 0, 0, 0] = float("nan")
                patch.setattr(subject, "noise", lambda noise=noise: noise)
            report = subject.train_step(images)
        reports.append({"lr": report.lr, "norm": report.grad_norm, "skipped": report.skipped, **report.terms})
    return subject, reports


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16, clipped, recomputed": {"precision": "bf16", "grad_clip": 1.0, "checkpointing": True},
    "accumulated, adam": {"accumulation": 2, "optimizer": "adam", "optimizer_eps": 1e-8, "lr": 1e-3},
    "fp16": {"precision": "fp16"},
}


@pytest.mark.parametrize("start", [DURING_WARM_UP, AFTER_WARM_UP])
@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_eager_steps(case: str, start: int) -> None:
    """Cases: flows, steps during and after the KL warm-up, and a NaN that a replayed step skips."""
    chosen = config(**CASES[case])
    eager, expected = trained(chosen, start, captures=False)
    replayed, found = trained(chosen, start, captures=True)
    assert replayed.captured is not None
    assert len(replayed.captured._recorded) == 1
    assert [row["skipped"] for row in found] == [i == WARM_UP + 2 for i in range(NUM_STEPS)]
    assert_same(found, expected)
    assert_same(replayed.state.state_dict(), eager.state.state_dict())


def test_each_side_of_the_warm_up_has_a_recording_of_its_own() -> None:
    chosen = config()
    last = 300_099  # the KL's coefficient reaches 1 in the step after it
    eager, expected = trained(chosen, last - WARM_UP - 1, captures=False, poisons=False)
    replayed, found = trained(chosen, last - WARM_UP - 1, captures=True, poisons=False)
    assert {bool(row["kl_coefficient"] < 1.0) for row in expected} == {True, False}
    assert replayed.captured is not None
    assert len(replayed.captured._calls) == 2
    assert_same(found, expected)
    assert_same(replayed.state.state_dict(), eager.state.state_dict())


@pytest.mark.parametrize("frozen", ["coefficient", "penalty_weight", "lr"])
def test_a_number_left_on_the_host_is_noticed(frozen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison with eager steps detects a value that the captured graph has frozen."""
    chosen = config()
    eager, _ = trained(chosen, DURING_WARM_UP, captures=False)
    if frozen == "lr":
        real = Trainer._compute

        def compute(self: Trainer, *arguments: Any) -> Any:
            kept, self._lr = self._lr, torch.tensor(float(self._lr), dtype=torch.float64)
            try:
                return real(self, *arguments)
            finally:
                self._lr = kept

        monkeypatch.setattr(Trainer, "_compute", compute)
    else:
        forward = NVAEObjective.forward

        def with_a_number(self: NVAEObjective, *arguments: Any) -> Any:
            tensor = getattr(self, frozen)
            setattr(self, frozen, torch.tensor(float(tensor), dtype=torch.float64))
            try:
                return forward(self, *arguments)
            finally:
                setattr(self, frozen, tensor)

        monkeypatch.setattr(NVAEObjective, "forward", with_a_number)
    replayed, _ = trained(chosen, DURING_WARM_UP, captures=True)
    pairs = zip(replayed.parameters, eager.parameters, strict=True)
    assert any(not torch.equal(mine, other) for mine, other in pairs)
