"""The tables that score.py and evaluate.py print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.console.terminal import one_line
from launch.report.tables import Table
from launch.results.scores import METRICS, headline
from metrics.measure import Measure
from metrics.uncertainty import few_rows_note

ANY = Measure()


def scores(results: Mapping[str, Any], skipped: Mapping[str, str]) -> Table:
    """List each score with its 95 % interval, its chance level, its ceiling and its meaning."""
    rows = []
    for name, result in results.items():
        value = headline(result)
        shown = f"{value:.4f}" if value is not None else str(result.get("score"))
        beside = next((f"{k} {result[k]:.4f}" for k in ("ceiling", "baseline") if isinstance(result.get(k), float)), "")
        rows.append([name, shown, *_uncertainty(result.get("uncertainty")), beside, METRICS[name].says])
        notes = [f"note: {note}" for note in (*_bias(result.get("uncertainty")), *result.get("notes", ()))]
        rows += [["", "", "", "", "", note] for note in notes]
    rows += [[name, "-", "", "", "", f"left out: {reason}"] for name, reason in skipped.items()]
    return Table(["score", "value", "95 % interval", "by chance", "", "meaning"], rows, wordy=frozenset({4, 5}))


def _uncertainty(found: Mapping[str, Any] | None) -> tuple[str, str]:
    """Format the interval and the chance level of a score that has them."""
    if found is None:
        return "", ""
    interval = "none" if found["interval"] is None else "[{:.4f}, {:.4f}]".format(*found["interval"])
    return interval, f"{found['chance']:.4f}"


def _bias(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the note on a score's bias if the bias exceeds the standard error, or on why it has no interval."""
    if not found:
        return ()
    matters = found["interval"] is None or abs(found["bias"]) > found["standard_error"]
    return (found["bias_note"],) if matters else ()


def groups(result: Mapping[str, Any], factor_names: Sequence[str], labels: Sequence[str]) -> Table:
    """List the information of each group about each factor and, in brackets, its gain, as shares of H(v)."""
    names = [factor_names[k][:16] if factor_names else f"factor {k}" for k in result["kept"]]
    rows = [
        [
            label,
            *(
                f"{a / h:.3f} ({g / h:.3f})" if h else "-"
                for a, g, h in zip(alone, gain, result["entropy"], strict=True)
            ),
        ]
        for label, alone, gain in zip(labels, result["matrix"], result["conditional_gain"], strict=True)
    ]
    caption = "Share of each factor's entropy that a group encodes (in brackets: what it adds to the groups above)"
    if result["threshold"] is not None:
        caption += f"; by chance a gain reaches {result['threshold']:.4f} nats ({result['num_shuffles']} shuffles)"
    return Table(["", *names], rows, caption)


def reduced(result: Mapping[str, Any]) -> Table:
    """List the MIG of each reduction at each dimension; a star marks codes with fewer dimensions than requested."""
    found = result["rows"]
    every = sorted({row["dim"] for row in found})
    dims = [d for d in every if any(row["num_latents"] >= d == row["dim"] for row in found)] or every[:1]
    rows = []
    for kind in dict.fromkeys(row["kind"] for row in found):
        of_kind = {row["dim"]: row for row in found if row["kind"] == kind}
        cells = [f"{of_kind[d]['mig']:.4f}{'*' if of_kind[d]['num_latents'] < d else ' '}" for d in dims]
        rows.append([kind, *cells])
    caption = "MIG at equal dimension (* the code is smaller: compare only values without a star)"
    return Table(["reduction", *(f"d = {d}" for d in dims)], rows, caption)


def precision(results: Mapping[str, Any]) -> Table:
    """List the share of images within given distances in pixels of a real image, for samples and for baselines."""
    first = next(iter(results.values()))
    rows = [
        [name, *(f"{share:.3f}" for share in result["precision"]), f"{result['num_samples']:,}"]
        for name, result in results.items()
    ]
    head = ["images", *(f"{distance} px" for distance in first["distances"]), "number"]
    return Table(head, rows, "Share of images that differ from a real image in at most so many pixels")


def coverage(results: Mapping[str, Any], factor_names: Sequence[str]) -> Table:
    """List the share of each factor's values that images cover."""
    within = next(iter(results.values()))["within"]
    rows = [[name, *(f"{share:.3f}" for share in result["coverage"])] for name, result in results.items()]
    head = ["images", *(name[:14] for name in factor_names)]
    return Table(head, rows, f"Share of each factor's values covered by images within {within} px of a real image")


def _unit_labels(record: dict[str, Any]) -> list[str]:
    """Name each row of the group table."""
    shapes, count = record.get("group_shapes", []), len(record["scores"]["groups"]["matrix"])
    if len(shapes) == count and count > 1:
        return [f"group {i} ({h}x{w})" for i, (_, h, w) in enumerate(shapes)]
    return [f"latent {i}" for i in range(count)]


def _parts(record: dict[str, Any], measure: Measure) -> Iterator[str]:
    found = record["scores"]
    yield f"code: {one_line(record['code'])}; {record['num_images']:,} images"
    if record.get("ignored_columns"):
        names = ", ".join(one_line(name) or "(no name)" for name in record["ignored_columns"])
        yield f"columns left out because they only number or name the rows: {names}"
    if any((result.get("uncertainty") or {}).get("interval") for result in found.values()):
        yield from few_rows_note(record["num_images"])
    yield scores(found, record["skipped"]).text()
    if record["untrained"]:
        fresh = {name: headline(result) for name, result in record["untrained"].items()}
        yield "untrained weights: " + "  ".join(f"{name} {v:.4f}" for name, v in fresh.items() if v is not None)
    if "reduced" in found:
        yield reduced(found["reduced"]).text()
    if "groups" in found:
        yield groups(found["groups"], record["factor_names"], _unit_labels(record)).text()
    if record.get("samples"):
        yield precision(record["samples"]).text()
        yield coverage(record["samples"], record["factor_names"]).text()
    if "kl_at_means" in record and measure.has_rate:
        shown = " ".join(f"{value:.2f}" for value in record["kl_at_means"])
        yield (
            f"KL per group at the posterior means, before any flow, in nats, top first: {shown}; "
            f"active units {record['active_units']}"
        )


def describe(record: dict[str, Any], measure: Measure = ANY) -> str:
    """Format a record of scores as tables; of the model's own numbers only those that ``measure`` shows."""
    return "\n\n".join(_parts(record, measure))


# --- Evaluations ----------------------------------------------------------------------------------------------------


def _other_edges(result: dict[str, Any]) -> Iterator[tuple[str, float, str]]:
    """Yield the results under the other treatment of edge bins of a discretised mixture."""
    draws = result.get("importance_draws")
    for edges in ("exact", "legacy"):
        if f"{edges}_elbo" in result:
            yield f"negative ELBO, {edges} edges", -result[f"{edges}_elbo"], f"{edges}_bits_per_dim"
        if f"{edges}_importance_bound" in result:
            bound = -result[f"{edges}_importance_bound"]
            yield f"importance bound, {draws} samples, {edges} edges", bound, f"{edges}_importance_bits_per_dim"


def _bounds(result: dict[str, Any], reference: dict[str, float] | None, measure: Measure) -> Table:
    """List the negative ELBO, its parts and tighter bounds in nats per image and in the measure's unit."""
    unit = "nats per image" if not measure.is_density else "nats per image, of a density"
    half = measure.per_dim(result["bits_per_dim_95"])
    rows = [
        [
            "negative ELBO",
            f"{-result['elbo']:.2f} ± {result['elbo_95']:.2f}",
            f"{measure.per_dim(result['bits_per_dim']):.4f} ± {half:.4f}",
        ],
        ["  rate (KL)", f"{result['rate']:.2f}", ""],
        ["  distortion", f"{result['distortion']:.2f}", ""],
    ]
    further = list(_other_edges(result))
    if draws := result.get("importance_draws"):
        further.insert(
            0, (f"importance bound, {draws} samples", -result["importance_bound"], "importance_bits_per_dim")
        )
    rows += [[name, f"{nats:.2f}", f"{measure.per_dim(result[key]):.4f}"] for name, nats, key in further]
    if reference is not None:
        nats, bits = reference["negative_log_likelihood"], reference["bits_per_dim"]
        rows.append(["no latents (baseline)", f"{nats:.2f}", f"{bits:.4f}"])
    return Table(["", unit, measure.unit], rows)


def evaluation(result: dict[str, Any], reference: dict[str, float] | None, measure: Measure) -> str:
    """Format an evaluation, with the numbers of the no-latents baseline ``reference``, as a table and some lines.

    Only numbers that ``measure`` shows are listed.
    """
    decibels = f"reconstruction: {result['psnr']:.2f} dB"
    if not measure.has_rate:
        distortion = f"distortion: {result['distortion']:.2f} {measure.nats} per image, at the posterior means"
        return f"{distortion}\n{decibels}\nAn autoencoder trains no posterior variance, so it has no rate, ELBO or bits/dim."
    lines = [
        _bounds(result, reference, measure).text(),
        decibels,
        f"active units: {result['active_units']} of {result['num_units']}",
        f"KL per group from one posterior sample, in nats, top first: {' '.join(f'{v:.1f}' for v in result['kl_group'])}",
    ]
    if measure.is_density:
        lines.append("A normal likelihood is a density: its numbers may have either sign and are not bits/dim.")
    return "\n".join(lines)


def describe_folders(record: Mapping[str, Any]) -> str:
    """Format FID, KID, precision and recall of a folder of images as a table."""
    found = record["scores"]["images"]
    kernel, near = found["kernel"], found["neighbours"]
    rows = [
        ["FID", f"{found['score']:.4f}", "", "lower is better"],
        ["KID", f"{kernel['score']:.5f}", f"+- {kernel['standard_deviation']:.5f}", "over subsets; lower is better"],
    ]
    rows += [[n, f"{near[n]:.4f}", "", ""] for n in ("precision", "recall", "density", "coverage")] if near else []
    rows += [["", "", "", f"note: {note}"] for note in found["notes"]]
    compared = f"{record['generated']['num_images']:,} images against {record['reference']['num_images']:,}"
    return f"{compared}\n{Table(['score', 'value', '', 'meaning'], rows, wordy=frozenset({2, 3})).text()}"
