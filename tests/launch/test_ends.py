"""Exit codes are right; a missing or hanging git, a bad variable of torchrun and wrong early flags are handled."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from launch.console import errors, flags
from launch.machine import distributed
from launch.training import folder
from tests.launch.running import assert_one_error, call


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (np._core._exceptions._ArrayMemoryError((10**9, 10**9), np.dtype(np.float64)), True),  # type: ignore[attr-defined]
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("the card is out of memory; no"), False),
    ],
)
def test_out_of_memory_is_known_wherever_it_comes_from(error: Exception, is_memory: bool) -> None:
    assert errors.is_out_of_memory(error) is is_memory


def test_out_of_memory_is_exit_code_4_in_every_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def body(arguments: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr("sys.argv", ["x.py"])
    with pytest.raises(SystemExit) as left:
        errors.main(body)
    assert left.value.code == errors.EXIT_OUT_OF_MEMORY
    said = capsys.readouterr().err
    assert "--batch-size" in said
    assert "Traceback" not in said


def test_a_run_knows_no_commit_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert folder.commit() is None


def test_a_git_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec /bin/sleep 600\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(folder, "GIT_SECONDS", 0.1)
    began = time.monotonic()
    assert folder.commit() is None
    assert time.monotonic() - began < 60.0


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_a_variable_of_torchrun_that_is_no_number_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(ValueError, match=name):
        distributed.start("cpu")


@pytest.mark.parametrize(
    ("arguments", "found", "rest"),
    [
        (["--beta", "-4", "--debug", "x"], True, ["--beta", "-4", "x"]),
        (["--beta", "4"], False, ["--beta", "4"]),
        (["--values", "1", "--", "--debug"], False, ["--values", "1", "--", "--debug"]),
        (["--debugging"], False, ["--debugging"]),
        ([], False, []),
    ],
)
def test_a_switch_is_taken_out_of_the_arguments(arguments: list[str], found: bool, rest: list[str]) -> None:
    assert flags.take_switch("debug", arguments) == (found, rest)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--beta", "-4"], "-4"),
        (["--beta=1", "--beta", "2"], "2"),
        (["--beta-norm", "3"], None),
        (["--beta"], None),
        (["--", "--beta", "3"], None),
    ],
)
def test_a_value_is_read_before_the_other_flags(arguments: list[str], value: str | None) -> None:
    assert flags.typed_value("beta", arguments) == value


def test_a_switch_with_a_value_is_one_line() -> None:
    assert_one_error(call("plan", "--debug=1"), "--debug")
