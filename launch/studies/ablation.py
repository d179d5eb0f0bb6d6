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
from launch.console.config import at_least
from launch.console.terminal import say
from launch.machine import files
from launch.report.statistics import over_seeds, spread
from launch.report.tables import Table, write_paragraphs
from launch.studies.study import StudyConfig, refuse
from launch.training import jobs, records
from launch.training.folder import RunFolder
from launch.training.jobs import ScriptRun

WHOLE = "all"  # the reference
VARIANTS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    "no-residual-posterior": ("--no-residual-posterior",),
    "no-spectral-penalty": ("--spectral-weight", "0"),
    "no-squeeze-excite": ("--no-squeeze-excite",),
    "depthwise-decoder": ("--cell-arch", "res_mbconv"),
    "no-kl-balance": ("--no-kl-balance",),
    "no-kl-warm-up": ("--kl-anneal-portion", "0"),
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig(StudyConfig):
    """Runs of the study, their length, and the folder of the report."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Ingredients to switch off; all is the whole recipe."""
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

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(1, self, "steps", "eval_images")
        unknown = [name for name in self.variants if name not in VARIANTS]
        if unknown or not self.variants:
            raise ValueError(f"--variants {' '.join(unknown)}; choose from {', '.join(VARIANTS)}")

    def runs(self) -> list[ScriptRun]:
        """Every variant with every seed, one seed after another, so that a stopped study has all variants."""
        where = [] if self.data_root is None else ["--data-root", str(self.data_root)]
        shared = ["--dataset", "dsprites", "--preset", "dsprites", "--dsprites-source", "rendered", *where]
        shared += ["--max-steps", str(self.steps), "--final-eval-images", str(self.eval_images), "--iw-samples", "1"]
        return [
            ScriptRun("train_nvae", (*shared, *VARIANTS[name], "--seed", str(seed)), self.out / f"{name}-seed{seed}")
            for seed in range(self.seeds)
            for name in self.variants
        ]


def outcome(folder: Path) -> dict[str, Any] | None:
    """Outcome of a run, or None if it has not ended: held-out ELBO and KL, gradient norms, skipped steps."""
    if (folder / "diverged.json").is_file():
        return {"diverged_at": RunFolder(folder).read_json("diverged.json")["step"]}
    if not (folder / "summary.json").is_file():
        return None
    summary = RunFolder(folder).read_json("summary.json")
    norms = [float(r["optim/grad_norm"]) for r in records.with_number(folder, "optim/grad_norm").values()]
    of_run = ("step", "images_seen", "seconds", "skipped_steps", "num_parameters")
    return {
        "diverged_at": None,
        **{name: summary[name] for name in of_run},
        **{name: summary["valid"][name] for name in ("elbo", "rate", "distortion", "active_units", "kl_group")},
        "grad_norm_median": float(np.median(norms)) if norms else None,
        "grad_norm_largest": max(norms, default=None),
    }


# --- The report, made only from the stored records ----------------------------------------------------------------------

OPENING = (
    "Written by `python launch/studies/ablation.py` (`make ablation-study`) from the records in `runs/`; `--report-only` "
    "rewrites it. Each row is the dSprites recipe (preset `dsprites`) with one ingredient switched off, at equal steps. "
    "ELBO, rate and KL are held out, in nats per image, with averaged weights; ± is the standard deviation over seeds."
)
Record = dict[str, Any]


def write(folder: Path) -> Path:
    """Write ``index.md`` from ``folder / runs``; the first variant is the reference.

    Raises:
        ValueError: no run has ended yet.
    """
    found = {name: _records(folder / "runs", name) for name in VARIANTS}
    found = {name: records for name, records in found.items() if records}
    if not found:
        raise ValueError(f"no records are stored in {folder / 'runs'}; start the study without --report-only")
    reference = _values(found.get(WHOLE, []), "elbo")
    rows = [_row(name, records, reference, is_reference=name == WHOLE) for name, records in found.items()]
    head = [
        *("variant", "seeds", "diverged", "ELBO", "difference from all, ± 95 %", "rate", "KL of the groups, top first"),
        *("gradient norm, median", "largest", "skipped steps", "parameters", "minutes"),
    ]
    title = "# What each ingredient of NVAE contributes"
    return write_paragraphs(folder / "index.md", [title, OPENING, _cost(found), Table(head, rows).markdown()])


def _records(folder: Path, name: str) -> list[Record]:
    return [files.read_json(path) for path in sorted(folder.glob(f"{name}-seed*.json"))]


def _values(records: Sequence[Record], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One number of every run that did not diverge."""
    return np.array([r[name] for r in records if r["diverged_at"] is None and r[name] is not None], dtype=np.float64)


def _spread(records: Sequence[Record], name: str, digits: int = 1, scale: float = 1.0) -> str:
    return spread(_values(records, name) * scale, digits)


def _row(name: str, records: list[Record], reference: Any, *, is_reference: bool) -> list[str]:
    ended = [r for r in records if r["diverged_at"] is None]
    difference = None if is_reference else over_seeds(_values(records, "elbo"), reference)
    kl = np.array([r["kl_group"] for r in ended]).mean(axis=0) if ended else []
    return [
        name,
        str(len(records)),
        str(len(records) - len(ended)),
        _spread(records, "elbo"),
        "-" if difference is None else difference.text(1),
        _spread(records, "rate"),
        ", ".join(f"{value:.1f}" for value in kl) or "-",
        _spread(records, "grad_norm_median"),
        _spread(records, "grad_norm_largest"),
        _spread(records, "skipped_steps"),
        _spread(records, "num_parameters", 2, 1e-6) + " M",
        _spread(records, "seconds", 1, 1 / 60),
    ]


def _cost(found: dict[str, list[Record]]) -> str:
    every = [record for records in found.values() for record in records]
    minutes = _values(every, "seconds").sum() / 60
    steps = sorted({int(step) for step in _values(every, "step")})
    length = ", ".join(f"{step:,}" for step in steps) or "no"
    return f"{len(every)} runs of {length} steps, {minutes:.0f} minutes of training in total."


def main(arguments: list[str]) -> None:
    """Train what is missing, then report."""
    chosen = flags.parse(
        AblationConfig, AblationConfig(), arguments, prog="studies/ablation.py", description=__doc__ or ""
    )
    runs, faults = chosen.runs(), list[str]()
    if not chosen.report_only:
        jobs.claim(chosen.out, "ablation.json", {"steps": chosen.steps})
        faults = jobs.train_all([run for run in runs if outcome(run.folder) is None], chosen.workers, chosen.dask)
        for run in runs:
            if (found := outcome(run.folder)) is not None:
                files.write_json(chosen.report / "runs" / f"{run}.json", found)
    say(f"report {write(chosen.report)}")
    refuse([fault for fault in faults if "not finite" not in fault])  # a run that diverged is a result


if __name__ == "__main__":
    errors.main(main)
