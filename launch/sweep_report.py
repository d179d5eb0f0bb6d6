"""What a sweep found: one table, one plot, and a recommended value with the rule that chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib import pyplot

from launch import checkpoint, figures
from launch.studies import jobs
from launch.studies.tables import Spread, markdown

Scores = Mapping[str, float]
COLUMNS = {  # name in the results: (heading, digits)
    "distortion": ("reconstruction, nats", 1),
    "rate": ("KL, nats", 2),
    "elbo": ("ELBO, nats", 1),
    "active_units": ("active units", 1),
    "mig": ("MIG", 3),
    "covariance_distance": ("covariance distance", 3),
}
PLOTTED = ("distortion", "rate", "mig", "covariance_distance")


@dataclass(frozen=True)
class Recommendation:
    """A value of the flag and why."""

    value: str
    reason: str


def recommend(results: Mapping[str, Sequence[Scores]]) -> Recommendation:
    """The value with the highest mean MIG, or without factors the highest mean held-out ELBO.

    Of the values within one standard error of the best (Breiman et al. 1984: what noise cannot tell apart) it is the one
    that reconstructs best. Values whose runs have no active unit are out, unless there are no others.
    """
    alive = {v: runs for v, runs in results.items() if any(run["active_units"] > 0 for run in runs)} or dict(results)
    criterion = "mig" if all("mig" in run for runs in alive.values() for run in runs) else "elbo"
    spreads = {value: Spread.of([run[criterion] for run in runs]) for value, runs in alive.items()}
    best = max(spreads, key=lambda value: spreads[value].mean)
    floor = spreads[best].mean - spreads[best].standard_error
    tied = [value for value, spread in spreads.items() if spread.mean >= floor]
    chosen = min(tied, key=lambda value: Spread.of([run["distortion"] for run in alive[value]]).mean)
    heading, digits = COLUMNS[criterion]
    reason = f"highest {heading.split(',')[0]}, {spreads[chosen].text(digits)} over {spreads[chosen].num} seed(s)"
    if len(tied) > 1:
        reason = (
            f"{', '.join(tied)} are within one standard error of the highest {heading.split(',')[0]} "
            f"({spreads[best].text(digits)}), and of these {chosen} reconstructs best"
        )
    if spreads[best].num == 1:
        reason += "; one seed cannot tell it from noise"
    return Recommendation(chosen, reason)


def table(flag: str, results: Mapping[str, Sequence[Scores]]) -> str:
    """Mean and spread over seeds of every number that all runs have, a row for each value."""
    columns = _common(results)
    rows = []
    for value, runs in results.items():
        cells = [Spread.of([run[name] for run in runs]).text(COLUMNS[name][1]) for name in columns]
        rows.append([value, str(len(runs)), *cells])
    return markdown([flag, "seeds", *(COLUMNS[name][0] for name in columns)], rows)


def _common(results: Mapping[str, Sequence[Scores]]) -> list[str]:
    return [name for name in COLUMNS if all(name in run for runs in results.values() for run in runs)]


def _positions(values: Sequence[str]) -> tuple[list[float], bool]:
    """Where values stand on the axis, and whether it is logarithmic; values that are no numbers stand in a row."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return [float(i) for i in range(len(values))], False
    return numbers, min(numbers) > 0 and max(numbers) / min(numbers) > 10


def plot(flag: str, results: Mapping[str, Sequence[Scores]]) -> figures.Picture:
    """Each number against the flag: every seed a point, means joined by a line."""
    names = [name for name in _common(results) if name in PLOTTED]
    positions, logarithmic = _positions(list(results))
    figure, panels = pyplot.subplots(1, len(names), figsize=(3.6 * len(names), 3.2), squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        means = [
            (x, Spread.of([run[name] for run in runs]).mean)
            for x, runs in zip(positions, results.values(), strict=True)
        ]
        axes.plot(*zip(*sorted(means), strict=True), color="#4472a8")
        for x, runs in zip(positions, results.values(), strict=True):
            axes.plot([x] * len(runs), [run[name] for run in runs], "o", markersize=4, color="#4472a8", alpha=0.6)
        axes.set_xlabel(flag)
        axes.set_ylabel(COLUMNS[name][0])
        if logarithmic:
            axes.set_xscale("log")
        else:
            axes.set_xticks(positions, list(results))
    figure.tight_layout()
    return figures.render(figure)


def write(out: Path, flag: str, results: Mapping[str, Sequence[Scores]]) -> str:
    """Write ``table.md``, ``sweep.png`` and ``results.json`` into ``out``; the table's text.

    Args:
        out: the sweep's folder.
        flag: what varied.
        results: for each value the numbers of its runs, one mapping for each seed.
    """
    chosen = recommend(results)
    text = f"{table(flag, results)}\n\nMean ± standard deviation over seeds; held-out images.\n\n"
    text += f"Recommended {flag}: **{chosen.value}** ({chosen.reason}).\n"
    checkpoint.write_text(out / "table.md", text)
    figures.save(plot(flag, results), out / "sweep.png")
    recommended = {"value": chosen.value, "reason": chosen.reason}
    jobs.write_record(out / "results.json", {"flag": flag, "results": results, "recommended": recommended})
    return text
