"""Run under torchrun by test_distributed.py: checks that need two ranks. Arguments: run folder, out folder."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import torch

from launch.machine import distributed
from launch.results.run import open_run
from launch.training import checkpoint, evaluation
from launch.training.start import trainer_for
from tests.launch.running import assert_same


def main(run_path: Path, out: Path) -> None:
    torch.set_num_threads(1)
    ranks = distributed.start("cpu", timeout_minutes=2.0)
    run = open_run(run_path)
    data = run.config.data.open("train")
    trainer = trainer_for(run.config, data, ranks, total_steps=16)
    trainer.state.load_state_dict(checkpoint.load(checkpoint.find(run_path / "checkpoints")[0]))
    said: dict[str, object] = {}

    # NaN in this step's noise of rank 1 alone
    before = copy.deepcopy(trainer.state.state_dict())
    drawn = trainer.noise()
    if ranks.rank == 1:
        drawn[-1][0, 0, 0, 0] = float("nan")
    trainer.noise = lambda: drawn  # type: ignore[method-assign]
    count = run.config.run.batch_size
    images = data.images(range(ranks.rank * count, (ranks.rank + 1) * count))
    report = trainer.train_step(images)
    del trainer.noise
    after = copy.deepcopy(trainer.state.state_dict())
    said["skipped"] = report.skipped
    said["num_skipped"] = after.pop("num_skipped") - before.pop("num_skipped")
    said["num_bad_in_a_row"] = after.pop("num_bad_in_a_row") - before.pop("num_bad_in_a_row")
    for state in (before, after):
        del state["objective"]
        for group in state["optimizer"]["param_groups"]:
            del group["lr"]
    assert_same(after, before)

    # a stop that one rank is asked for is known to all, and a good step moves all ranks alike
    report = trainer.train_step(images, stop=ranks.rank == 1)
    said["then_skipped"], said["stop"] = report.skipped, report.stop
    flat = torch.cat([p.detach().flatten() for p in trainer.state.model.parameters()])
    said["weights_agree"] = all(torch.equal(flat, other) for other in ranks.gather(flat))
    said["weights_moved"] = not torch.equal(
        flat, torch.cat([before["model"][n].flatten() for n, _ in trainer.state.model.named_parameters()])
    )

    # evaluation: the whole result on every rank, the same as one rank's
    result = evaluation.evaluate(run.model, data, ranks, batch_size=4, seed=1, importance_draws=2)
    said["elbo"] = [float(v) for v in result.elbo]
    try:
        evaluation.evaluate(run.model, data, ranks, batch_size=4, seed=1, should_stop=lambda: ranks.rank == 1)
        said["evaluation_stopped"] = False
    except evaluation.Stopped:
        said["evaluation_stopped"] = True
    (out / f"rank{ranks.rank}.json").write_text(json.dumps(said))
    distributed.leave(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
