"""Tables of a comparison."""

from __future__ import annotations

from functools import partial

from launch.report import text as report_text
from launch.report.data import HEADLINE_KIND, Comparable, ScoredRun
from launch.report.page import Table
from launch.report.text import interval, number, spread, verdict

DIM = 10  # of the headline score
LISTED_SCORES = ("groups", "mig_sup", "modularity", "sap_r2", "dci", "factor_vae", "beta_vae", "total_correlation")


def _trained(run: ScoredRun, name: str) -> float | None:
    value = run.summary.get(name)
    return None if value is None else float(value)


def _speed(run: ScoredRun) -> float | None:
    seen, seconds = _trained(run, "images_seen"), _trained(run, "seconds")
    return seen / seconds if seen and seconds else None


def training_table(compared: Comparable) -> Table:
    """What each configuration cost."""
    rows = []
    for c in compared.configurations:
        seconds, passes = c.values(lambda run: _trained(run, "seconds")), c.values(report_text.epochs)
        rows.append(
            [
                c.label,
                str(len(c.runs)),
                f"{c.first.record['num_parameters'] / 1e6:.2f} M",
                spread(c.values(lambda run: float(run.record["step"])), 0),
                spread(c.values(lambda run: _trained(run, "images_seen")), 0),
                spread(passes, 2),
                spread(seconds / 60, 1),
                spread(c.values(_speed), 0),
            ]
        )
    head = [
        "configuration",
        "runs",
        "parameters",
        "steps",
        "images seen",
        "passes over the data",
        "minutes",
        "images/s",
    ]
    return Table(
        head, rows, "Training (mean ± standard deviation over seeds; dashes where a run did not reach its end)"
    )


def likelihood_table(compared: Comparable) -> Table:
    """Held-out likelihood."""
    names = (("rate", 2), ("distortion", 2), ("elbo", 2), ("bits_per_dim", 4), ("psnr", 2), ("active_units", 1))
    rows = [[c.label, *(spread(c.held_out(name), digits) for name, digits in names)] for c in compared.configurations]
    head = ["configuration", "rate", "distortion", "ELBO", "bits/dim", "reconstruction, dB", "active units"]
    return Table(head, rows, "Held out, in nats per image, one posterior draw; higher ELBO is better")


def samples_table(compared: Comparable) -> Table | None:
    """Precision and coverage of samples against all images that exist; None where no run has them."""
    scored = [run for run in compared.runs if run.record.get("samples")]
    if not scored:
        return None
    within = scored[0].record["samples"]["samples"]["within"]
    factors = scored[0].record["factor_names"]
    rows = [
        [
            c.label,
            spread(c.values(lambda run: _of_samples(run, "score")), 3),
            spread(c.values(lambda run: _of_samples(run, "median_distance")), 1),
            spread(c.values(lambda run: _of_samples(run, "score", "reconstructions")), 3),
            *(spread(c.values(partial(_coverage, factor=k)), 2) for k in range(len(factors))),
        ]
        for c in compared.configurations
    ]
    head = ["configuration", f"precision at {within} px", "median distance, px", "reconstructions within"]
    return Table(
        [*head, *(f"{name} covered" for name in factors)],
        rows,
        "Samples at temperature 1 against all images that exist: share within so many pixels of one, and the factor values covered",
    )


def _of_samples(run: ScoredRun, name: str, images: str = "samples") -> float | None:
    """One of the numbers of samples or reconstructions."""
    scores = run.record.get("samples")
    return float(scores[images][name]) if scores else None


def _coverage(run: ScoredRun, factor: int) -> float | None:
    """Share of a factor's values that samples cover."""
    scores = run.record.get("samples")
    return float(scores["samples"]["coverage"][factor]) if scores else None


def dims_of(compared: Comparable) -> list[int]:
    """Dimensions that any run was reduced to."""
    rows = [row for run in compared.runs for row in run.record["scores"].get("reduced", {}).get("rows", [])]
    return sorted({int(row["dim"]) for row in rows})


def headline_dim(compared: Comparable) -> int:
    """10, or the first dimension that there is."""
    dims = dims_of(compared)
    return DIM if DIM in dims or not dims else dims[0]


def score_table(compared: Comparable) -> Table:
    """MIG at equal dimension by the same reductions, and untrained weights beside."""
    dim, dims = headline_dim(compared), dims_of(compared)
    columns = [(f"{kind} d={d}", kind, d, False) for kind in (HEADLINE_KIND,) for d in dims]
    columns += [(f"{kind} d={dim}", kind, dim, False) for kind in ("pool", "pca")]
    columns += [(f"untrained, {HEADLINE_KIND} d={dim}", HEADLINE_KIND, dim, True)]
    rows = [
        [
            c.label,
            *(spread(c.reduced(kind, d, untrained=untrained)) for _, kind, d, untrained in columns),
        ]
        for c in compared.configurations
    ]
    caption = (
        "MIG at equal dimension, the same label-free reductions for every model; a dash where a model has fewer numbers"
    )
    return Table(["configuration", *(name for name, *_ in columns)], rows, caption)


def other_scores_table(compared: Comparable) -> Table:
    """Scores on each model's own code."""
    names = [n for n in LISTED_SCORES if any(run.score(n) is not None for run in compared.runs)]
    rows = [[c.label, c.first.record["code"], *(spread(c.score(n)) for n in names)] for c in compared.configurations]
    caption = "Other scores, each on the model's own code: only group-MIG (groups) is meant for comparing the families"
    return Table(["configuration", "code", *names], rows, caption, wordy=frozenset({1}))


def difference_table(compared: Comparable) -> Table:
    """Each configuration minus the reference, with 95 % intervals and what they allow to be said."""
    reference, dim = compared.configurations[0], headline_dim(compared)
    rows = []
    for other in compared.configurations[1:]:
        for name, found, digits in (
            ("ELBO, nats", report_text.elbo_difference(other, reference), 2),
            (f"MIG ({HEADLINE_KIND}, d = {dim})", report_text.score_difference(other, reference, dim), 3),
        ):
            rows.append([other.label, name, interval(found, digits), found.over if found else "-", verdict(found)])
    return Table(
        ["configuration", "quantity", "difference ± 95 %", "interval over", "what it allows"],
        rows,
        f"Minus {reference.label}: Welch's interval over seeds, or paired over images where a configuration has one run",
        wordy=frozenset({4}),
    )


def run_table(compared: Comparable) -> Table:
    """Every point."""
    dim = headline_dim(compared)
    rows = [
        [
            c.label,
            str(run.path),
            str(run.seed),
            f"{run.record['step']:,}",
            number(run.held_out("elbo"), 2),
            number(run.held_out("rate"), 2),
            number(run.held_out("distortion"), 2),
            number(run.reduced(HEADLINE_KIND, dim)),
            number(run.score("groups")),
        ]
        for c in compared.configurations
        for run in c.runs
    ]
    head = ["configuration", "run", "seed", "step", "ELBO", "rate", "distortion", f"MIG d={dim}", "group-MIG"]
    return Table(head, rows, "Every run", folded=True)
