"""Report of a sweep: one table, one plot, and a recommended value with the rule that chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import torch

from launch.console import figures
from launch.families.flat_vae import BETA_FORMS
from launch.machine import files
from launch.machine.distributed import Ranks
from launch.report.runs import images_of, likelihood_of
from launch.report.statistics import Spread, spread
from launch.report.tables import Table
from launch.results import scores
from launch.results.encoding import encode, is_one_vector
from launch.results.run import open_run
from launch.results.score_run import ScoreConfig, scored_from
from launch.training.folder import RunFolder

Scores = Mapping[str, float]
Series = Mapping[str, Mapping[str, Sequence[Scores]]]
COLUMNS = {  # name in the results: (heading, digits)
    "distortion": ("reconstruction, nats", 1),
    "rate": ("KL, nats", 2),
    "elbo": ("ELBO, nats", 1),
    "active_units": ("active units", 1),
    "mig": ("MIG", 3),
    "covariance_distance": ("covariance distance", 3),
}
PLOTTED = ("distortion", "rate", "mig", "covariance_distance")
COLOURS = ("#4472a8", "#c46a2f", "#4f9a5b", "#8a5ca8")


@dataclass(frozen=True)
class Recommendation:
    """A recommended value of the flag, and the reason."""

    value: str
    reason: str


def recommend(results: Mapping[str, Sequence[Scores]]) -> Recommendation:
    """The value with the highest mean MIG, without factors the highest mean held-out ELBO, or the best reconstruction.

    Among the values within one standard error of the best, which may differ only by noise (Breiman et al. 1984), the one
    that reconstructs best is chosen. Values whose runs have no active unit are excluded, unless there are no others.
    """
    alive = {v: runs for v, runs in results.items() if any(run.get("active_units", 1.0) > 0 for run in runs)} or dict(
        results
    )
    has = {name for name in ("mig", "elbo") if all(name in run for runs in alive.values() for run in runs)}
    criterion = "mig" if "mig" in has else "elbo" if has else "distortion"  # an autoencoder has no ELBO
    sign, most = (-1.0, "lowest") if criterion == "distortion" else (1.0, "highest")
    spreads = {value: Spread.of([run[criterion] for run in runs]) for value, runs in alive.items()}
    best = max(spreads, key=lambda value: sign * spreads[value].mean)
    floor = sign * spreads[best].mean - spreads[best].standard_error
    tied = [value for value, spread in spreads.items() if sign * spread.mean >= floor]
    chosen = min(tied, key=lambda value: Spread.of([run["distortion"] for run in alive[value]]).mean)
    name, digits = {"mig": "MIG", "elbo": "ELBO"}.get(criterion, criterion), COLUMNS[criterion][1]
    reason = f"{most} {name}, {spreads[chosen].text(digits)} over {spreads[chosen].num} seed(s)"
    if len(tied) > 1:
        reason = (
            f"{', '.join(tied)} are within one standard error of the {most} {name} "
            f"({spreads[best].text(digits)}), and of these {chosen} reconstructs best"
        )
    if spreads[best].num == 1:
        reason += "; one seed cannot distinguish it from noise"
    return Recommendation(chosen, reason)


def table(flag: str, results: Mapping[str, Sequence[Scores]]) -> str:
    """Mean and spread over seeds of every number that all runs have, in a row for each value."""
    columns = _common(results)
    rows = []
    for value, runs in results.items():
        cells = [spread([run[name] for run in runs], COLUMNS[name][1]) for name in columns]
        rows.append([value, str(len(runs)), *cells])
    return Table([flag, "seeds", *(COLUMNS[name][0] for name in columns)], rows).markdown()


def _common(results: Mapping[str, Sequence[Scores]]) -> list[str]:
    return [name for name in COLUMNS if all(name in run for runs in results.values() for run in runs)]


def _positions(flag: str, results: Mapping[str, Sequence[Scores]], every: Sequence[str]) -> tuple[list[float], bool]:
    """Positions of values on the axis, and True if it is logarithmic.

    If some value of ``every`` series is not a number, all are spaced evenly in their order. Forms of beta are placed at the
    normalised beta, which makes latent and image sizes comparable (Higgins et al. 2017).
    """
    if _is_beta(flag, results):
        return [runs[0]["beta_norm"] for runs in results.values()], True
    if not all(map(_is_number, every)):
        return [float(every.index(value)) for value in results], False
    numbers = [float(value) for value in results]
    return numbers, min(numbers) > 0 and max(numbers) / min(numbers) > 10


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _is_beta(flag: str, results: Mapping[str, Sequence[Scores]]) -> bool:
    runs = [run for of in results.values() for run in of]
    return flag.replace("-", "_") in BETA_FORMS and all(run.get("beta_norm", 0.0) > 0.0 for run in runs)


def plot(flag: str, series: Series, title: str = "") -> figures.Picture:
    """Plot each number against the flag: a point per seed, a line through the means, a colour for each series."""
    every, ticks = flat(series), dict[float, str]()
    values_of_all = list(dict.fromkeys(value for results in series.values() for value in results))
    names = [name for name in _common(every) if name in PLOTTED]
    figure, panels = figures.subplots(1, len(names), size=(3.6 * len(names), 3.2), squeeze=False)
    for axes, name in zip(panels[0], names, strict=True):
        for colour, (label, results) in zip(cycle(COLOURS), series.items(), strict=False):
            positions, logarithmic = _positions(flag, results, values_of_all)
            ticks |= dict(zip(positions, results, strict=True))
            values = [[run[name] for run in runs] for runs in results.values()]
            means = sorted(zip(positions, [Spread.of(of).mean for of in values], strict=True))
            axes.plot(*zip(*means, strict=True), color=colour, label=label)
            for x, of in zip(positions, values, strict=True):
                axes.plot([x] * len(of), of, "o", markersize=4, color=colour, alpha=0.6)
        axes.set_xlabel("normalised beta (beta x latents / pixels)" if _is_beta(flag, every) else flag)
        axes.set_ylabel(COLUMNS[name][0])
        if logarithmic:
            axes.set_xscale("log")
        else:
            axes.set_xticks(list(ticks), list(ticks.values()))
    if len(series) > 1:
        panels[0][0].legend(fontsize=8)
    figure.tight_layout()
    return figures.render(figure, title)


def name_of(run: Path) -> str:
    """Family, preset and data set of a run."""
    saved = open_run(run)
    return f"{saved.family.title}, preset {saved.config.preset}, on {saved.config.data.dataset}"


def title(whose: str, flag: str) -> str:
    """The line above the plot, from the name that :func:`name_of` gives the models."""
    return f"{whose}: held-out numbers against {flag}; a point for each seed, lines join their means"


def flat(series: Series) -> dict[str, Sequence[Scores]]:
    """All settings in a row, named by their value and series."""
    return {
        f"{value} ({title})" if title else value: runs for title, of in series.items() for value, runs in of.items()
    }


def measure(run: Path, num_images: int) -> dict[str, Any]:
    """Collect the numbers of a finished run, from its summary and from codes of test images.

    The numbers are kept in the run's ``sweep_scores.json``.
    """
    folder = RunFolder(run)
    summary = folder.read_json("summary.json")
    path = run / "sweep_scores.json"
    key = {"step": summary["step"], "images": num_images}
    if path.exists() and (kept := files.read_json(path)).get("of") == key:
        return dict(kept["scores"])
    saved = open_run(run)
    names = filter(
        saved.family.measure(saved.config, saved.spec).shows,
        ("distortion", "rate", "elbo", "bits_per_dim", "active_units"),
    )
    found = {name: float(summary["valid"][name]) for name in names}
    found |= saved.family.numbers(saved.config, saved.spec)
    found |= _representation(run, num_images)
    folder.write_json(path.name, {"of": key, "scores": found})
    return found


def _representation(run: Path, num_images: int) -> dict[str, float]:
    """Score the codes of test images as launch/score.py does: MIG if there are factors, and covariance distance."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    saved, how = open_run(run, device=device), ScoreConfig(run=run, images=num_images)
    data = saved.data(how.split)
    if not (data.factor_names or is_one_vector(saved.model.group_shapes)):
        return {}
    rows, alone = how.protocol.rows(len(data)), Ranks(0, 1, device)
    encoded = encode(saved.model, data, rows, alone, batch_size=how.batch_size, max_gib=how.max_gib)
    names = [
        *(["mig"] if data.factor_names else []),
        *(["covariance_distance"] if encoded.variance is not None else []),
    ]
    results = scores.compute(names, scored_from(encoded, data, how))
    return {name: value for name in names if (value := scores.headline(results[name])) is not None}


def quantity_of(run: Path) -> str:
    """Likelihood and images of a run; reconstruction and ELBO of two kinds are not comparable."""
    saved = open_run(run)
    return f"{likelihood_of(saved)} of {images_of(saved)}"


def write(out: Path, flag: str, series: Series, title: str = "", quantities: Sequence[str] = ()) -> str:
    """Write ``table.md``, ``sweep.png`` and ``results.json`` into ``out``; return the table's text.

    Args:
        out: folder.
        flag: the flag that is varied.
        series: for each value of a second flag (an empty name if there is none) and each value of the first, the numbers of
            its runs, one mapping for each seed.
        title: the line above the plot.
        quantities: what :func:`quantity_of` says of the runs, each once; if there are several, no value is recommended.
    """
    results, recommended = flat(series), None
    text = f"{table(flag, results)}\n\nMean ± standard deviation over seeds; held-out images.\n\n"
    if len(quantities) > 1:
        text += (
            "Reconstruction, KL and ELBO are not comparable between different likelihoods or images "
            f"({'; '.join(quantities)}), so no value is recommended.\n"
        )
    else:
        chosen = recommend(results)
        text += f"Recommended {flag}: **{chosen.value}** ({chosen.reason}).\n"
        recommended = {"value": chosen.value, "reason": chosen.reason}
    files.write_text(out / "table.md", text)
    figures.save(plot(flag, series, title), out / "sweep.png")
    files.write_json(out / "results.json", {"flag": flag, "results": results, "recommended": recommended})
    return text
