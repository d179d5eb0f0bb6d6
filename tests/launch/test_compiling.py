"""--compile: errors if it cannot work, or if the compiler was stopped together with the run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from launch.console import errors
from launch.machine import execution
from launch.training import step as stepping
from nvae import NVAE
from tests.launch import running


def test_a_machine_without_a_compiler_is_told_so(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution.shutil, "which", lambda name: None)
    result = running.call("train_nvae", *running.flags(data, tmp_path / "run", "--compile"))
    running.assert_one_error(result, "--compile needs a C++ compiler", "apt install g++")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_compiler_that_fails(stopped: bool, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to the process group ends the compiler with the run: that is a stop, and no fault of the compiler."""
    monkeypatch.setattr(NVAE, "compile_parts", lambda self: None)
    asked: list[errors.StopRequest] = []
    real_init, real_step = errors.StopRequest.__init__, stepping.Trainer.train_step

    def init(self: errors.StopRequest) -> None:
        real_init(self)
        asked.append(self)

    def step(self: stepping.Trainer, images: torch.Tensor, *, stop: bool = False) -> stepping.StepReport:
        if self.state.step < 4:
            return real_step(self, images, stop=stop)
        asked[0].asked = stopped
        raise BackendCompilerFailed(lambda: None, RuntimeError("g++ was killed; very much so"), None)

    monkeypatch.setattr(errors.StopRequest, "__init__", init)
    monkeypatch.setattr(stepping.Trainer, "train_step", step)
    run = tmp_path / "run"
    result = running.call("train_nvae", *running.flags(data, run, "--compile"))
    assert "Traceback" not in result.err
    if stopped:
        assert result.code == errors.EXIT_PREEMPTED
        assert "newest checkpoint is of step 3" in result.err
        assert "--resume auto" in result.err
        assert (run / "preempted").read_text() == "3\n"
    else:
        running.assert_one_error(result, "torch.compile failed", "leave out --compile")
    assert (run / "checkpoints" / "step-000000003.pt").exists()


def test_a_cache_that_a_killed_compiler_left_is_named() -> None:
    error = BackendCompilerFailed(lambda: None, ImportError("/tmp/torchinductor_me/ab/kernel.so: file too short"), None)
    said = execution.compiler_fault(error)
    assert "/tmp/torchinductor_me/ab/kernel.so" in said
    assert "delete the compiler's cache" in said
    assert "\n" not in said
