"""Sweep any flag of a training script over values and seeds; write one table, one plot and one recommended value.

Every run is a call of the training script with its own run folder. Repeat the command to continue a sweep or to extend
it by values and seeds: finished runs are skipped, stopped ones are resumed. Arguments after -- go to the training
script.

Examples:
  python launch/sweep.py --values 1 2 4 8 -- --dataset dsprites --preset burgess --objective beta --max-steps 20000
  python launch/sweep.py --values 1 2 4 8 --by latent-dim --by-values 5 10 -- --dataset dsprites --objective beta
  python launch/sweep.py --flag latent-dim --values 2 5 10 --seeds 5 --out runs/sizes -- --dataset frey
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[1])]


from launch.console import errors, flags
from launch.console.config import at_least
from launch.families import FAMILIES
from launch.studies import sweep_report
from launch.training import jobs
from launch.training.jobs import Script, ScriptRun

OWN_FLAGS = ("seed", "run-dir", "resume")  # of the training script, which the sweep sets


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Settings of a sweep."""

    values: tuple[str, ...]
    """Values of the flag; several numbers for one value are joined by commas (latent-groups: 3,3 2,4)."""
    flag: str = "beta"
    """Flag of the training script, without its dashes."""
    by: str | None = None
    """A second flag, with one curve for each of its values, such as latent-dim."""
    by_values: tuple[str, ...] = ()
    """Values of the second flag."""
    seeds: int = 3
    """Number of seeds per value: 0, 1, ..."""
    out: Path = Path("runs/sweep")
    """Folder of the runs, their logs, and the report: table.md, sweep.png, results.json."""
    script: Script = "train_flat_vae"
    """Training script."""
    workers: int | None = None
    """Number of runs at once; default one per GPU, or without a GPU one single-threaded run per core."""
    share: str = "1/1"
    """Part of the runs to train here: 3/8 on the third of eight machines that share --out. To write the report, repeat the
    command without --share."""
    dask: str | None = None
    """Address of a Dask scheduler, such as tcp://host:8786, whose workers train the runs; they share --out and this checkout."""
    images: int = 10_000
    """Number of test images for MIG and covariance distance: the same images as score.py --images takes."""

    def __post_init__(self) -> None:
        at_least(1, self, "seeds", "workers")
        at_least(8, self, "images")
        count = self.share.partition("/")[2]
        if not (count.isdecimal() and self.share in [f"{i}/{count}" for i in range(1, int(count) + 1)]):
            raise ValueError(f"--share {self.share}; use 1/N, 2/N, ..., N/N on N machines")
        if not self.values or any(len(set(v)) < len(v) for v in (self.values, self.by_values)):
            raise ValueError(f"--values {' '.join(self.values)}; give each value once, at least one")
        if (self.by is None) != (not self.by_values) or self.by == self.flag:
            raise ValueError("--by needs --by-values and must differ from --flag; give both or neither")
        for flag in self.flags:
            if flag in OWN_FLAGS:
                raise ValueError(f"--flag {flag} is set by the sweep itself; choose another flag, or --seeds")

    def part(self, runs: Sequence[ScriptRun]) -> list[ScriptRun]:
        """Return the runs of this share, every Nth."""
        number, count = map(int, self.share.split("/"))
        return list(runs[number - 1 :: count])

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags that vary."""
        return (self.flag,) if self.by is None else (self.flag, self.by)

    @property
    def settings(self) -> list[tuple[str, ...]]:
        """Every combination of values of these flags."""
        return list(itertools.product(self.values, *([self.by_values] if self.by else [])))


def _run(sweep: SweepConfig, arguments: Sequence[str], setting: tuple[str, ...], seed: int) -> ScriptRun:
    """The run of one setting and seed; its shared arguments come first."""
    named = list(zip(sweep.flags, setting, strict=True))
    own = [word for flag, value in named for word in (f"--{flag}", *value.split(","))]
    name = "-".join(word for pair in named for word in pair)
    return ScriptRun(sweep.script, (*arguments, *own, "--seed", str(seed)), sweep.out / f"{name}-seed{seed}")


def _check(sweep: SweepConfig, arguments: Sequence[str]) -> None:
    """Refuse, before anything is trained, arguments that the training script would refuse."""
    for name in (*OWN_FLAGS, *sweep.flags):
        if flags.typed_value(name, list(arguments)) is not None:
            raise ValueError(f"--{name} follows -- but is set by the sweep; leave it out there")
    for setting in sweep.settings:
        typed = list(_run(sweep, arguments, setting, 0).all_arguments)
        default = FAMILIES[sweep.script.removeprefix("train_")].recipe(typed)[1]
        flags.parse(type(default), default, typed, prog=f"{sweep.script}.py", description="")


def main(arguments: list[str]) -> None:
    """Train the missing runs, measure them, and write the report."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, shared = arguments[:end], arguments[end + 1 :]
    sweep = flags.parse(SweepConfig, None, own, prog="sweep.py", description=__doc__ or "")
    _check(sweep, shared)
    jobs.claim(sweep.out, "sweep.json", {"script": sweep.script, "flag": list(sweep.flags), "arguments": shared})
    runs = {
        (setting, seed): _run(sweep, shared, setting, seed) for seed in range(sweep.seeds) for setting in sweep.settings
    }
    errors.stop_with_children()
    part = sweep.part(list(runs.values()))
    faults = jobs.train_all(part, sweep.workers, sweep.dask)
    if sweep.share == "1/1":
        _write_report(sweep, runs)
    if faults:
        raise ValueError(
            f"{len(faults)} of {len(part)} runs failed ({faults[0]}); fix the cause and repeat the command"
        )


def _write_report(sweep: SweepConfig, runs: dict[tuple[tuple[str, ...], int], ScriptRun]) -> None:
    """Measure the runs that are done, and write table, plot and results."""
    series: dict[str, dict[str, list[dict[str, Any]]]] = {}
    whose, quantities = "", dict[str, None]()
    for (setting, _), run in sorted(runs.items(), key=lambda item: sweep.settings.index(item[0][0])):
        if run.is_done():
            title = f"{sweep.by} {setting[1]}" if sweep.by else ""
            whose = whose or sweep_report.name_of(run.folder)
            quantities[sweep_report.quantity_of(run.folder)] = None
            series.setdefault(title, {}).setdefault(setting[0], []).append(
                sweep_report.measure(run.folder, sweep.images)
            )
    if series:
        print()
        title = sweep_report.title(whose, sweep.flag)
        print(sweep_report.write(sweep.out, sweep.flag, series, title, list(quantities)))


if __name__ == "__main__":
    errors.main(main)
