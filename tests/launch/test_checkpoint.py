"""Checkpoints: written whole or not at all, refused with the reason when damaged, never trusted to run code."""

from __future__ import annotations

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from launch.machine import files
from launch.training import checkpoint
from tests.conftest import ROOT
from tests.launch.running import assert_same, environment


def content(value: float = 1.0) -> dict[str, Any]:
    return {"model": {"weight": torch.full((50, 3), value)}, "config": {"run": {"seed": 0}}, "none": None}


def steps(folder: Path) -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in checkpoint.find(folder)]


def newest_step(folder: Path) -> tuple[int | None, list[str]]:
    warnings: list[str] = []
    found = next(checkpoint.newest_valid(folder, warnings.append), None)
    return (None if found is None else int(found[1]["step"])), warnings


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = content() | {"scalars": [1, 2.5, True, "text"], "half": torch.ones(3, dtype=torch.bfloat16)}
    path = checkpoint.save(tmp_path / "new", 7, saved)
    assert_same(checkpoint.load(path), {"format": checkpoint.FORMAT, "step": 7, **saved})


def test_checksum_is_what_sha256sum_checks(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, content())
    done = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10, 100):
        checkpoint.save(tmp_path, step, content(), keep=3)
    assert steps(tmp_path) == [100, 10, 3]
    assert len(list(tmp_path.iterdir())) == 6  # nothing but three checkpoints and their checksums


def test_rotation_survives_a_failing_delete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, content())

    def refuse(self: Path, missing_ok: bool = False) -> None:
        if self.name.startswith("step-"):
            raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(Path, "unlink", refuse)
    checkpoint.save(tmp_path, 2, content(), keep=1)
    assert newest_step(tmp_path) == (2, [])


def test_damaged_newer_checkpoints_do_not_push_out_good_ones(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, step, content()).write_bytes(b"damaged")
    for step in (1, 2, 3):  # the run starts afresh
        checkpoint.save(tmp_path, step, content(), keep=2)
        assert newest_step(tmp_path)[0] == step
    assert {2, 3} <= set(steps(tmp_path))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    weights = raw.index(np.float32(2.0).tobytes() * 10)  # inside the weights, where torch.load notices nothing
    raw[weights + 5] ^= 1
    path.write_bytes(bytes(raw))
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["weight"], content(2.0)["model"]["weight"])


def _lose_the_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").unlink()


def _empty_the_checksum(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_bytes(b"\xff\x00")


def _rewrite(path: Path, write: Any) -> None:
    """Other bytes under a checksum that fits: what an attacker would leave."""
    with open(path, "wb") as file:
        write(file)
    path.with_name(path.name + ".sha256").write_text(f"{files.sha256(path)}  {path.name}\n")


class _Malice:
    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def _malicious_zip(path: Path) -> None:
    _rewrite(path, lambda file: torch.save({"format": 1, "step": 2, "model": _Malice()}, file))


def _malicious_pickle(path: Path) -> None:
    _rewrite(path, lambda file: pickle.dump({"format": 1, "step": 2, "model": _Malice()}, file))


def _newer_format(path: Path) -> None:
    _rewrite(path, lambda file: torch.save({"format": checkpoint.FORMAT + 1, "step": 2}, file))


def _another_file(path: Path) -> None:
    _rewrite(path, lambda file: torch.save([1, 2, 3], file))


def _no_zip(path: Path) -> None:
    _rewrite(path, lambda file: file.write(b"hello"))


def _nothing(path: Path) -> None:
    _rewrite(path, lambda file: None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, "damaged"),
        (_flip_a_bit, "damaged"),
        (_lose_the_checksum, "no checksum"),
        (_empty_the_checksum, "damaged"),
        (_malicious_zip, "damaged or has another format"),
        (_malicious_pickle, "damaged or has another format"),
        (_newer_format, f"has format {checkpoint.FORMAT + 1}"),
        (_another_file, "checkpoint of this project"),
        (_no_zip, "damaged or has another format"),
        (_nothing, "damaged or has another format"),
    ],
)
def test_damage_is_named_and_the_older_one_used(
    damage: Any, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tmp_path / "ck", 1, content(1.0))
    path = checkpoint.save(tmp_path / "ck", 2, content(2.0))
    damage(path)
    with pytest.raises(ValueError, match=reason) as caught:
        checkpoint.load(path)
    assert str(path) in str(caught.value)
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)
    step, warnings = newest_step(tmp_path / "ck")
    assert step == 1
    assert len(warnings) == 1
    assert path.name in warnings[0]
    assert not (tmp_path / "owned").exists()


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpoint.load(tmp_path / "step-000000001.pt")


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failing_write_leaves_the_old_ones(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, content())
    before = sorted(p.name for p in tmp_path.iterdir())

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tmp_path, 2, content(), keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert newest_step(tmp_path) == (1, [])


FULL_DISK = """
import resource, signal, sys
sys.path.insert(0, {root!r})
import torch
from pathlib import Path
from launch.training import checkpoint
folder = Path({folder!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # past the limit a write fails with EFBIG, as with a full disk
checkpoint.save(folder, 1, {{"model": torch.zeros(10)}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(folder, 2, {{"model": torch.zeros(100_000)}}, keep=1)
except OSError as error:
    print("OSError", error.strerror)
"""


def test_a_full_disk_in_the_middle_of_the_file_says_so(tmp_path: Path) -> None:
    """A real full disk, which torch's zip writer reports as a RuntimeError without naming the cause."""
    program = FULL_DISK.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "OSError File too large", done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000001.pt", "step-000000001.pt.sha256"]


class _Killed(BaseException):
    """An end like that of kill -9, after which none of our code runs."""


@pytest.mark.parametrize("fatal", range(1, 9))
def test_killed_at_any_call_to_the_disk(fatal: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After each system call the disk holds the old state or the new one, and damage is noticed."""
    checkpoint.save(tmp_path, 1, content(1.0))
    calls = 0

    def counted(real: Any) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls >= fatal:
                raise _Killed
            return real(*arguments, **named)

        return run

    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "replace"), (Path, "unlink")):
            patch.setattr(module, name, counted(getattr(module, name)))
        reported = False
        try:
            checkpoint.save(tmp_path, 2, content(2.0), keep=1)
            reported = True
        except _Killed:
            pass
    step, _ = newest_step(tmp_path)
    assert step == 2 if reported else step in (1, 2)
    for path in checkpoint.find(tmp_path):
        try:
            loaded = checkpoint.load(path)
        except ValueError:
            continue
        assert torch.equal(loaded["model"]["weight"], content(float(loaded["step"]))["model"]["weight"])
    checkpoint.save(tmp_path, 2, content(2.0), keep=1)
    assert newest_step(tmp_path) == (2, [])


def test_bytes_reach_the_disk_before_the_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after a rename without fsync leaves an empty file under the right name."""
    events: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(handle: int) -> None:
        events.append("fsync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_fsync(handle)

    def replace(source: Path, target: Path) -> None:
        events.append(f"rename {Path(source).name} {Path(target).name}")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    checkpoint.save(tmp_path, 1, content())
    name = "step-000000001.pt"
    checksum, file = events[0].removeprefix("fsync "), events[3].removeprefix("fsync ")
    assert checksum.startswith(f".{name}.sha256.")
    assert file.startswith(f".{name}.")
    assert checksum.endswith(files.TEMPORARY)
    assert file.endswith(files.TEMPORARY)
    assert events == [
        f"fsync {checksum}",
        f"rename {checksum} {name}.sha256",
        f"fsync {tmp_path.name}",
        f"fsync {file}",
        f"rename {file} {name}",
        f"fsync {tmp_path.name}",
    ]


def test_writing_a_text_is_atomic(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    files.write_text(path, "old")

    def fail(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        files.write_atomically(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]


KILLED_SAVING = """
import os, random, signal, sys, time, json, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {root!r})
import torch
from pathlib import Path
from launch.training import checkpoint
folder, chance = Path({folder!r}), random.Random(0)
torch.set_num_threads(1)
lost, wrong, interrupted, last = [], [], 0, 0
for trial in range({trials}):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        for step in range(last + 1, last + 1000):
            checkpoint.save(folder, step, {{"model": torch.full((200_000,), float(step))}}, keep=2)
            os.write(writer, step.to_bytes(4, "little"))
    os.close(writer)
    os.read(reader, 4)
    time.sleep(chance.uniform(0.0, 0.02))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    reported = last + 1
    while word := os.read(reader, 4):
        reported = int.from_bytes(word, "little")
    os.close(reader)
    path, content = next(checkpoint.newest_valid(folder, lambda text: None))
    last = content["step"]
    if last < reported:
        lost.append((trial, reported, last))
    if not bool((content["model"] == last).all()):
        wrong.append(trial)
    leftovers = [p for p in folder.iterdir() if p.name.endswith(".tmp")]
    interrupted += bool(leftovers)
    for leftover in leftovers:
        leftover.unlink()
print(json.dumps({{"lost": lost, "wrong": wrong, "interrupted": interrupted, "last": last}}))
"""


def test_kill_minus_9_while_saving_loses_nothing_that_was_reported(tmp_path: Path) -> None:
    program = KILLED_SAVING.format(root=str(ROOT), folder=str(tmp_path / "ck"), trials=40)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment(), check=True
    )
    said = json.loads(done.stdout)
    assert said["lost"] == []
    assert said["wrong"] == []
    assert said["interrupted"] >= 5  # the kills did hit writes
