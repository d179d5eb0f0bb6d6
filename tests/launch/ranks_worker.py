"""Run under torchrun by test_ranks.py: steps of several ranks, resumed and not, and the order of their collectives."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.steps import random_images, trainer_of
from datasets import Batches
from launch.machine import distributed
from launch.machine.distributed import Ranks
from launch.training.step import Trainer
from tests.launch.test_captured import SPEC, config

GLOBAL_BATCH, ACCUMULATION = 24, 2  # of a step; 3 and 4 ranks divide it
COLLECTIVES = ("all_reduce", "all_gather_into_tensor", "broadcast")


def trainer(ranks: Ranks) -> Trainer:
    """A trainer with recomputed cells, flows and accumulation."""
    chosen = config(
        checkpointing=True, accumulation=ACCUMULATION, batch=GLOBAL_BATCH // ranks.world_size // ACCUMULATION
    )
    return trainer_of(chosen, SPEC, ranks.device, ranks=ranks)


def step(subject: Trainer, ranks: Ranks) -> float:
    """One step on this rank's share of the same images; the mean loss."""
    images = random_images(SPEC, GLOBAL_BATCH).roll(subject.state.step, -1)
    shares = Batches(
        GLOBAL_BATCH, GLOBAL_BATCH, 0, ranks.rank, ranks.world_size, shuffle=False, accumulation=ACCUMULATION
    )
    loss = subject.train_step(images[shares.indices(0)[1]]).terms["loss"].clone()
    if ranks.world_size > 1:
        dist.all_reduce(loss)
    return float(loss) / ranks.world_size


def noted(log: list[Any]) -> None:
    """Note every collective's name and size in ``log``."""
    for name in COLLECTIVES:
        real = getattr(dist, name)

        def call(*args: Any, real: Any = real, name: str = name, **kwargs: Any) -> Any:
            log.append((name, *(tuple(a.shape) for a in args if isinstance(a, Tensor))))
            return real(*args, **kwargs)

        setattr(dist, name, call)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", timeout_minutes=2.0)
    log: list[Any] = []
    noted(log)
    whole = trainer(ranks)
    losses = [step(whole, ranks) for _ in range(2)]
    saved = copy.deepcopy(whole.state.state_dict()) | {"step": whole.state.step}
    resumed = trainer(ranks)
    resumed.state.load_state_dict(saved)
    for subject in (whole, resumed):
        losses += [step(subject, ranks) for _ in range(2)]
    orders = ranks.gather(log)
    pairs = zip(whole.parameters, resumed.parameters, strict=True)
    found = {
        "losses": losses,
        "differ": sum(not torch.equal(mine, other) for mine, other in pairs),
        "same_order": all(order == orders[0] for order in orders),
        "num_collectives": len(log),
        "weights": whole.flat.weights.values,
    }
    if ranks.is_main:
        torch.save(found, out / "found.pt")
    distributed.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
