"""Draw a run's curve: loss, KL of each group, gradient norm and sum of spectral norms against the step.

python docs/studies/make_curve.py RUN docs/studies/recipes/dsprites.png --title "NVAE, preset dsprites, on dSprites"
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure


def draw(records: list[dict[str, Any]], title: str) -> Figure:
    """Four panels over the training steps; a held-out point wherever the run was evaluated."""
    mpl.rcParams["font.size"] = 8
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True)
    trained = [record for record in records if "train/loss" in record]
    held_out = [record for record in records if "val/negative_elbo" in record]
    steps = [record["step"] for record in trained]
    loss, kl, gradient, spectral = axes.flat
    loss.plot(steps, [r["train/loss"] for r in trained], label="loss on a training batch", linewidth=0.8)
    loss.plot(
        [r["step"] for r in held_out], [r["val/negative_elbo"] for r in held_out], "o-", label="negative ELBO, held out"
    )
    loss.set(yscale="log", title="loss, nats per image")
    for key in sorted(key for key in trained[-1] if key.startswith("kl_group_train/")):
        kl.plot(steps, [r[key] for r in trained], label=f"group {key.rpartition('/')[2]}", linewidth=0.8)
    kl.set(yscale="log", title="KL of each group (00 is the top), nats per image")
    gradient.plot(steps, [r["optim/grad_norm"] for r in trained], linewidth=0.8)
    gradient.set(yscale="log", title="norm of the gradient", xlabel="optimiser step")
    spectral.plot(steps, [r["train/spectral"] for r in trained], linewidth=0.8)
    spectral.set(title="sum of the convolutions' spectral norms", xlabel="optimiser step")
    loss.legend()
    kl.legend()
    skipped = max(record.get("optim/skipped_steps", 0) for record in trained)
    figure.suptitle(f"{title}: training of {steps[-1]:,} steps, {skipped:.0f} skipped because they were not finite")
    return figure


def main() -> None:
    """Read metrics.jsonl of a run and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("out", type=Path, help="PNG")
    parser.add_argument("--title", required=True, help="model and data, for a reader who sees the file alone")
    given = parser.parse_args()
    records = [json.loads(line) for line in (given.run / "metrics.jsonl").read_text().splitlines()]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    draw(records, given.title).savefig(given.out, dpi=90)


if __name__ == "__main__":
    main()
