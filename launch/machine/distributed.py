"""Ranks: one process or many, started by plain ``python`` or by ``torchrun``, on GPUs (NCCL) or CPUs (gloo)."""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from launch.machine import execution

T = TypeVar("T")

ROLL_CALL_SECONDS = 20.0
_NETWORK_WORDS = ("gloo", "nccl", "timed out", "timeout", "connection", "broken pipe", "socket")


class LostRank(Exception):
    """Another process hangs, died, or cannot be reached; ``speaks`` is set on the one rank that reports it."""

    def __init__(self, text: str, *, speaks: bool) -> None:
        super().__init__(text)
        self.speaks = speaks


def _is_of_the_network(error: RuntimeError) -> bool:
    """True if a collective failed, for which gloo raises plain RuntimeErrors."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _NETWORK_WORDS)


@dataclass(frozen=True)
class Ranks:
    """Identity of this process among all: its ``rank`` out of ``world_size``, and its device."""

    rank: int
    world_size: int
    device: torch.device
    meeting: Any = field(default=None, repr=False, compare=False)
    """The store through which the ranks met."""
    patience: float = ROLL_CALL_SECONDS
    """Seconds that a rank waits for the others' answers after a failure."""

    @property
    def is_main(self) -> bool:
        """True for the process that prints, logs and writes files."""
        return self.rank == 0

    @property
    def device_name(self) -> str:
        """Name of the device; devices of one name draw the same noise."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type

    def barrier(self) -> None:
        """Wait until every rank has arrived."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the others, even if it failed on rank 0."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the others may have been stopped before they arrived
                if self.is_main:
                    self.barrier()
            raise
        if self.is_main:
            self.barrier()

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over all ranks; ranks use it to agree on a stop or a fault."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return [float(v) for v in tensor.tolist()]

    def from_main(self, value: T) -> T:
        """Rank 0's ``value`` (plain data) on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value`` (plain data or CPU tensors), in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        boxes: list[T | None] = [None] * self.world_size
        dist.all_gather_object(boxes, value)
        return [box for box in boxes if box is not None]

    @contextlib.contextmanager
    def naming_the_lost(self, remedy: str) -> Iterator[None]:
        """Turn a collective's time-out or broken connection into a LostRank that names the missing ranks."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not _is_of_the_network(error):
                raise
            raise self._roll_call(error, remedy) from error

    def _roll_call(self, error: RuntimeError, remedy: str) -> LostRank:
        """Find which ranks still run. Every live rank arrives here, because all wait in the same collectives."""
        absent = set(range(self.world_size)) - {self.rank}
        deadline = time.monotonic() + self.patience
        with contextlib.suppress(RuntimeError):  # the store dies with the rank that keeps it
            self.meeting.set(f"lost/{self.rank}", "here")
            while absent and time.monotonic() < deadline:
                absent = {rank for rank in absent if not self.meeting.check([f"lost/{rank}"])}
                time.sleep(0.1)
        cause = str(error).splitlines()[0][:200].replace("; ", ", ")
        if not absent:
            who = f"the {self.world_size} processes lost contact although all of them are running ({cause}); check the network"
        else:
            names = ", ".join(map(str, sorted(absent)))
            who = (
                f"rank {names} hangs, died or cannot be reached ({cause}); see that rank's own output "
                "(torchrun --log-dir D --tee 3)"
            )
        first = min(set(range(self.world_size)) - absent)
        return LostRank(f"{who}, then {remedy}", speaks=self.rank == first)


def start(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_minutes: float = 30.0) -> Ranks:
    """Join the other processes of this ``torchrun``; under plain ``python`` there is only one.

    Raises:
        ValueError: a variable of torchrun is not a number, ``device="cuda"`` has no GPU, there are more processes than
            GPUs, or some processes do not arrive in time.
    """
    execution.full_float32()
    execution.leave_dynamo_unloaded()
    world_size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    local_rank, local_size = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
    chosen = _device(device, rank, local_rank, local_size)
    if world_size == 1:
        return Ranks(rank, world_size, chosen)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    try:
        store = _store(rank, world_size, local_size, timeout)
        dist.init_process_group(
            "nccl" if chosen.type == "cuda" else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen if chosen.type == "cuda" else None,
        )
    except dist.DistError as error:
        raise ValueError(
            f"rank {rank}: the {world_size} processes did not all arrive within {timeout_minutes:g} minutes "
            f"({str(error).splitlines()[0][:120].replace('; ', ', ')}); start the others, or all of them again"
        ) from error
    return Ranks(rank, world_size, chosen, store, min(ROLL_CALL_SECONDS, 60.0 * timeout_minutes))


def _device(device: Literal["auto", "cpu", "cuda"], rank: int, local_rank: int, local_size: int) -> torch.device:
    """The device of this process: its own GPU if there are any, or the CPU."""
    num_gpus = torch.cuda.device_count() if device != "cpu" else 0
    if device == "cuda" and num_gpus == 0:
        raise ValueError("--device cuda, but torch sees no GPU; use --device cpu or check the driver with nvidia-smi")
    if num_gpus and local_size > num_gpus:
        raise ValueError(
            f"{local_size} processes for {num_gpus} GPUs; start torchrun with --nproc-per-node={num_gpus} or --nproc-per-node=gpu"
        )
    if num_gpus > local_size and rank == 0:
        print(
            f"warning: {num_gpus} GPUs are visible and {local_size} process(es) started; to use all of them: "
            f"torchrun --standalone --nproc-per-node=gpu {os.path.relpath(sys.argv[0])} ...",
            file=sys.stderr,
        )
    if not num_gpus:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _number(variable: str, otherwise: int) -> int:
    """A number that torchrun set in the environment."""
    typed = os.environ.get(variable, str(otherwise))
    if not (typed.isascii() and typed.isdigit()):
        raise ValueError(
            f"the environment variable {variable} is {typed!r}, which is not a number; unset it or start torchrun"
        )
    return int(typed)


@contextlib.contextmanager
def joined(
    device: Literal["auto", "cpu", "cuda"] = "auto", timeout_minutes: float = 30.0, *, remedy: str = "start it again"
) -> Iterator[Ranks]:
    """Call :func:`start`, and name the ranks that are lost in the block.

    Args:
        device: auto, cpu or cuda.
        timeout_minutes: how long a rank waits for another, here and in every collective.
        remedy: what the user should do after looking at the lost rank.

    Raises:
        LostRank: another rank hangs or died.
    """
    ranks = start(device, timeout_minutes)
    with ranks.naming_the_lost(remedy):
        yield ranks


def _store(rank: int, world_size: int, local_size: int, timeout: datetime.timedelta) -> Any:
    """The store through which the processes meet, separate from that of an earlier attempt.

    After a crash torchrun (2.15) restarts its workers on the same store. A rank that reads another's address from the
    previous attempt would wait on a dead port. Ranks know the number of the attempt only on a single machine.
    """
    store, _, _ = next(rendezvous("env://", rank, world_size, timeout=timeout))
    if local_size < world_size:
        return store
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def finish() -> None:
    """Leave the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def leave(code: int, *, abandon: bool = False) -> None:
    """End this process with ``code``; ``abandon`` leaves the process group as it is, because another rank is gone.

    Ranks exit without the interpreter's clean-up: gloo's threads sometimes abort in it after all work is done, and
    torchrun would report a failure.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if not abandon:
        finish()
    sys.stdout.flush()
    sys.stderr.flush()
    if several:
        os._exit(code)
    sys.exit(code)
