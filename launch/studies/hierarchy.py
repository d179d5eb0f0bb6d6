"""Does a hierarchy disentangle? NVAEs of 1, 2 and 3 scales against flat beta-VAEs, on dSprites and on CelebA's attributes.

Trains, scores and stores the missing runs, and writes the report from the stored scores. Repeat the command to continue
a stopped study, or with more --seeds to extend it.

Examples:
  python launch/studies/hierarchy.py --celeba-root FOLDER
  python launch/studies/hierarchy.py --datasets dsprites --seeds 5 --minutes 60
  python launch/studies/hierarchy.py --report-only
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

from launch.console import errors, flags
from launch.console.terminal import say
from launch.studies import family, hierarchy_report
from launch.studies.family import DataName, Length, Member
from launch.studies.family_runs import FamilyConfig, refuse

SCALES = {1: (4,), 2: (2, 2), 3: (2, 1, 1)}  # groups on each scale, the finest first
RECIPES = {
    "dsprites": ("--preset", "dsprites"),
    # the first groups at 16x16: at 32x32 four groups on one scale take twice as long
    "celeba": ("--preset", "celeba64-cpu", "--preprocess-blocks", "2", "--postprocess-blocks", "2"),
}
COMMON = ("--compile", "--log-every", "100")
# NVAE of one scale and flat VAE, compiled, on one core of an AMD EPYC 7003; those of CelebA are estimates. Whether models
# train for equal times depends on the ratios alone; the report states the CPU time of each.
STEPS_PER_MINUTE = {"dsprites": (375, 440), "celeba": (100, 250)}
PACES = {1: 1.0, 2: 0.8, 3: 0.65}  # steps of more scales in the time of one step of one scale


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig(FamilyConfig):
    """Runs of the study and the folder of its report."""

    minutes: float = 30.0
    """Training time of each run, in minutes of a CPU core of 2021. It sets the number of steps, on a GPU too."""
    out: Path = Path("studies/hierarchy")
    """Folder of the runs."""
    store: Path = Path("docs/studies/hierarchy/runs")
    """Folder of their scores, from which the report is made."""
    report: Path = Path("docs/studies/hierarchy")
    """Folder of the report."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 < self.minutes < math.inf:
            raise ValueError(f"--minutes {self.minutes:g}; give a number above 0")

    def length(self, data: DataName) -> Length:
        """As many steps as take the minutes on a CPU, with ten evaluations."""
        nvae, flat = (max(1, round(self.minutes * rate)) for rate in STEPS_PER_MINUTE[data])
        return Length(nvae, flat, schedule="cosine", points=10, eval_images=1024)

    @property
    def lengths(self) -> dict[str, Any]:
        """The minutes of training."""
        return {"minutes": self.minutes}


def members(data: DataName) -> list[Member]:
    """The models of the study; the first, the plain flat VAE, is the reference."""
    return [
        _flat(data, "vae"),
        *(nvae(data, num_scales) for num_scales in SCALES),
        _flat(data, "beta", 4.0),
        _flat(data, "tc", 4.0),
    ]


def nvae(data: DataName, num_scales: int) -> Member:
    """The recipe of a data set (docs/studies/recipes.md), its four groups on 1, 2 or 3 scales of which the finest is the same."""
    groups = SCALES[num_scales]
    typed = ("--num-scales", str(num_scales), "--groups-per-scale", *map(str, groups))
    return Member(f"nvae-scales{num_scales}", "train_nvae", (*RECIPES[data], *typed, *COMMON), PACES[num_scales])


def _flat(data: DataName, objective: Literal["vae", "beta", "tc"], beta: float | None = None) -> Member:
    """The recipe of the zoo's flat VAE with another objective."""
    member = family.flat(data, objective, beta)
    recipe = ("--lr", "1e-3", "--lr-min", "1e-4", "--lr-warmup", "0.02", "--ema-decay", "0.999")
    return replace(member, flags=(*member.flags, *recipe, *COMMON))


def main(arguments: list[str]) -> None:
    """Train and score the missing runs, then report."""
    chosen = flags.parse(
        HierarchyConfig, HierarchyConfig(), arguments, prog="studies/hierarchy.py", description=__doc__ or ""
    )
    wanted = {name: chosen.runs(name, members(name)) for name in chosen.datasets}
    faults = chosen.train_and_score(wanted)
    say(f"report {hierarchy_report.write(chosen.report, chosen.stored(wanted))}")
    refuse(faults)


if __name__ == "__main__":
    errors.main(main)
