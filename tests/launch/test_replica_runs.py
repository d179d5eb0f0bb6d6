"""Replicas: each run of a batched model is the run that it would be alone, in its records, its files and its faults."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import datasets
from flat_vae import FlatVAEConfig, ObjectiveConfig, Replicas
from launch.console import errors
from launch.console.config import RunConfig
from launch.families.flat_vae import PLAIN_ADAM, FlatTrainConfig, ReplicatedTrainConfig
from launch.machine import distributed
from launch.machine.distributed import Ranks
from launch.results.run import open_run
from launch.training import checkpoint, replicas, start
from launch.training import step as stepping
from launch.training.loop import Orders
from launch.training.replicas import ReplicaTrainer
from launch.training.run import Run
from tests.launch import running, toy

STEPS = 100
TOLERANCE = 1e-4
# With Adam's own 1e-8, a gradient that is only rounding error, about 1e-6 here, would cause a whole step.
EPSILON = 1e-4
ALONE = Ranks(0, 1, torch.device("cpu"))
SMALL = ["--preset", "tiny", "--conv-channels", "4", "--latent-dim", "3", "--batch-size", "4", "--max-steps", "6"]
SMALL += ["--checkpoint-every", "3", "--eval-every", "4", "--log-every", "1", "--figure-images", "4"]
SMALL += ["--iw-samples", "2", "--optimizer-eps", str(EPSILON)]


def flags(data: Path, run: Path, *more: str) -> list[str]:
    return ["--dataset", "folder", "--data-root", str(data), "--run-dir", str(run), *SMALL, *more]


def call(data: Path, run: Path, *more: str) -> running.Result:
    return running.call("train_flat_vae", *flags(data, run, *more))


@pytest.fixture(scope="module")
def batched(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeds 5 and 6 trained at once; not to be written to."""
    out = tmp_path_factory.mktemp("replicas") / "out"
    result = call(data, out, "--seed", "5", "--replicas", "2")
    assert result.code == 0, result.err
    return out


# --- the steps -------------------------------------------------------------------------------------------------------


def config(seed: int, optim: dict[str, Any], objective: dict[str, Any], **run: Any) -> FlatTrainConfig:
    return FlatTrainConfig(
        model=FlatVAEConfig(latent_dim=4, conv_channels=4),
        optim=replace(PLAIN_ADAM, **{"optimizer_eps": EPSILON, **optim}),
        objective=ObjectiveConfig(**objective),
        run=RunConfig(**{"seed": seed, "batch_size": 8, **run}),
    )


def fresh(configs: list[FlatTrainConfig]) -> list[stepping.Trainer]:
    """Trainers as a training script makes them."""
    made = []
    for each in configs:
        torch.manual_seed(each.run.seed)
        made.append(start.trainer_for(each, toy.open_toy(Path()), ALONE, STEPS))
    return made


def orders_of(configs: list[FlatTrainConfig], data: datasets.Dataset) -> list[datasets.Batches]:
    return [datasets.Batches(len(data), c.run.batch_size * c.optim.accumulation, c.run.seed) for c in configs]


def steps_alone(configs: list[FlatTrainConfig], steps: int) -> tuple[list[stepping.Trainer], Tensor]:
    """Trainers after ``steps`` steps one by one, and their losses [N, steps]."""
    data, trainers, losses = toy.open_toy(Path()), fresh(configs), []
    for one, order in zip(trainers, orders_of(configs, data), strict=True):
        images = [data.images(order.indices(step)[1]) for step in range(steps)]
        losses.append(torch.stack([one.train_step(x).terms["loss"] for x in images]))
    return trainers, torch.stack(losses)


def steps_together(configs: list[FlatTrainConfig], steps: int) -> tuple[list[stepping.Trainer], Tensor]:
    """The same at once."""
    data, trainers, losses = toy.open_toy(Path()), fresh(configs), []
    together, order = ReplicaTrainer(trainers, Replicas), Orders(orders_of(configs, data))
    for step in range(steps):
        reports = together.train_step(data.images(order.indices(step)[1]))
        losses.append(torch.stack([report.terms["loss"] for report in reports]))
    return trainers, torch.stack(losses, dim=1)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Train in float64."""
    for module in (stepping, replicas):
        monkeypatch.setattr(module, "to_float", lambda images, *_: images.double())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def assert_same_state(one: stepping.Trainer, other: stepping.Trainer, tolerance: float = TOLERANCE) -> None:
    """Weights, averages, moments and counters, up to the tolerance."""
    a, b = one.state.state_dict(), other.state.state_dict()
    assert a.keys() == b.keys()
    for name in ("num_skipped", "num_bad_in_a_row"):
        assert a[name] == b[name]
    assert one.state.step == other.state.step
    for part in ("model", "ema", "optimizer"):
        # a counter of steps has torch's default type in one optimiser and float32 in the other
        torch.testing.assert_close(a[part], b[part], rtol=tolerance, atol=tolerance, check_dtype=part != "optimizer")


@pytest.mark.parametrize(
    ("optim", "objective", "run"),
    [
        ({}, {"objective": "vae"}, {}),
        ({"lr_schedule": "cosine", "lr_warmup": 0.1}, {"objective": "beta", "beta_warmup": 0.5}, {}),
        ({"ema_decay": 0.9}, {"objective": "capacity"}, {}),
        ({"grad_clip": 5.0}, {"objective": "tc", "beta": 2.0}, {}),
        ({"accumulation": 2}, {"objective": "dip"}, {"batch_size": 4}),
        ({"optimizer": "rmsprop"}, {"objective": "grouped"}, {}),
        ({"optimizer": "adamax", "weight_decay": 1e-3}, {"objective": "denoising"}, {}),
    ],
    ids=lambda value: "-".join(map(str, value.values())),
)
def test_replicas_are_the_single_runs(
    optim: dict[str, Any], objective: dict[str, Any], run: dict[str, Any], double: None
) -> None:
    """100 steps in float64: what is left is rounding, on every kind of CPU."""
    configs = [config(seed, optim, objective, **run) for seed in (3, 4)]
    singles, expected = steps_alone(configs, STEPS)
    together, losses = steps_together(configs, STEPS)
    assert losses.dtype == torch.float64
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0.0)
    for one, other in zip(together, singles, strict=True):
        assert_same_state(one, other, tolerance=1e-8)
    assert float((losses[:, -1] - losses[:, 0]).abs().min()) > 5.0  # nats: far from where they began
    assert len(set(losses[:, -1].tolist())) == 2


def test_with_adams_own_epsilon_only_rounding_tells_them_apart(double: None) -> None:
    """With an epsilon of 1e-8, a gradient that is only rounding error makes a full step; float64 has hardly any such error."""
    configs = [config(seed, {"optimizer_eps": 1e-8}, {"objective": "beta"}) for seed in (3, 4)]
    singles, expected = steps_alone(configs, STEPS)
    together, losses = steps_together(configs, STEPS)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=0.0)
    for one, other in zip(together, singles, strict=True):
        torch.testing.assert_close(one.parameters, other.parameters, rtol=1e-9, atol=1e-9)


def test_betas_at_one_seed_are_the_single_runs() -> None:
    configs = [config(3, {}, {"objective": "beta", "beta": beta}) for beta in (1.0, 8.0)]
    singles, expected = steps_alone(configs, STEPS)
    together, losses = steps_together(configs, STEPS)
    torch.testing.assert_close(losses, expected, rtol=TOLERANCE, atol=TOLERANCE)
    for one, other in zip(together, singles, strict=True):
        assert_same_state(one, other)
    assert float((losses[0] - losses[1]).abs().max()) > 1.0


def poison(monkeypatch: pytest.MonkeyPatch, seed: int, steps: range) -> None:
    """Noise of one seed that makes these steps not finite."""
    real = stepping.Trainer.noise

    def noise_of(self: stepping.Trainer) -> list[Tensor]:
        bad = self.config.run.seed == seed and self.state.step in steps
        return [n * float("nan") for n in real(self)] if bad else real(self)

    monkeypatch.setattr(stepping.Trainer, "noise", noise_of)


@pytest.mark.parametrize("bad", [range(1), range(2, 4)], ids=["first", "later"])
def test_a_step_is_skipped_for_one_replica_alone(bad: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser's count of steps, which corrects the bias of its moments, skips the step too."""
    poison(monkeypatch, 4, bad)
    configs = [config(seed, {"ema_decay": 0.9}, {"objective": "vae"}) for seed in (3, 4)]
    singles, _ = steps_alone(configs, 8)
    together, _ = steps_together(configs, 8)
    for one, other in zip(together, singles, strict=True):
        assert_same_state(one, other)
        a, b = (dict(t.state.ema.model.state_dict()) for t in (one, other) if t.state.ema is not None)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # a skipped step moves an average by some 1e-5
    assert [one.state.num_skipped for one in together] == [0, len(bad)]


def test_long_gradients_are_skipped_for_each_alone() -> None:
    configs = [config(seed, {}, {"objective": "vae"}) for seed in (3, 4, 5)]
    data, probe = toy.open_toy(Path()), ReplicaTrainer(fresh(configs), Replicas)
    order = Orders(orders_of(configs, data))
    norms = [float(report.grad_norm) for report in probe.train_step(data.images(order.indices(0)[1]))]
    between = sum(sorted(norms)[-2:]) / 2  # of the largest and the second
    configs = [config(seed, {"grad_skip": between}, {"objective": "vae"}) for seed in (3, 4, 5)]
    together, _ = steps_together(configs, 1)
    assert [one.state.num_skipped for one in together] == [int(norm > between) for norm in norms]
    assert [one.state.num_bad_in_a_row for one in together] == [0, 0, 0]


# --- the folders -----------------------------------------------------------------------------------------------------


def test_each_folder_is_that_of_the_single_run(batched: Path, data: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in batched.iterdir()) == ["seed5", "seed6"]
    single, replica = tmp_path / "single", batched / "seed6"
    assert call(data, single, "--seed", "6").code == 0
    for one, other in zip(running.records(replica), running.records(single), strict=True):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    a, b = running.newest(replica), running.newest(single)
    assert a.keys() == b.keys()
    running.assert_same(a["config"], b["config"])
    torch.testing.assert_close(a["model"], b["model"], rtol=TOLERANCE, atol=TOLERANCE)
    for name in ("config.json", "summary.json"):
        assert json.loads((replica / name).read_text()).keys() == json.loads((single / name).read_text()).keys()
    files = {path.relative_to(single).parts for path in single.rglob("*") if "tfevents" not in path.name}
    assert {path.relative_to(replica).parts for path in replica.rglob("*") if "tfevents" not in path.name} == files
    assert len(list(replica.glob("events.out.tfevents.*"))) == 1


@pytest.mark.parametrize("resident", ["no", "yes"])
def test_each_replica_has_the_random_views_of_its_seed(resident: str, data: Path, tmp_path: Path) -> None:
    more = ["--hflip", "True", "--data-on-device", resident]
    out, single = tmp_path / "out", tmp_path / "single"
    asked = ["--seed", "5", "--replicas", "2", "--resume", "auto"]
    assert call(data, out, *asked, *more, "--stop-at-step", "3").code == 0
    assert call(data, out, *asked, *more).code == 0
    assert call(data, single, "--seed", "6", *more).code == 0
    for one, other in zip(running.records(out / "seed6"), running.records(single), strict=True):
        assert one == pytest.approx(other, rel=TOLERANCE, abs=TOLERANCE)
    recorded = [
        json.loads((path / "config.json").read_text())["data"]["recipe"]["seed"] for path in (out / "seed6", single)
    ]
    assert recorded == [6, 6]


def test_checkpoints_hold_one_replica_and_not_the_stack(batched: Path) -> None:
    content = checkpoint.load(checkpoint.find(batched / "seed5" / "checkpoints")[0])
    for value in content["model"].values():
        assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


def test_everything_reads_a_replica(batched: Path, tmp_path: Path) -> None:
    run = str(batched / "seed6")
    for script, arguments in (
        ("evaluate", ["--run", run]),
        ("sample", ["--run", run, "--out", str(tmp_path / "samples.png")]),
        ("compare", ["--runs", *map(str, sorted(batched.iterdir())), "--out", str(tmp_path / "report")]),
    ):
        result = running.call(script, *arguments)
        assert result.code == 0, (script, result.err)
    saved = open_run(batched / "seed6")
    assert (saved.step, saved.config.run.seed) == (6, 6)
    assert saved.model.group_shapes == [(3,)]


def test_betas_are_named_as_a_sweep_names_them(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = call(
        data, out, "--objective", "beta", "--replica-betas", "0.5", "4", "--replicas", "2", "--eval-every", "9"
    )
    assert result.code == 0, result.err
    found = {path.name: open_run(path).config for path in out.iterdir()}
    assert found.keys() == {f"beta-{beta}-seed{seed}" for beta in ("0.5", "4") for seed in (0, 1)}
    for beta in (0.5, 4.0):
        run = found[f"beta-{beta:g}-seed1"]
        assert isinstance(run, FlatTrainConfig)
        assert (run.objective.beta, run.run.seed) == (beta, 1)
    last = [running.records(out / f"beta-{beta}-seed0")[-2] for beta in ("0.5", "4")]
    assert [line["train/beta"] for line in last] == [0.5, 4.0]


def test_a_beta_displaces_the_preset_s_other_form() -> None:
    default = ReplicatedTrainConfig(
        objective=ObjectiveConfig(objective="beta", beta_pixel_mean=1e-3), replica_betas=(2.0,)
    )
    (run,) = default.runs().values()
    assert run.objective.typed() == {"beta": 2.0}


# --- going on --------------------------------------------------------------------------------------------------------


def assert_same_runs(out: Path, reference: Path) -> None:
    for path in sorted(reference.iterdir()):
        running.assert_same_run(out / path.name, path)


@pytest.mark.parametrize("stop_at", ["3", "4"])
def test_resumed_replicas_are_the_uninterrupted_ones(batched: Path, data: Path, tmp_path: Path, stop_at: str) -> None:
    out = tmp_path / "out"
    asked = ["--seed", "5", "--replicas", "2", "--resume", "auto"]
    assert call(data, out, *asked, "--stop-at-step", stop_at).code == 0
    assert call(data, out, *asked).code == 0
    assert_same_runs(out, batched)
    assert "is complete" in call(data, out, *asked).out


def test_a_kill_between_two_checkpoints(batched: Path, data: Path, tmp_path: Path) -> None:
    """If one replica lacks the newest checkpoint, all resume from the one before and overwrite later steps."""
    out = Path(shutil.copytree(batched, tmp_path / "out"))
    for path in (out / "seed6" / "checkpoints").glob("step-000000006.pt*"):
        path.unlink()
    (out / "seed5" / "summary.json").unlink()
    result = call(data, out, "--seed", "5", "--replicas", "2", "--resume", "auto")
    assert result.code == 0, result.err
    assert result.err.count("at step 3") == 2
    assert_same_runs(out, batched)


def test_a_replica_that_is_added_later_wipes_nothing(batched: Path, data: Path, tmp_path: Path) -> None:
    """The new replica has no checkpoint, so there is no common step to continue from; the finished ones are not changed."""
    out = Path(shutil.copytree(batched, tmp_path / "out"))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    result = call(data, out, "--seed", "5", "--replicas", "3", "--resume", "auto")
    running.assert_one_error(result, "seed5", "--run-dir")
    assert {path: path.read_bytes() for path in before} == before


def test_a_replica_goes_on_alone(data: Path, tmp_path: Path) -> None:
    out, single = tmp_path / "out", tmp_path / "single"
    assert call(data, out, "--replicas", "2", "--stop-at-step", "3").code == 0
    result = call(data, out / "seed1", "--seed", "1", "--resume", "auto")
    assert result.code == 0, result.err
    assert call(data, single, "--seed", "1").code == 0
    torch.testing.assert_close(
        running.newest(out / "seed1")["model"], running.newest(single)["model"], rtol=TOLERANCE, atol=TOLERANCE
    )


def test_sigterm_saves_every_replica(
    batched: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", ReplicaTrainer.train_step
    asked = ["--seed", "5", "--replicas", "2"]

    def stop(self: ReplicaTrainer, images: Tensor, asked: bool) -> Any:
        if self.states[0].step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, images, asked)

    with monkeypatch.context() as patch:
        patch.setattr(ReplicaTrainer, "train_step", stop)
        result = call(data, out, *asked)
    assert result.code == errors.EXIT_PREEMPTED, result.err
    for path in out.iterdir():
        assert (path / "preempted").read_text() == "2\n"
        assert [p.name for p in checkpoint.find(path / "checkpoints")] == ["step-000000002.pt"]
    assert call(data, out, *asked, "--resume", "auto").code == 0
    assert_same_runs(out, batched)
    assert not list(out.glob("*/preempted"))


def test_sigterm_in_one_replica_s_evaluation_saves_every_replica(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, real = tmp_path / "out", Run.evaluate

    def stop(self: Run, *, final: bool = False) -> dict[str, Any]:
        if self.config.run.seed == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, final=final)

    monkeypatch.setattr(Run, "evaluate", stop)
    assert call(data, out, "--replicas", "3").code == errors.EXIT_PREEMPTED
    assert [(path / "preempted").read_text() for path in out.iterdir()] == ["4\n"] * 3


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_diverges_leaves_the_others_alone(
    batched: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 6, range(3, 5))  # it would recover; alone it would have ended
    out, asked = tmp_path / "out", ["--seed", "5", "--replicas", "2", "--max-bad-steps", "2"]
    result = call(data, out, *asked)
    assert result.code == errors.EXIT_DIVERGED
    assert "error: 1 of 2 replicas diverged (seed6" in result.err
    assert "Traceback" not in result.err
    assert result.err.count("seed6: warning: step") == 2
    said = json.loads((out / "seed6" / "diverged.json").read_text())
    indices = datasets.Batches(18, 4, 6).indices(4)[1]
    assert (said["step"], said["ranks"][0]["indices"]) == (5, indices.tolist())
    for path in checkpoint.find(out / "seed6" / "checkpoints"):
        assert all(value.isfinite().all() for value in checkpoint.load(path)["model"].values())
    running.assert_same(running.newest(out / "seed6")["model"], at_step(out / "seed6", 3)["model"])
    assert not (out / "seed6" / "summary.json").exists()
    assert not (out / "seed5" / "diverged.json").exists()
    running.assert_same(running.newest(out / "seed5")["model"], running.newest(batched / "seed5")["model"])
    assert (out / "seed5" / "summary.json").exists()
    assert call(data, out, *asked, "--resume", "auto").code == errors.EXIT_DIVERGED


def at_step(run: Path, step: int) -> dict[str, Any]:
    return checkpoint.load(checkpoint.path_of(run / "checkpoints", step))


def test_another_replica_does_not_overwrite_the_trained_ones(batched: Path, data: Path, tmp_path: Path) -> None:
    """All replicas are at the same step, so with a new one the others would have to start again."""
    out = tmp_path / "out"
    shutil.copytree(batched, out)
    before = {path: path.read_bytes() for path in out.rglob("*.json*")}
    asked = ["--seed", "5", "--replicas", "3", "--resume", "auto"]
    running.assert_one_error(call(data, out, *asked), "seed5", "seed7", "--run-dir")
    assert {path: path.read_bytes() for path in before} == before
    assert not (out / "seed7" / "config.json").exists()


def test_when_all_diverge_the_run_ends(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping.Trainer, "noise", lambda self: [torch.full((4, 3), torch.nan)])
    result = call(data, tmp_path / "out", "--replicas", "2", "--max-bad-steps", "2")
    assert result.code == errors.EXIT_DIVERGED
    assert "2 of 2 replicas diverged (seed0, seed1" in result.err
    assert [line["step"] for line in running.records(tmp_path / "out" / "seed0")] == [1, 2]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--replicas", "0"], "--replicas 0"),
        (["--replicas", "2", "--objective", "factor"], "--objective factor"),
        (["--replicas", "2", "--precision", "fp16"], "--precision fp16"),
        (["--replicas", "2", "--optimizer", "fused_adam"], "--optimizer fused_adam"),
        (["--replicas", "2", "--keep-checkpoints", "1"], "--keep-checkpoints 1"),
        (["--replica-betas", "1", "2"], "--beta does nothing for objective vae"),
        (["--objective", "beta", "--replica-betas", "2", "2"], "each value once"),
        (["--objective", "beta", "--replica-betas", "-2"], "--beta is -2"),
        (["--objective", "beta", "--replica-betas", "1", "2", "--beta", "3"], "--beta and --replica-betas"),
        (["--objective", "beta", "--replica-betas", "1", "2", "--beta-norm=3"], "--beta-norm and --replica-betas"),
        (["--replicas", "2", "--score-every", "1"], "no ground-truth factors"),
        (["--replicas", "2", "--seed", str(2**31 - 1)], "--seed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_batched_is_refused_in_one_line(typed: list[str], said: str, data: Path, tmp_path: Path) -> None:
    running.assert_one_error(call(data, tmp_path / "out", *typed), said)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "start", lambda *_: Ranks(0, 2, torch.device("cpu")))
    result = call(data, tmp_path / "out", "--replicas", "2")
    running.assert_one_error(result, "replicas train in one process, but torchrun started 2")


def test_folders_of_other_runs_are_refused(batched: Path, data: Path) -> None:
    before = sorted(batched.rglob("*"))
    running.assert_one_error(call(data, batched, "--seed", "5", "--replicas", "2"), "seed5 already holds a run")
    running.assert_one_error(call(data, batched / "seed5", "--replicas", "2"), "already holds a run")
    changed = ["--seed", "5", "--replicas", "2", "--resume", "auto", "--lr", "0.01"]
    running.assert_one_error(call(data, batched, *changed), "optim.lr")
    assert sorted(batched.rglob("*")) == before


def test_a_dry_run_names_the_replicas_and_writes_nothing(data: Path, tmp_path: Path) -> None:
    result = call(data, tmp_path / "out", "--replicas", "3", "--dry-run")
    assert result.code == 0
    assert "3 replicas of this, trained as one batched model: seed0 seed1 seed2" in result.out
    assert "measured: mean of 2 steps" in result.out
    assert not (tmp_path / "out").exists()


def test_one_progress_for_all(data: Path, tmp_path: Path) -> None:
    result = call(data, tmp_path / "out", "--replicas", "2", "--max-steps", "2", "--log-every", "1")
    assert result.err.count("step 1/2") == 1
    assert "seed1: step 2 held out" in result.err
