"""Checkpoints: one file each, written atomically, checksummed, and loaded without unpickling code.

A checkpoint ``step-000000300.pt`` holds tensors and plain data. Beside it lies ``step-000000300.pt.sha256``, in the
format of ``sha256sum -c``, because ``torch.load`` does not notice a flipped bit. The checksum is on disk before the file gets
its name, so a file without a matching checksum was never reported as saved.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from launch.machine import files
from launch.machine.files import read_tensors, reason, sha256, write_atomically, write_text

FORMAT = 1
NAME = re.compile(r"step-(\d{9,15})\.pt")
ANOTHER = "use another checkpoint"


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _HashingFile:
    """A binary file that hashes what is written through it: the checksum is that of the intended bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch's zip writer turns it into a RuntimeError without the reason
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def path_of(folder: Path, step: int) -> Path:
    """Path of the checkpoint of an optimiser step."""
    return folder / f"step-{step:09d}.pt"


def step_of(path: Path) -> int | None:
    """Optimiser step in a checkpoint's name; None if the name is not a checkpoint's."""
    named = NAME.fullmatch(path.name)
    return int(named[1]) if named else None


def save(folder: Path, step: int, content: dict[str, Any], *, keep: int = 3) -> Path:
    """Write the checkpoint of ``step``, and delete all but the newest ``keep`` of those up to this step.

    Checkpoints of later steps do not count. If the run continues from an earlier step, they were found damaged, and must
    not displace good ones.

    Args:
        folder: created if missing, but only inside an existing run folder: a deleted or renamed one is not created
            again.
        step: optimiser steps done.
        content: tensors and plain data; anything else could not be loaded again.
        keep: number of checkpoints to keep.

    Raises:
        OSError: disk full, quota, read-only, or the run folder is gone; every earlier checkpoint remains.
    """
    folder.mkdir(exist_ok=True)
    path = path_of(folder, step)

    def write(file: IO[bytes]) -> None:
        hashing = _HashingFile(file)
        try:
            torch.save({"format": FORMAT, "step": step, **content}, hashing)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise hashing.failure or error from None
        write_text(_checksum_path(path), f"{hashing.hash.hexdigest()}  {path.name}\n")

    write_atomically(path, write)
    for old in [p for p in find(folder) if p.name <= path.name][keep:]:
        try:
            old.unlink()
            _checksum_path(old).unlink(missing_ok=True)
        except OSError:
            break  # the new checkpoint is safe; a surplus old one does no harm
    return path


def find(folder: Path) -> list[Path]:
    """All checkpoints, valid or not, newest step first; none if the folder can't be listed."""
    try:
        names = [path for path in folder.iterdir() if step_of(path) is not None]
    except OSError:
        return []
    return sorted(names, key=lambda path: step_of(path) or 0, reverse=True)


def reject(folder: Path, *, beyond: int) -> None:
    """Rename the checkpoints of steps after ``beyond``, so that no start continues from them."""
    for path in find(folder):
        if (step_of(path) or 0) > beyond:
            path.replace(path.with_name(f"{path.name}.rejected"))
            _checksum_path(path).unlink(missing_ok=True)


def trace(folder: Path, *, beyond: int, weights: bool) -> str | None:
    """Find evidence in ``folder`` that checkpoints were written there, valid or not.

    Args:
        folder: folder of the checkpoints.
        beyond: only files of later steps count; a kill during the first write may leave files up to this step.
        weights: a checkpoint file itself counts at any step, because it gets its name only when complete.

    Returns:
        A phrase that names the evidence, or None.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"{folder} can't be listed, {reason(error)}"
    for name in reversed(names):
        step = step_of(Path(name.removesuffix(".sha256")))
        if step is not None and (step > beyond or (weights and name.endswith(".pt"))):
            return f"{name} is not a valid checkpoint" if weights else f"{name} exists"
    return None


def recorded_sha256(path: Path) -> str:
    """The checksum recorded beside a checkpoint, which identifies its content without reading it.

    Raises:
        ValueError: there is no checksum file.
    """
    checksum = _checksum_path(path)
    if not checksum.exists():
        raise ValueError(f"{path} has no checksum file {checksum.name} beside it; {ANOTHER}")
    text = files.read(checksum, lambda file: file.read(1024).decode(errors="replace"), remedy=ANOTHER, limit=1024)
    return text.split(" ")[0].strip()


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        ValueError: it is missing or unreadable, its checksum is missing or does not match, it holds more than tensors
            and plain data, or this version does not read its format.
    """
    if not path.exists():
        raise ValueError(f"there is no checkpoint {path}; see which exist in {path.parent}")
    recorded = recorded_sha256(path)
    try:
        found = sha256(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} can't be read ({reason(error)}); {ANOTHER}") from error
    if recorded != found:
        raise ValueError(f"{path} is damaged, its bytes do not match {_checksum_path(path).name}; {ANOTHER}")
    content = read_tensors(path, remedy=ANOTHER)
    if not isinstance(content, dict) or not _is_count(content.get("format")) or not _is_count(content.get("step")):
        raise ValueError(f"{path} is not a checkpoint of this project; {ANOTHER}")
    if not 1 <= content["format"] <= FORMAT:
        raise ValueError(
            f"{path} has format {content['format']}, this version reads 1 to {FORMAT}; {ANOTHER} or update Strata"
        )
    return content


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**15


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield valid checkpoints, newest first; skip invalid ones and report each through ``warn``.

    A run in progress may remove listed checkpoints, so the folder is listed again until no new one appears.
    """
    seen: set[Path] = set()
    while fresh := [path for path in find(folder) if path not in seen]:
        for path in fresh:
            seen.add(path)
            try:
                content = load(path)
            except ValueError as error:
                if path.exists():
                    warn(f"skipped: {error}")
                continue
            yield path, content


def check_weights(own: dict[str, Any], state: Any, where: str) -> None:
    """Refuse weights of another model, before anything is copied.

    Raises:
        ValueError: keys are missing or unexpected, or values are not dense tensors of the right shape and kind.
    """
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(f"{where} holds no weights by name; {ANOTHER}")
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    common = sorted(own.keys() & state.keys())
    other_kind = [key for key in common if not _is_like(state[key], own[key])]
    tensors = [key for key in common if key not in other_kind and isinstance(own[key], torch.Tensor)]
    shapes = [key for key in tensors if own[key].shape != state[key].shape]
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": shapes,
        "of another kind of number": other_kind,
    }
    named = [f"{len(keys)} {what} (e.g. {keys[0]})" for what, keys in faults.items() if keys]
    if named:
        raise ValueError(
            f"{where} does not fit the model: {', '.join(named)}; give the configuration that it was trained with"
        )


def _is_like(value: Any, own: Any) -> bool:
    """True if ``value`` is a dense tensor with storage that holds the same kind of numbers as ``own``."""
    if not isinstance(own, torch.Tensor):  # extra state of a module, which the module checks itself
        return type(value) is type(own)
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and not value.is_meta
        and not value.is_quantized
        and value.is_floating_point() == own.is_floating_point()
        and value.is_complex() == own.is_complex()
    )


def load_state(model: Any, state: Any, where: str) -> None:
    """Load weights into ``model`` after :func:`check_weights`."""
    check_weights(model.state_dict(), state, where)
    model.load_state_dict(state)
