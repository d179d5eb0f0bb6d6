"""Ranks: one process or many, started by plain ``python`` or by ``torchrun``, on GPUs (NCCL) or CPUs (gloo)."""

from __future__ import annotations

import datetime
import os
import sys
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Who this process is: ``rank`` of ``world_size``, and the device it computes on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process speaks: prints, logs, writes files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

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


def start(device: Literal["auto", "cpu", "cuda"] = "auto", timeout_minutes: float = 30.0) -> Ranks:
    """Join the other processes of this ``torchrun``, or be alone under plain ``python``.

    Raises:
        ValueError: ``device="cuda"`` without a GPU, or more processes than GPUs.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
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
    if world_size > 1:
        timeout = datetime.timedelta(minutes=timeout_minutes)
        dist.init_process_group(
            "nccl" if num_gpus else "gloo",
            store=_store(rank, world_size, local_size, timeout),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=chosen if num_gpus else None,
        )
    return Ranks(rank, world_size, chosen)


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


def leave(code: int) -> None:
    """End this process with ``code``.

    Several processes end without the interpreter's clean-up: gloo's threads sometimes abort in it after all work is
    done, and torchrun would report that as a failure.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    finish()
    sys.stdout.flush()
    sys.stderr.flush()
    if several:
        os._exit(code)
    sys.exit(code)
