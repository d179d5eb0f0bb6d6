"""The tables that score.py and evaluate.py print."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.console.terminal import one_line
from launch.report.tables import Table
from launch.results.scores import METRICS, headline


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
    low, high = found["interval"]
    return f"[{low:.4f}, {high:.4f}]", f"{found['chance']:.4f}"


def _bias(found: Mapping[str, Any] | None) -> tuple[str, ...]:
    """Return the note on a score's bias if the bias exceeds the standard error."""
    return (found["bias_note"],) if found and abs(found["bias"]) > found["standard_error"] else ()


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


def _parts(record: dict[str, Any]) -> Iterator[str]:
    found = record["scores"]
    yield f"code: {one_line(record['code'])}; {record['num_images']:,} images"
    if record.get("ignored_columns"):
        names = ", ".join(one_line(name) or "(no name)" for name in record["ignored_columns"])
        yield f"columns left out because they only number or name the rows: {names}"
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
    if "kl_at_means" in record:
        shown = " ".join(f"{value:.2f}" for value in record["kl_at_means"])
        yield (
            f"KL per group at the posterior means, before any flow, in nats, top first: {shown}; "
            f"active units {record['active_units']}"
        )


def describe(record: dict[str, Any]) -> str:
    """Format a record of scores as tables."""
    return "\n\n".join(_parts(record))


# --- Evaluations ----------------------------------------------------------------------------------------------------


def _other_edges(result: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the results under the other treatment of edge bins of a discretised mixture."""
    draws = result.get("importance_draws")
    for edges in ("exact", "legacy"):
        for name, elbo, bits in (
            ("negative ELBO", "elbo", ""),
            (f"importance bound, {draws} samples", "importance_bound", "importance_"),
        ):
            if f"{edges}_{elbo}" in result:
                nats, per_dim = -result[f"{edges}_{elbo}"], result[f"{edges}_{bits}bits_per_dim"]
                yield [f"{name}, {edges} edges", f"{nats:.2f}", f"{per_dim:.4f}"]


def evaluation(result: dict[str, Any], reference: dict[str, float] | None) -> str:
    """Format an evaluation, and the no-latents baseline ``reference``, as a table and three lines."""
    rows = [
        [
            "negative ELBO",
            f"{-result['elbo']:.2f} ± {result['elbo_95']:.2f}",
            f"{result['bits_per_dim']:.4f} ± {result['bits_per_dim_95']:.4f}",
        ],
        ["  rate (KL)", f"{result['rate']:.2f}", ""],
        ["  distortion", f"{result['distortion']:.2f}", ""],
    ]
    if draws := result.get("importance_draws"):
        nats, bits = -result["importance_bound"], result["importance_bits_per_dim"]
        rows.append([f"importance bound, {draws} samples", f"{nats:.2f}", f"{bits:.4f}"])
    rows += _other_edges(result)
    if reference is not None:
        nats, bits = reference["negative_log_likelihood"], reference["bits_per_dim"]
        rows.append(["no latents (baseline)", f"{nats:.2f}", f"{bits:.4f}"])
    return "\n".join(
        [
            Table(["", "nats per image", "bits/dim"], rows).text(),
            f"reconstruction: {result['psnr']:.2f} dB",
            f"active units: {result['active_units']} of {result['num_units']}",
            "KL per group from one posterior sample, in nats, top first: "
            + " ".join(f"{v:.1f}" for v in result["kl_group"]),
        ]
    )


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
