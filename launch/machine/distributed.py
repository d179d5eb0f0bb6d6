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
    """Another process hangs, died, or cannot be reached; ``speaks`` is set on the one rank that should say so."""

    def __init__(self, text: str, *, speaks: bool) -> None:
        super().__init__(text)
        self.speaks = speaks


def _is_of_the_network(error: RuntimeError) -> bool:
    """Whether a collective ended with this: gloo raises plain RuntimeErrors."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in _NETWORK_WORDS)


@dataclass(frozen=True)
class Ranks:
    """Who this process is: ``rank`` of ``world_size``, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device
    meeting: Any = field(default=None, repr=False, compare=False)
    """The store that the ranks met at."""
    patience: float = ROLL_CALL_SECONDS
    """Seconds that a rank waits for the answer of others after something went wrong."""

    @property
    def is_main(self) -> bool:
        """Whether this process speaks: prints, logs, writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Rank 0 runs the block while the others wait; they follow also when it failed."""
        if not self.is_main:
            self.barrier()
        try:
            yield
        except BaseException:
            with contextlib.suppress(RuntimeError):  # the others may have been stopped before they came here
                if self.is_main:
                    self.barrier()
            raise
        if self.is_main:
            self.barrier()

    def maximum(self, *values: float) -> list[float]:
        """The largest of each value over all ranks: how ranks agree on a stop or a fault."""
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
        """Turn a collective's time-out or broken connection into a LostRank that names who is missing."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or not _is_of_the_network(error):
                raise
            raise self._roll_call(error, remedy) from error

    def _roll_call(self, error: RuntimeError, remedy: str) -> LostRank:
        """Every rank that still runs its own code comes here, for all of them wait in the same collectives."""
        absent = set(range(self.world_size)) - {self.rank}
        deadline = time.monotonic() + self.patience
        with contextlib.suppress(RuntimeError):  # the store dies with the rank that keeps it
            self.meeting.set(f"lost/{self.rank}", "here")
            while absent and time.monotonic() < deadline:
                absent = {rank for rank in absent if not self.meeting.check([f"lost/{rank}"])}
                time.sleep(0.1)
        cause = str(error).splitlines()[0][:200].replace("; ", ", ")
        if not absent:
            who = f"the {self.world_size} processes lost each other though all of them run ({cause}); check the network"
        else:
            names = ", ".join(map(str, sorted(absent)))
            who = (
                f"rank {names} hangs, died or cannot be reached ({cause}); see that rank's own output "
                "(torchrun --log-dir D --tee 3)"
            )
        first = min(set(range(self.world_size)) - absent)
        return LostRank(f"{who}, then {remedy}", speaks=self.rank == first)


def start(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_minutes: float = 30.0) -> Ranks:
    """Join the other processes of this ``torchrun``, or be alone under plain ``python``.

    Raises:
        ValueError: a variable of torchrun that is no number,
            ``device="cuda"`` without a GPU, more processes than GPUs, or some that do not come in time.
    """
    execution.full_float32()
    world_size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    local_rank, local_size = _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1)
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
    chosen = torch.device("cuda", local_rank) if num_gpus else torch.device("cpu")
    if num_gpus:
        torch.cuda.set_device(chosen)
    if world_size == 1:
        return Ranks(rank, world_size, chosen)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    try:
        store = _store(rank, world_size, local_size, timeout)
        dist.init_process_group(
            "nccl" if num_gpus else "gloo",
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen if num_gpus else None,
        )
    except dist.DistError as error:
        raise ValueError(
            f"rank {rank}: the {world_size} processes did not all come within {timeout_minutes:g} minutes "
            f"({str(error).splitlines()[0][:120].replace('; ', ', ')}); start the others, or all of them again"
        ) from error
    return Ranks(rank, world_size, chosen, store, min(ROLL_CALL_SECONDS, 60.0 * timeout_minutes))


def _number(variable: str, otherwise: int) -> int:
    """What torchrun says in the environment."""
    typed = os.environ.get(variable, str(otherwise))
    if not (typed.isascii() and typed.isdigit()):
        raise ValueError(f"the environment says {variable}={typed!r}, which is no number; unset it or start torchrun")
    return int(typed)


@contextlib.contextmanager
def joined(
    device: Literal["auto", "cpu", "cuda"] = "auto", timeout_minutes: float = 30.0, *, remedy: str = "start it again"
) -> Iterator[Ranks]:
    """`start`, and whoever is lost in the block is named.

    Args:
        device: where to compute.
        timeout_minutes: how long a rank waits for another, here and in every collective.
        remedy: what to do once the lost one has been looked at.

    Raises:
        LostRank: another rank hangs or died.
    """
    ranks = start(device, timeout_minutes)
    with ranks.naming_the_lost(remedy):
        yield ranks


def _store(rank: int, world_size: int, local_size: int, timeout: datetime.timedelta) -> Any:
    """Where the processes find each other, apart from what an earlier attempt left there.

    After a crash torchrun (2.15) restarts its workers on the same store, and a rank that reads the address of another
    from the attempt before waits for a port that nobody listens on. Only on one machine do all ranks know the number
    of the attempt.
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
    """End this process with ``code``; ``abandon`` does not say good-bye to the other ranks, for one of them is gone.

    Several processes end without the interpreter's clean-up: gloo's threads sometimes abort in it after all work is
    done, and torchrun would report that as a failure.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    if not abandon:
        finish()
    sys.stdout.flush()
    sys.stderr.flush()
    if several:
        os._exit(code)
    sys.exit(code)
