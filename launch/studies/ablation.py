"""Ablation of NVAE: the dSprites recipe with one ingredient switched off at a time, over several seeds.

Trains the missing runs, stores a record of each beside the report, and writes the report from these records. Repeat the
command to continue a stopped study.

Examples:
  python launch/studies/ablation.py --steps 6000
  python launch/studies/ablation.py --report-only
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import numpy as np

from launch.console import errors, flags
from launch.console.terminal import say
from launch.machine import files
from launch.studies import ablation_report
from launch.studies.family_runs import refuse
from launch.training import jobs, records
from launch.training.folder import RunFolder
from launch.training.jobs import ScriptRun

# The first is the reference.
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    "no-residual-posterior": ("--no-residual-posterior",),
    "no-spectral-penalty": ("--spectral-weight", "0"),
    "no-squeeze-excite": ("--no-squeeze-excite",),
    "depthwise-decoder": ("--cell-arch", "res_mbconv"),
    "no-kl-balance": ("--no-kl-balance",),
    "no-kl-warm-up": ("--kl-anneal-portion", "0"),
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """Runs of the study, their length, and the folder of the report."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Ingredients to switch off; all is the whole recipe."""
    seeds: int = 3
    """Seeds 0, 1, ... of each variant."""
    steps: int = 6000
    """Steps of each run: about a quarter of an hour of an idle CPU core."""
    eval_images: int = 2000
    """Number of held-out images for the final ELBO."""
    data_root: Path | None = None
    """Folder for the rendered images; default data/dsprites."""
    out: Path = Path("studies/ablation")
    """Folder of the runs."""
    report: Path = Path("docs/studies/ablation")
    """Folder of the records and the report."""
    workers: int | None = None
    """Number of runs at once; default one per GPU, or without a GPU one single-threaded run per core."""
    dask: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers train the runs; they share --out and this checkout."""
    report_only: bool = False
    """Only write the report from the stored records."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "eval_images", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} {value}; give 1 or more")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants:
            raise ValueError(f"--variants {' '.join(unknown)}; choose from {', '.join(VARIANTS)}")

    def runs(self) -> list[ScriptRun]:
        """Every variant with every seed, one seed after another, so that a stopped study has all variants."""
        where = () if self.data_root is None else ("--data-root", str(self.data_root))
        return [
            ScriptRun(
                "train_nvae",
                (
                    *("--dataset", "dsprites", "--preset", "dsprites", "--dsprites-source", "rendered", *where),
                    *(
                        "--max-steps",
                        str(self.steps),
                        "--final-eval-images",
                        str(self.eval_images),
                        "--iw-samples",
                        "1",
                    ),
                    *VARIANTS[name],
                    *("--seed", str(seed)),
                ),
                self.out / f"{name}-seed{seed}",
            )
            for seed in range(self.seeds)
            for name in self.variants
        ]


def outcome(folder: Path) -> dict[str, Any] | None:
    """Outcome of a run, or None if it has not ended: held-out ELBO and KL, gradient norms, skipped steps."""
    files_of = RunFolder(folder)
    if (folder / "diverged.json").is_file():
        return {"diverged_at": files_of.read_json("diverged.json")["step"]}
    if not (folder / "summary.json").is_file():
        return None
    summary = files_of.read_json("summary.json")
    norms = _gradient_norms(folder)
    held_out = summary["valid"]
    return {
        "diverged_at": None,
        "step": summary["step"],
        "images_seen": summary["images_seen"],
        "seconds": summary["seconds"],
        "skipped_steps": summary["skipped_steps"],
        "num_parameters": summary["num_parameters"],
        **{name: held_out[name] for name in ("elbo", "rate", "distortion", "active_units", "kl_group")},
        "grad_norm_median": float(np.median(norms)) if norms else None,
        "grad_norm_largest": max(norms, default=None),
    }


def _gradient_norms(folder: Path) -> list[float]:
    found = [record for _, record in records.read(folder / records.NAME) if record is not None]
    return [float(record["optim/grad_norm"]) for record in found if "optim/grad_norm" in record]


def store(runs: Sequence[ScriptRun], report: Path) -> None:
    """Keep the outcome of each run that has ended beside the report."""
    for run in runs:
        found = outcome(run.folder)
        if found is not None:
            files.write_json(report / "runs" / f"{run}.json", found)


def main(arguments: list[str]) -> None:
    """Train what is missing, then report."""
    chosen = flags.parse(
        AblationConfig, AblationConfig(), arguments, prog="studies/ablation.py", description=__doc__ or ""
    )
    runs, faults = chosen.runs(), list[str]()
    if not chosen.report_only:
        chosen.out.mkdir(parents=True, exist_ok=True)
        jobs.claim(chosen.out, "ablation.json", {"steps": chosen.steps})
        faults = jobs.train_all([run for run in runs if outcome(run.folder) is None], chosen.workers, chosen.dask)
        store(runs, chosen.report)
    say(f"report {ablation_report.write(chosen.report, list(VARIANTS))}")
    refuse([fault for fault in faults if "not finite" not in fault])  # a run that diverged is a result


if __name__ == "__main__":
    errors.main(main)
