"""The ablation study's report, made only from the stored records of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.machine import files
from launch.report.statistics import over_seeds, spread
from launch.report.tables import Table, write_paragraphs

OPENING = (
    "Written by `python launch/studies/ablation.py` (`make ablation-study`) from the records in `runs/`; `--report-only` "
    "rewrites it. Each row is the dSprites recipe (preset `dsprites`) with one ingredient switched off, at equal steps. "
    "ELBO, rate and KL are held out, in nats per image, with averaged weights; ± is the standard deviation over seeds."
)
Record = dict[str, Any]


def write(folder: Path, variants: Sequence[str]) -> Path:
    """Write ``index.md`` from ``folder / runs``; the first of ``variants`` is the reference.

    Raises:
        ValueError: no run has ended yet.
    """
    found = {name: _records(folder / "runs", name) for name in variants}
    found = {name: records for name, records in found.items() if records}
    if not found:
        raise ValueError(f"no records are stored in {folder / 'runs'}; start the study without --report-only")
    reference = _values(found.get(variants[0], []), "elbo")
    rows = [_row(name, records, reference, is_reference=name == variants[0]) for name, records in found.items()]
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
