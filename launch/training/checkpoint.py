"""Checkpoints that survive: one file, written whole or not at all, checksummed, loaded without unpickling code.

A checkpoint ``step-000000300.pt`` holds tensors and plain data; beside it ``step-000000300.pt.sha256`` in the format
of ``sha256sum -c``, because ``torch.load`` does not notice a flipped bit. The checksum is on disk before the file gets
its name, so a file without a matching checksum was never reported as saved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from launch.machine.files import sha256, write_atomically, write_text

FORMAT = 1
PATTERN = "step-*.pt"


def _checksum_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


class _HashingFile:
    """A binary file that hashes what is written through it, so that the checksum is of what we meant to write."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        try:
            return self.file.write(data)
        except OSError as error:  # torch's zip writer makes a RuntimeError of it that does not say why
            self.failure = error
            raise

    def flush(self) -> None:
        self.file.flush()


def path_of(folder: Path, step: int) -> Path:
    """Path of the checkpoint of an optimiser step."""
    return folder / f"step-{step:09d}.pt"


def save(folder: Path, step: int, content: dict[str, Any], *, keep: int = 3) -> Path:
    """Write the checkpoint of ``step`` and drop all but the newest ``keep`` up to it.

    Checkpoints of later steps are not counted: a run that goes on from an earlier one has found them damaged, and they
    must not push out good ones.

    Args:
        folder: made if missing.
        step: optimiser steps done.
        content: tensors and plain data only; anything else could not be loaded again.
        keep: how many checkpoints stay.

    Raises:
        OSError: disk full, quota, read-only; every earlier checkpoint is still there.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
            break  # the new checkpoint is safe; an old one too many does no harm
    return path


def find(folder: Path) -> list[Path]:
    """Checkpoints by name, newest step first, whether valid or not."""
    return sorted(folder.glob(PATTERN), reverse=True)


def recorded_sha256(path: Path) -> str:
    """The checksum that was written beside a checkpoint: what names its content without reading it.

    Raises:
        ValueError: there is none.
    """
    checksum = _checksum_path(path)
    if not checksum.is_file():
        raise ValueError(f"{path} has no checksum file {checksum.name} beside it; use another checkpoint")
    return checksum.read_text(errors="replace").split(" ")[0].strip()


def load(path: Path) -> dict[str, Any]:
    """Read one checkpoint onto the CPU.

    Raises:
        ValueError: missing checksum, other bytes than were written, anything but tensors and plain data, or a format
            that is newer than this program.
    """
    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}; see which exist in {path.parent}")
    if recorded_sha256(path) != sha256(path):
        raise ValueError(
            f"{path} is damaged, its bytes do not match {_checksum_path(path).name}; use another checkpoint"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that somebody else made can end the reader with anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise ValueError(
            f"{path} does not load as tensors and plain data ({reason}); use another checkpoint"
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError(f"{path} is no checkpoint of this project; use another one")
    if content["format"] > FORMAT:
        raise ValueError(f"{path} has format {content['format']}, this program reads up to {FORMAT}; update Strata")
    return content


def newest_valid(folder: Path, warn: Callable[[str], None]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield valid checkpoints, newest first; each damaged one is named through ``warn`` and passed over."""
    for path in find(folder):
        try:
            content = load(path)
        except ValueError as error:
            warn(f"skipped: {error}")
            continue
        yield path, content


def load_state(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Load weights.

    Raises:
        ValueError: naming missing, unexpected and misshapen keys.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or shapes:
        named = [
            f"{len(keys)} {what} (e.g. {keys[0]})"
            for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", sorted(shapes)))
            if keys
        ]
        raise ValueError(
            f"{where} does not fit the model: {', '.join(named)}; the configuration must be the one it was trained with"
        )
    model.load_state_dict(state)
