"""Sentences made from numbers: what a difference allows to be said, and what each figure shows and does not show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.report.data import (
    HEADLINE_KIND,
    Comparable,
    Configuration,
    Difference,
    Float64,
    ScoredRun,
    over_images,
    over_seeds,
)
from launch.report.figures import factor_names, mean_kl, mean_share, unit_names

MOST_SENTENCES = 8
MOST_FACTORS = 8  # that a paragraph names
CLEAR_SHARE = 0.05  # of a factor's entropy: what a sentence about a group names


def number(value: float | None, digits: int = 3) -> str:
    """A number for a table, or a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def spread(values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]], digits: int = 3) -> str:
    """Mean and standard deviation over seeds; a single run without one."""
    if not len(values):
        return "-"
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{np.mean(values):,.{digits}f} ± {np.std(values, ddof=1):,.{digits}f}"


def sentence(text: str) -> str:
    """With a capital first letter; names inside keep theirs."""
    return text[:1].upper() + text[1:]


def interval(difference: Difference | None, digits: int = 3) -> str:
    """A difference with its interval for a table."""
    if difference is None:
        return "-"
    if difference.half_width is None:
        return f"{difference.mean:+,.{digits}f} (no interval)"
    return f"{difference.mean:+,.{digits}f} ± {difference.half_width:,.{digits}f}"


def verdict(difference: Difference | None) -> str:
    """What the interval allows to be said."""
    if difference is None:
        return "not measured for both"
    if difference.half_width is None:
        return "one run of a configuration: cannot be told from the spread over seeds"
    if not difference.excludes_zero:
        return f"within noise: the 95 % interval over {difference.over} contains 0"
    if difference.over == "images":
        return "these two trained models differ; says nothing about other seeds"
    return "differs: the 95 % interval over seeds excludes 0"


def score_difference(one: Configuration, reference: Configuration, dim: int) -> Difference | None:
    """MIG of moments at one dimension, over seeds."""
    values = [c.reduced(HEADLINE_KIND, dim) for c in (one, reference)]
    return over_seeds(values[0], values[1])


def elbo_difference(one: Configuration, reference: Configuration) -> Difference | None:
    """Over seeds where both have several; else of the first runs on the same images."""
    values = [c.held_out("elbo") for c in (one, reference)]
    found = over_seeds(values[0], values[1])
    if found is None or found.half_width is not None:
        return found
    return over_images(one.first, reference.first) or found


def what_it_says(compared: Comparable, dim: int) -> list[str]:
    """The statements at the top: each configuration against the reference."""
    reference, others = compared.configurations[0], compared.configurations[1:]
    items = []
    for other in others[:MOST_SENTENCES]:
        elbo, score = elbo_difference(other, reference), score_difference(other, reference, dim)
        items.append(
            f"ELBO of {other.label} minus {reference.label}: {interval(elbo, 2)} nats. {sentence(verdict(elbo))}."
        )
        items.append(f"MIG ({HEADLINE_KIND}, d = {dim}), the same pair: {interval(score)}. {sentence(verdict(score))}.")
    if len(others) > MOST_SENTENCES:
        items.append(f"{len(others) - MOST_SENTENCES} more comparisons are in the table of differences.")
    if len(others) > 1:
        items.append(f"{2 * len(others)} comparisons at 95 %: about one in twenty excludes 0 by chance alone.")
    return [*items, _training_length(compared)]


def epochs(run: ScoredRun) -> float | None:
    """Passes over the training images, where the run reached its end."""
    seen, there = run.summary.get("images_seen"), run.saved.record["data"].get("num_images")
    return seen / there if seen and there else None


def _training_length(compared: Comparable) -> str:
    passes = [e for e in map(epochs, compared.runs) if e is not None]
    if not passes:
        return "How long these runs were trained is not recorded (no summary.json): read the scores with care."
    if max(passes) < 1.0:
        return (
            f"Short training: at most {max(passes):.2g} passes over the training images. This checks that everything works; it is "
            "no result about architectures."
        )
    return f"Training: {min(passes):.2g} to {max(passes):.2g} passes over the training images."


# --- One paragraph per figure ---------------------------------------------------------------------------------------


def _seeds(configuration: Configuration) -> str:
    count = len(configuration.runs)
    return f"Mean over {count} seeds." if count > 1 else "One run; another seed may look different."


def _best(known: Float64) -> list[int]:
    """Columns of the factors that sentences name: all, in the data's order, or of many those that are known best."""
    if len(known) <= MOST_FACTORS:
        return list(range(len(known)))
    return [int(column) for column in np.argsort(-known, kind="stable")[:MOST_FACTORS]]


def heat_map(configuration: Configuration) -> str:
    """Which groups know which factor, and how much of the rate says nothing about factors."""
    share, kl, names = mean_share(configuration, "matrix"), mean_kl(configuration), factor_names(configuration.first)
    units, parts = unit_names(configuration.first), []
    word = "latent" if configuration.first.is_flat else "group"
    shown = _best(share.max(axis=0))
    for column in shown:
        name, best = names[column], int(share[:, column].argmax())
        known = [i for i in range(len(share)) if share[i, column] >= max(CLEAR_SHARE, 0.5 * share[best, column])]
        if not known:
            parts.append(f"no single {word} knows {100 * CLEAR_SHARE:.0f} % of {name}")
        elif len(known) == 1:
            parts.append(f"{name} is best known to {word} {units[best]} ({share[best, column]:.0%})")
        else:
            parts.append(f"{name} is known to {len(known)} {word}s, most to {units[best]} ({share[best, column]:.0%})")
    if len(shown) < len(names):
        rest = float(np.delete(share, shown, axis=1).max())
        parts.append(
            f"no single {word} knows more than {rest:.0%} of any of the other {len(names) - len(shown)} factors"
        )
    most = int(kl.argmax())
    return (
        sentence("; ".join(parts))
        + f". Most of the KL is in {word} {units[most]} ({kl[most]:.1f} of {kl.sum():.1f} nats). "
        f"{_seeds(configuration)} Shares are lower bounds from linear probes on held-out images: a low share does not prove that "
        "the information is absent, and KL is not information about these factors."
    )


def gains(configuration: Configuration) -> str:
    """What each factor's bar reaches, and where most of it comes from."""
    gain, names, units = (
        mean_share(configuration, "conditional_gain"),
        factor_names(configuration.first),
        unit_names(configuration.first),
    )
    total, first = gain.sum(axis=0), gain.argmax(axis=0)
    columns = _best(total)
    shown = ", ".join(
        f"{names[i]} {total[i]:.0%}" + (f" (most from {units[first[i]]})" if total[i] >= CLEAR_SHARE else "")
        for i in columns
    )
    if len(columns) < len(names):
        shown += f", the other {len(names) - len(columns)} factors at most {np.delete(total, columns).max():.0%}"
    thresholds = [
        r.record["scores"]["groups"].get("threshold") for r in configuration.runs if "groups" in r.record["scores"]
    ]
    known = [t for t in thresholds if t is not None]
    chance = (
        f"By chance a gain reaches {max(known):.3f} nats."
        if known
        else "The level of chance was not computed (--group-shuffles)."
    )
    return (
        f"All of it together tells: {shown}. {chance} {_seeds(configuration)} "
        "Gains are differences of two bounds, so estimates and no bounds; the order is from the top down, and what two groups both "
        "know is counted for the upper one."
    )


def dimension(compared: Comparable, dims: Sequence[int]) -> str:
    """How far codes of equal size differ, and whether training matters."""
    parts = []
    for configuration in compared.configurations[:MOST_SENTENCES]:
        reached = [d for d in dims if len(configuration.reduced(HEADLINE_KIND, d))]
        if reached:
            first, last = (configuration.reduced(HEADLINE_KIND, d).mean() for d in (reached[0], reached[-1]))
            parts.append(f"{configuration.label} {first:.3f} at d = {reached[0]}, {last:.3f} at d = {reached[-1]}")
    return (
        f"{'; '.join(parts) or 'No configuration reaches these dimensions'}. {_control(compared, dims)} "
        "MIG falls with redundancy: a low value says that the code is not aligned with the factors at that dimension, not that "
        "the information is missing. Curves end where a model has no more numbers."
    )


def _control(compared: Comparable, dims: Sequence[int]) -> str:
    """Which trained codes are above those of untrained weights."""
    behind, known = [], False
    for configuration in compared.configurations:
        for d in dims:
            trained, fresh = (configuration.reduced(HEADLINE_KIND, d, untrained=u) for u in (False, True))
            if len(trained) and len(fresh):
                known = True
                if trained.mean() <= fresh.mean():
                    behind.append(f"{configuration.label} at d = {d}")
    if not known:
        return "No untrained models were scored (--untrained), so part of any value may be the architecture's."
    if behind:
        more = f" and {len(behind) - MOST_SENTENCES} more" if len(behind) > MOST_SENTENCES else ""
        return f"Dotted: untrained weights, which these do not exceed: {', '.join(behind[:MOST_SENTENCES])}{more}."
    return "Dotted: untrained weights; in the mean every configuration lies above its own."


def scatter(compared: Comparable, dim: int) -> str:
    """What the plane shows; correlation only where there are enough runs."""
    runs = [r for r in compared.runs if r.held_out("elbo") is not None]
    points = [(r.held_out("elbo") or 0.0, s) for r in runs if (s := r.reduced(HEADLINE_KIND, dim)) is not None]
    best = max(runs, key=lambda r: r.held_out("elbo") or -np.inf) if runs else None
    said = f"{len(runs)} runs; grey lines join equal ELBO, better towards the lower left."
    if best is not None:
        said += f" The highest ELBO, {number(best.held_out('elbo'), 1)} nats, is a run of {best.label}."
    if len(points) >= 8 and np.std([p[1] for p in points]) > 0 and np.std([p[0] for p in points]) > 0:
        r = float(np.corrcoef(np.array(points).T)[0, 1])
        width = 1.96 / np.sqrt(len(points) - 3)
        low, high = np.tanh(np.arctanh(np.clip(r, -0.999999, 0.999999)) + np.array([-width, width]))
        weight = "an interval that contains 0: noise" if low <= 0 <= high else "over these runs; not a cause"
        return f"{said} Correlation of ELBO and MIG {r:+.2f} ({low:+.2f} to {high:+.2f}), {weight}."
    return f"{said} Too few runs for a statement on how likelihood and disentanglement go together."


WORDS = (
    "Rate: KL of the posteriors from the priors, what the latents say about an image. Distortion: -log p(x|z), what they leave "
    "open. ELBO = -(rate + distortion), a lower bound of log p(x): higher is better.",
    "Group: latents that are drawn together; a hierarchical VAE (NVAE) has many, the top one coarsest; a flat VAE has one.",
    "Factor: what is known about how an image was made, such as position. MIG: for each factor, how much more the best latent "
    "knows than the second best, as a share of the factor's entropy; 0 to 1, and 1 is out of reach with 20 bins.",
    "Reductions make codes of equal size without looking at factors: pool is the mean of each channel, moments adds its centroid, "
    "pca is linear. group-MIG compares whole groups (latents of a flat VAE) by held-out probes.",
    "Each value with ± is a mean and standard deviation over seeds; an interval is at 95 %. Where an interval contains 0, or where "
    "there is none, nothing is claimed.",
)

PICTURES = {
    "reconstructions": (
        "Originals above their reconstructions from posterior means, the same images for every model, chosen by position and "
        "not by quality; distortion in the table is the measure."
    ),
    "samples": (
        "Draws from the prior at temperature 1, not selected. They show kinds of faults, not how frequent these are."
    ),
    "top groups": (
        "First row: originals. Each further row keeps more groups (of a flat VAE: latents of the highest KL), starting with "
        "the top, and sets the rest to the prior's mean. What appears in a row is what its groups hold for these images."
    ),
    "traversals": (
        "One image; each row moves one axis by two standard deviations each way: principal axes of groups, top group first, "
        "or the latents of highest KL. A row that changes one thing is no proof that another image behaves alike."
    ),
}
