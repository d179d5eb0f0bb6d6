"""Sentences of a report: the verdict on a difference, and what each figure shows and does not show."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from launch.report import statistics
from launch.report.runs import ScoredRun, clean
from launch.report.statistics import HEADLINE_KIND, Comparable, Configuration, Estimate, Float64

MOST_SENTENCES = 8
MOST_FACTORS = 8  # factors that a paragraph names
MIN_CONFIGURATIONS = 8  # needed for a statement about a correlation
UNEQUAL = 1.1  # ratio of the longest to the shortest training from which a report warns
CLEAR_SHARE = 0.05  # smallest share of a factor's entropy for which a sentence names a group


def sentence(text: str) -> str:
    """Capitalise the first letter and leave the others, unlike ``str.capitalize``."""
    return text[:1].upper() + text[1:]


def interval(difference: Estimate | None, digits: int = 3, unit: str = "") -> str:
    """Format a difference with its interval, in a unit such as " nats"."""
    if difference is None:
        return "-"
    return f"{difference.text(digits)}{unit}{' (no interval)' if difference.half_width is None else ''}"


def verdict(difference: Estimate | None) -> str:
    """State the conclusion that the interval of a difference supports."""
    if difference is None:
        return "not measured on both sides"
    if difference.half_width is None and min(difference.counts) > 1:
        return "the seeds of each side agree in all digits, so their variation cannot be estimated"
    if difference.half_width is None:
        return "one side has a single run, so the difference cannot be separated from the variation over seeds"
    if not difference.excludes_zero:
        return f"within noise: the 95 % interval over {difference.over} contains 0{_how_to_settle(difference)}"
    if difference.over == "images":
        return "these two trained models differ; this says nothing about other seeds"
    return "differs: the 95 % interval over seeds excludes 0"


def _how_to_settle(difference: Estimate) -> str:
    """Say how many seeds would show a difference as large as the estimate."""
    if difference.over != "seeds":
        return ""
    needed = None if difference.std is None else statistics.seeds_needed(difference.mean, difference.std)
    if needed is None:
        return f"; to show a difference this small, more than {statistics.MOST_SEEDS:,} seeds of each would be needed"
    return f"; about {needed} seeds of each would show a difference this large (power {statistics.POWER:.0%})"


def summary(compared: Comparable) -> list[str]:
    """Compare each configuration with the reference: the statements at the top of a report."""
    reference, differences, items = compared.configurations[0].label, compared.differences, list[str]()
    for other, elbo, score in differences[:MOST_SENTENCES]:
        items += [
            f"ELBO of {other.label} minus {reference}: {interval(elbo, 2, ' nats')}. {sentence(verdict(elbo))}.",
            f"{compared.headline} of the same pair: {interval(score)}. {sentence(verdict(score))}.",
        ]
    if len(differences) > MOST_SENTENCES:
        items.append(f"{len(differences) - MOST_SENTENCES} more comparisons are in the table of differences.")
    every = [
        pair for c, elbo, score in differences for pair in ((f"ELBO of {c.label}", elbo), (f"MIG of {c.label}", score))
    ]
    return [*unfinished(compared), *unequal_training(compared), *items, *corrected(every), _training_length(compared)]


def corrected(differences: Sequence[tuple[str, Estimate | None]]) -> list[str]:
    """Say which of several named differences remain after Holm's correction; nothing of a single one."""
    tested = [(name, found.p_value) for name, found in differences if found is not None and found.p_value is not None]
    if len(tested) < 2:
        return []
    adjusted = statistics.holm([p for _, p in tested])
    left = [name for (name, _), p in zip(tested, adjusted, strict=True) if p < 1.0 - statistics.CONFIDENCE]
    return [
        f"{len(tested)} of these differences have 95 % intervals: about one in twenty excludes 0 even if nothing differs. After "
        f"Holm's correction for {len(tested)} comparisons, {_remaining(left)}."
    ]


def _remaining(names: Sequence[str]) -> str:
    if not names:
        return "none of them differs"
    return f"{len(names)} differ{'s' * (len(names) == 1)}: {'; '.join(names)}"


def unfinished(compared: Comparable) -> list[str]:
    """Warn of runs that did not reach their end among runs that did."""
    ended = [run for run in compared.runs if run.summary]
    short = [run for run in compared.runs if not run.summary]
    if not ended or not short:
        return []
    named = ", ".join(clean(f"{run.path.name} (step {run.record['step']:,})") for run in short[:MOST_SENTENCES])
    more = f" and {len(short) - MOST_SENTENCES} more" if len(short) > MOST_SENTENCES else ""
    return [
        f"Warning: {len(short)} of {len(compared.runs)} runs did not reach their end (no summary.json): {named}{more}."
    ]


def unequal_training(compared: Comparable) -> list[str]:
    """Warn of configurations that were trained for different times or on different numbers of images."""
    said = [
        _unequal(compared, lambda run: run.summary.get("images_seen"), "images seen", 0),
        _unequal(compared, compared.minutes, compared.clock, 1),
    ]
    if not any(said):
        return []
    return [f"Warning: unequal training. {' '.join(filter(None, said))} Part of any difference may be due to this."]


def _unequal(compared: Comparable, cost: Callable[[ScoredRun], float | None], unit: str, digits: int) -> str:
    """Name the configurations with the least and the highest cost of training if they are far apart."""
    means = [(c.values(cost), c.label) for c in compared.configurations]
    known = sorted((float(values.mean()), label) for values, label in means if len(values))
    if not known or known[-1][0] <= UNEQUAL * known[0][0]:
        return ""
    (least, one), (most, other) = known[0], known[-1]
    return f"{sentence(unit)}: {least:,.{digits}f} for {one} and {most:,.{digits}f} for {other}."


def _training_length(compared: Comparable) -> str:
    passes = [run.epochs for run in compared.runs if run.epochs is not None]
    if not passes:
        return "These runs do not record how long they were trained (no summary.json): read the scores with care."
    if max(passes) < 1.0:
        return (
            f"Short training: at most {max(passes):.2g} epochs. Such runs show that everything works; they say nothing about "
            "architectures."
        )
    return f"Training: {min(passes):.2g} to {max(passes):.2g} epochs."


# --- One paragraph for each figure ----------------------------------------------------------------------------------


def _seeds(configuration: Configuration) -> str:
    count = len(configuration.runs)
    return f"Mean over {count} seeds." if count > 1 else "One run; another seed may look different."


def _best(known: Float64) -> list[int]:
    """Choose the factors to name: all, in the data's order, or those with the largest shares."""
    order = np.argsort(-known, kind="stable") if len(known) > MOST_FACTORS else np.arange(len(known))
    return [int(column) for column in order[:MOST_FACTORS]]


def _who_knows(share: Float64, name: str, unit: str, unit_names: Sequence[str]) -> str:
    """Say which groups encode a factor, from the shares [L] of its entropy."""
    best = int(share.argmax())
    known = int((share >= max(CLEAR_SHARE, 0.5 * share[best])).sum())
    if share[best] < CLEAR_SHARE:
        return f"no single {unit} encodes {CLEAR_SHARE:.0%} of {name}"
    if known == 1:
        return f"{name} is encoded mainly in {unit} {unit_names[best]} ({share[best]:.0%})"
    return f"{name} is spread over {known} {unit}s, with the largest share in {unit} {unit_names[best]} ({share[best]:.0%})"


def heat_map(configuration: Configuration) -> str:
    """Say which groups encode which factor, and which group has the largest KL."""
    share, kl, run = configuration.shares("matrix"), configuration.kl_of_units(), configuration.first
    names, units, unit = run.factor_names, run.unit_names, run.unit
    shown = _best(share.max(axis=0))
    parts = [_who_knows(share[:, column], names[column], unit, units) for column in shown]
    if len(shown) < len(names):
        rest = float(np.delete(share, shown, axis=1).max())
        parts.append(
            f"no single {unit} encodes more than {rest:.0%} of any of the other {len(names) - len(shown)} factors"
        )
    most, where = int(kl.argmax()), ""
    if run.measure.has_rate:
        where = f"The largest KL is that of {unit} {units[most]} ({kl[most]:.1f} of {kl.sum():.1f} nats). "
    return (
        f"{sentence('; '.join(parts))}. {where}"
        f"{_seeds(configuration)} Shares are lower bounds from linear probes on held-out images: a low share does not prove "
        "that the information is absent, and KL is not information about these factors."
    )


def gains(configuration: Configuration) -> str:
    """Say what all groups together encode about each factor, and which group adds most."""
    gain, run = configuration.shares("conditional_gain"), configuration.first
    names, units = run.factor_names, run.unit_names
    total, first = gain.sum(axis=0), gain.argmax(axis=0)
    columns = _best(total)
    shown = ", ".join(
        f"{names[i]} {total[i]:.0%}" + (f" (most from {units[first[i]]})" if total[i] >= CLEAR_SHARE else "")
        for i in columns
    )
    if len(columns) < len(names):
        shown += f", the other {len(names) - len(columns)} factors at most {np.delete(total, columns).max():.0%}"
    thresholds = [r.record["scores"]["groups"].get("threshold") for r in configuration.runs if r.has_groups]
    chance = "The chance level was not computed (--group-shuffles)."
    if known := [t for t in thresholds if t is not None]:
        chance = f"By chance a gain reaches {max(known):.3f} nats."
    return (
        f"All groups together encode: {shown}. {chance} {_seeds(configuration)} Gains are differences of two bounds, so they are "
        "estimates, not bounds. Groups are added from the top down, so shared information counts towards the upper group."
    )


def dimension(compared: Comparable) -> str:
    """Say how far codes of equal size differ, and whether training matters."""
    parts = []
    for configuration in compared.configurations[:MOST_SENTENCES]:
        reached = [d for d in compared.dims if len(configuration.reduced(HEADLINE_KIND, d))]
        if reached:
            first, last = (configuration.reduced(HEADLINE_KIND, d).mean() for d in (reached[0], reached[-1]))
            parts.append(f"{configuration.label} {first:.3f} at d = {reached[0]}, {last:.3f} at d = {reached[-1]}")
    return (
        f"{'; '.join(parts) or 'No configuration reaches these dimensions'}. {_control(compared)} "
        "MIG falls with redundancy: a low value says that the code is not aligned with the factors at that dimension, not that "
        "the information is missing. A curve ends at the size of its model's code."
    )


def _control(compared: Comparable) -> str:
    """Say which trained codes score above those of untrained weights."""
    behind: dict[str, bool] = {}
    for c, d in itertools.product(compared.configurations, compared.dims):
        trained, fresh = (c.reduced(HEADLINE_KIND, d, untrained=untrained) for untrained in (False, True))
        if len(trained) and len(fresh):
            behind[f"{c.label} at d = {d}"] = bool(trained.mean() <= fresh.mean())
    if not behind:
        return "No untrained models were scored (--untrained), so part of any score may be due to the architecture."
    if names := [name for name, is_behind in behind.items() if is_behind]:
        more = f" and {len(names) - MOST_SENTENCES} more" if len(names) > MOST_SENTENCES else ""
        return f"Dotted: untrained weights, which score at least as high as {', '.join(names[:MOST_SENTENCES])}{more}."
    return "Dotted: untrained weights; on average, training raised the score of every configuration."


def scatter(compared: Comparable) -> str:
    """Say what the plane of rate and distortion shows; a correlation only if there are enough runs."""
    runs = [(run, elbo) for run in compared.runs if (elbo := run.held_out("elbo")) is not None]
    said = f"{len(runs)} runs. Grey lines connect points of equal ELBO, which is higher towards the lower left."
    if runs:
        best, elbo = max(runs, key=lambda found: found[1])
        said += f" The highest ELBO, {elbo:,.1f} nats, belongs to a run of {best.label}."
    dim = compared.headline_dim
    # A point for each configuration: its seeds are no independent evidence of a relation between likelihood and score.
    pairs = [(c.held_out("elbo"), c.reduced(HEADLINE_KIND, dim)) for c in compared.configurations]
    points = [(elbos.mean(), scores.mean()) for elbos, scores in pairs if len(elbos) and len(scores)]
    if len(points) < MIN_CONFIGURATIONS or min(map(np.ptp, zip(*points, strict=True))) == 0:
        return f"{said} There are too few configurations to relate likelihood to disentanglement."
    r, low, high = statistics.correlation(*(list(values) for values in zip(*points, strict=True)))
    weight = "within noise" if low <= 0 <= high else "which does not show a cause"
    return (
        f"{said} Over the means of {len(points)} configurations, the correlation of ELBO and MIG is {r:+.2f} "
        f"({low:+.2f} to {high:+.2f}), {weight}."
    )


GLOSSARY = (
    "Rate: KL of the posteriors from the priors, an upper bound on the information that the latents carry about an image. "
    "Distortion: -log p(x|z), the information that they lack. ELBO = -(rate + distortion), a lower bound on log p(x): higher "
    "is better.",
    "Group: latents that are sampled together. A hierarchical VAE (NVAE) has many, from coarse to fine; a flat VAE has one.",
    "Factor: a known property of an image, such as position. MIG: the gap between the two latents that are most informative about "
    "a factor, as a share of the factor's entropy, averaged over factors; between 0 and 1, and with 20 bins always below 1.",
    "Reductions bring codes to equal size without using the factors: pool is the mean of each channel, moments adds its centroid, "
    "pca projects linearly. group-MIG compares whole groups (latents of a flat VAE) by held-out probes.",
    "A value with ± is a mean and standard deviation over seeds; a difference with ± has a 95 % interval. If an interval contains "
    "0, or if there is none, the report claims no difference.",
)

INTERVALS = (
    "Scores of one run of each configuration, with 95 % intervals over images, corrected for the bias of a small sample. Bars mark "
    "the scores of shuffled factors: an interval that reaches its bar shows nothing beyond chance. An interval over images says "
    "nothing about other seeds. A point without an interval is a score without a calibrated one."
)

PICTURES = {
    "reconstructions": (
        "Originals above their reconstructions from posterior means. All models show the same images, chosen by position and "
        "not by quality; the distortion in the table measures the quality."
    ),
    "samples": "Samples from the prior at temperature 1, not selected. They show which flaws occur, not how often.",
    "top groups": (
        "First row: originals. Each further row keeps more groups from the top down (of a flat VAE: latents by KL, highest "
        "first) and sets the others to the prior's mean. A row shows what its groups encode about these images."
    ),
    "traversals": (
        "One image; each row moves one axis by two standard deviations each way: principal axes of groups, top group first, "
        "or the latents with the highest KL. If a row changes a single property, it need not do so in other images."
    ),
}
