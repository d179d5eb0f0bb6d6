"""Ablation of NVAE: the dSprites recipe with one ingredient changed at a time, over several seeds.

Trains the runs that are not stored, stores a record of each beside the report as soon as it ends, and writes the report from
these records. Repeat the command to continue a stopped study.

Examples:
  python launch/studies/ablation.py --steps 6000
  python launch/studies/ablation.py --report-only
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path[0:0] = [str(Path(__file__).resolve().parents[2])]

import numpy as np

from launch.console import errors, flags
from launch.console.config import at_least
from launch.console.figures import Picture, render, save, subplots
from launch.console.terminal import say
from launch.machine import files
from launch.report import words
from launch.report.statistics import Estimate, Float64, over_seeds, spread
from launch.report.tables import Table, write_paragraphs
from launch.studies.study import StudyConfig, refuse
from launch.training import jobs, records
from launch.training.folder import RunFolder
from launch.training.jobs import Devices, ScriptRun


@dataclass(frozen=True)
class Variant:
    """The recipe with one ingredient changed; ``published`` is the paper's change of bits/dim on CIFAR-10, with its table."""

    words: str
    flags: tuple[str, ...] = ()
    published: str = "-"


WHOLE = "all"  # the reference
# Published: Vahdat and Kautz, NVAE, NeurIPS 2020. Depthwise cells in the decoder are its default; of its table 3 we cite the
# rows with regular cells in the encoder.
VARIANTS: dict[str, Variant] = {
    WHOLE: Variant("the whole recipe"),
    "no-residual-posterior": Variant(
        "posteriors are not relative to the prior", ("--no-residual-posterior",), "3.16 to 3.19 (table 4)"
    ),
    "no-spectral-penalty": Variant("no spectral regularisation", ("--spectral-weight", "0"), "3.16 to 3.18 (table 5)"),
    "no-squeeze-excite": Variant("no squeeze-and-excitation", ("--no-squeeze-excite",), "3.16 to 3.22 (table 5)"),
    "depthwise-decoder": Variant(
        "depthwise 5x5 cells in the decoder instead of regular 3x3 ones",
        ("--cell-arch", "res_mbconv"),
        "3.11 to 3.07 (table 3)",
    ),
    "no-kl-balance": Variant("the KL of groups is not balanced during warm-up", ("--no-kl-balance",)),
    "no-kl-warm-up": Variant(
        "the KL has its full weight from the first step, so it is never balanced either", ("--kl-anneal-portion", "0")
    ),
}


@dataclass(frozen=True, kw_only=True)
class AblationConfig(StudyConfig):
    """Runs of the study, their length, and the folder of the report."""

    variants: tuple[str, ...] = tuple(VARIANTS)
    """Variants to train; all is the whole recipe."""
    steps: int = 6000
    """Steps of each run; 6,000 take about a quarter of an hour of a CPU core."""
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
        shared += ["--compile"]
        return [
            ScriptRun(
                "train_nvae", (*shared, *VARIANTS[name].flags, "--seed", str(seed)), self.out / f"{name}-seed{seed}"
            )
            for seed in range(self.seeds)
            for name in self.variants
        ]

    def train(self) -> list[str]:
        """Train the missing runs and store the outcome of each as soon as it ends; return the errors of failed runs."""
        devices = Devices(self.workers)

        def work(run: ScriptRun) -> str | None:
            problem = None if outcome(run.folder) else jobs.train(run, devices)
            if (found := outcome(run.folder)) is None:
                return problem or f"left no result in {run.folder}"
            files.write_json(self._record(run), found | {"max_steps": run.max_steps})
            return None  # a run that diverged is a result

        def is_done(run: ScriptRun) -> bool:
            if not self._record(run).is_file():
                return False
            kept = files.read_json(self._record(run))
            return bool(kept.get("max_steps", kept.get("step")) == run.max_steps)

        return jobs.run_all(self.runs(), work, is_done, devices.workers, threads=True, cluster=self.dask)

    def _record(self, run: ScriptRun) -> Path:
        return self.report / "runs" / f"{run}.json"


def outcome(folder: Path) -> dict[str, Any] | None:
    """Outcome of a run, or None if it has not ended: held-out ELBO and KL, gradient norms, skipped steps."""
    if (folder / "diverged.json").is_file():
        return {"diverged_at": RunFolder(folder).read_json("diverged.json")["step"]}
    if not (folder / "summary.json").is_file():
        return None
    summary = RunFolder(folder).read_json("summary.json")
    norms = [float(r["optim/grad_norm"]) for r in records.with_number(folder, "optim/grad_norm").values()]
    return {
        "diverged_at": None,
        **{name: summary[name] for name in ("step", "images_seen", "cpu_seconds", "skipped_steps", "num_parameters")},
        **{name: summary["valid"][name] for name in ("elbo", "rate", "distortion", "active_units", "kl_group")},
        "grad_norm_median": float(np.median(norms)) if norms else None,
        "grad_norm_largest": max(norms, default=None),
    }


# --- The report, made only from the stored records ----------------------------------------------------------------------

OPENING = (
    "Written by `python launch/studies/ablation.py` (`make ablation-study`) from the records in [runs](runs); `--report-only` "
    "rewrites it. Each row is the dSprites recipe (preset `dsprites`) with one ingredient changed, at equal steps. "
    "ELBO, rate and KL are held out, in nats per image, with averaged weights; ± is the standard deviation over seeds, "
    "and the half width of a 95 % interval for differences."
)
PUBLISHED = (
    "The last column shows what the same change does in the paper (Vahdat and Kautz, 2020): test bits/dim of its models of "
    "CIFAR-10 before and after it. Those have many more groups and trained for far longer, so agreement in sign is the most to "
    "expect. A dash means that the paper does not measure it."
)
Record = dict[str, Any]


def write(folder: Path) -> Path:
    """Write ``index.md`` and its figure from ``folder / runs``; the first variant is the reference.

    Raises:
        ValueError: no run has ended yet.
    """
    stored = {name: _records(folder / "runs", name) for name in VARIANTS}
    found = {name: of_variant for name, of_variant in stored.items() if of_variant}
    if not found:
        raise ValueError(f"no records are stored in {folder / 'runs'}; start the study without --report-only")
    reference = _values(found.get(WHOLE, []), "elbo")
    differences = {name: over_seeds(_values(of, "elbo"), reference) for name, of in found.items() if name != WHOLE}
    compared = [(f"`{name}`", difference) for name, difference in differences.items()]
    save(_draw(found), folder / "elbo.png")
    paragraphs = [
        "# What each ingredient of NVAE contributes",
        OPENING,
        _cost(found),
        "\n".join(
            f"* {item}" for item in [*itertools.starmap(_conclusion, differences.items()), *words.corrected(compared)]
        ),
        "![held-out ELBO of every run](elbo.png)",
        _table(found, differences).markdown(),
        PUBLISHED,
    ]
    return write_paragraphs(folder / "index.md", [text for text in paragraphs if text])


def _records(folder: Path, name: str) -> list[Record]:
    return [files.read_json(path) for path in sorted(folder.glob(f"{name}-seed*.json"))]


def _values(records: Sequence[Record], name: str) -> Float64:
    """One number of every run that did not diverge."""
    return np.array([r[name] for r in records if r["diverged_at"] is None and r[name] is not None], dtype=np.float64)


def _conclusion(name: str, difference: Estimate | None) -> str:
    said = words.interval(difference, 1, " nats")
    return (
        f"{words.sentence(VARIANTS[name].words)} (`{name}`): ELBO {said}. {words.sentence(words.verdict(difference))}."
    )


def _table(found: Mapping[str, list[Record]], differences: Mapping[str, Estimate | None]) -> Table:
    head = [
        *("variant", "seeds", "diverged", "ELBO", "difference from all", "rate", "KL of the groups, top first"),
        *("gradient norm, median", "largest", "skipped steps", "parameters", "CPU minutes", "published, bits/dim"),
    ]
    rows = [_row(name, records, differences.get(name)) for name, records in found.items()]
    return Table(head, rows)


def _row(name: str, records: list[Record], difference: Estimate | None) -> list[str]:
    ended = [r for r in records if r["diverged_at"] is None]
    kl = np.array([r["kl_group"] for r in ended]).mean(axis=0) if ended else []

    def of(number: str, digits: int = 1, scale: float = 1.0) -> str:
        return spread(_values(records, number) * scale, digits)

    return [
        name,
        str(len(records)),
        str(len(records) - len(ended)),
        of("elbo"),
        "-" if difference is None else difference.text(1),
        of("rate"),
        ", ".join(f"{value:.1f}" for value in kl) or "-",
        of("grad_norm_median"),
        of("grad_norm_largest"),
        of("skipped_steps"),
        of("num_parameters", 2, 1e-6) + " M",
        of("cpu_seconds", 1, 1 / 60),
        VARIANTS[name].published,
    ]


def _cost(found: Mapping[str, list[Record]]) -> str:
    every = [record for records in found.values() for record in records]
    hours = _values(every, "cpu_seconds").sum() / 3600
    steps = sorted({int(step) for step in _values(every, "step")})
    length = ", ".join(f"{step:,}" for step in steps) or "no"
    return f"{len(every)} run{'s' * (len(every) > 1)} of {length} steps, {hours:.1f} hours of one CPU core in total."


def _draw(found: Mapping[str, list[Record]]) -> Picture:
    """Draw the held-out ELBO of every run that ended, a row for each variant, and the mean of the reference."""
    figure, axes = subplots(size=(6.4, 0.4 * len(found) + 1.2), layout="constrained")
    for row, (name, of_variant) in enumerate(found.items()):
        values = _values(of_variant, "elbo")
        axes.plot(values, np.full(len(values), row), "o", color="#4472a8", alpha=0.8)
        if name == WHOLE and len(values):
            axes.axvline(values.mean(), color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.5)  # the reference at the top
    axes.set_xlabel("held-out ELBO, nats (higher is better)")
    return render(figure, "Every run, and the mean of the whole recipe (dotted)")


def main(arguments: list[str]) -> None:
    """Train what is missing, then report."""
    chosen = flags.parse(
        AblationConfig, AblationConfig(), arguments, prog="studies/ablation.py", description=__doc__ or ""
    )
    faults = list[str]()
    if not chosen.report_only:
        jobs.claim(chosen.out, "ablation.json", {"steps": chosen.steps})
        faults = chosen.train()
    say(f"report {write(chosen.report)}")
    refuse(faults)


if __name__ == "__main__":
    errors.main(main)
