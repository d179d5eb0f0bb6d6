"""Scaling study: depth, width, scales and data of NVAEs and flat VAEs on dSprites and CelebA, with fitted power laws.

Depth is varied at equal parameters, work and number of latents. Trains, scores and stores the runs that are not stored
yet, and writes the report. Repeat the command to continue a stopped study. The report says what the longer runs of the
hierarchy study (launch/studies/hierarchy.py) change.

Examples:
  python launch/studies/scaling.py --celeba-root FOLDER
  python launch/studies/scaling.py --widths 16 32 64 --nvae-steps 20000 --flat-steps 100000 --out studies/gpu
  python launch/studies/scaling.py --report-only
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

from launch.console import errors, flags
from launch.console.config import at_least
from launch.studies import family, scaling_report
from launch.studies.family import DataName, FamilyConfig, Length, Member


@dataclass(frozen=True, kw_only=True)
class ScalingConfig(FamilyConfig):
    """Runs of the study and the folder of its report."""

    nvae_steps: int = 400
    """Steps of 16 images of each NVAE: a minute of one CPU core."""
    flat_steps: int = 700
    """Steps of 64 images of each flat VAE, which take about as long."""
    depths: tuple[int, ...] = (2, 4, 8)
    """Groups of NVAEs of one scale, which share their cells, channels and latents."""
    widths: tuple[int, ...] = (4, 6)
    """Channels at full resolution; every depth is trained with each."""
    scales: tuple[int, ...] = (1, 2, 3)
    """Scales of NVAEs of four groups with the first width."""
    report: Path = Path("docs/studies/scaling")
    """Folder of the report."""
    longer: Path = Path("docs/studies/hierarchy/runs")
    """Folder with the scores of the hierarchy study, whose runs are longer."""
    one_length: ClassVar[tuple[str, ...]] = ("nvae_steps", "flat_steps")
    scores_untrained: ClassVar[bool] = False  # sizes are compared only with each other

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, *self.one_length)
        if not self.depths or not self.widths:
            raise ValueError("--depths or --widths is empty; give at least one of each")
        self.members("dsprites")  # refuses models that it can't build

    def length(self, data: DataName) -> Length:
        """The same number of steps on every data set."""
        return Length(self.nvae_steps, self.flat_steps)

    def members(self, data: DataName) -> list[Member]:
        """A flat VAE, as depth 1, then NVAEs of every depth and width and of every number of scales, each once."""
        found = [
            family.flat(data, "vae"),
            *(family.deep(depth, width) for width in self.widths for depth in self.depths),
            *(family.scaled(num_scales, self.widths[0]) for num_scales in self.scales),
        ]
        return list({member.name: member for member in found}.values())


def main(arguments: list[str]) -> None:
    """Train and score the missing runs, then report."""
    chosen = flags.parse(
        ScalingConfig, ScalingConfig(), arguments, prog="studies/scaling.py", description=__doc__ or ""
    )
    chosen.carry_out(lambda stored: scaling_report.write(chosen.report, stored, chosen.longer))


if __name__ == "__main__":
    errors.main(main)
