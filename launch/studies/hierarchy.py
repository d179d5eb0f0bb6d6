"""Does a hierarchy disentangle? NVAEs of 1, 2 and 3 scales against flat beta-VAEs, on dSprites and on CelebA's attributes.

Trains and scores the missing runs, stores the scores beside the report, and writes the report from them. Repeat the
command to continue a stopped study. The runs are shared with the scaling study (launch/studies/scaling.py).

Examples:
  python launch/studies/hierarchy.py --celeba-root FOLDER
  python launch/studies/hierarchy.py --datasets dsprites --seeds 5 --nvae-steps 20000 --flat-steps 100000
  python launch/studies/hierarchy.py --report-only
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

from launch.console import errors, flags
from launch.console.terminal import say
from launch.studies import family, hierarchy_report
from launch.studies.family import DataName, Member
from launch.studies.family_runs import FamilyConfig, refuse


@dataclass(frozen=True, kw_only=True)
class HierarchyConfig(FamilyConfig):
    """Runs of the study and the folder of its report."""

    width: int = 4
    """Channels of the NVAEs at full resolution; a GPU has time for 16 or more."""
    report: Path = Path("docs/studies/hierarchy")
    """Folder of the report."""


def members(data: DataName, width: int) -> list[Member]:
    """The models of the study; the first, the plain flat VAE, is the reference."""
    return [
        family.flat(data, "vae"),
        *(family.scaled(num_scales, width) for num_scales in (1, 2, 3)),
        family.flat(data, "beta", 4.0),
        family.flat(data, "tc", 4.0),
    ]


def main(arguments: list[str]) -> None:
    """Train and score the missing runs, then report."""
    chosen = flags.parse(
        HierarchyConfig, HierarchyConfig(), arguments, prog="studies/hierarchy.py", description=__doc__ or ""
    )
    wanted = {name: chosen.runs(name, members(name, chosen.width)) for name in chosen.datasets}
    faults = chosen.train_and_score(wanted)
    say(f"report {hierarchy_report.write(chosen.report, chosen.stored(wanted))}")
    refuse(faults)


if __name__ == "__main__":
    errors.main(main)
