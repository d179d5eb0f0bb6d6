"""Scores as the tables that a person reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.results.scores import METRICS, headline


def table(results: Mapping[str, Any], skipped: Mapping[str, str]) -> str:
    """One line per score: value, what it can reach at most or by chance, what it says."""
    lines = []
    for name, result in results.items():
        value = headline(result)
        shown = f"{value:.4f}" if value is not None else str(result.get("score"))
        beside = next((f"{k} {result[k]:.4f}" for k in ("ceiling", "baseline") if isinstance(result.get(k), float)), "")
        lines.append(f"{name:22}{shown:>10}  {beside:18}{METRICS[name].says}")
        lines += [f"{'':34}note: {note}" for note in result.get("notes", ())]
    lines += [f"{name:22}{'-':>10}  {'':18}left out: {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def group_table(result: Mapping[str, Any], factor_names: Sequence[str], labels: Sequence[str]) -> str:
    """Groups x factors: what each group knows, and in brackets what it adds to those above, as shares of H(v)."""
    names = [factor_names[k] for k in result["kept"]] if factor_names else [f"factor {k}" for k in result["kept"]]
    lines = ["share of each factor's entropy that a group knows (that it adds to the groups above)"]
    lines.append(f"{'':18}" + "".join(f"{n[:16]:>17}" for n in names))
    for label, alone, gain in zip(labels, result["matrix"], result["conditional_gain"], strict=True):
        cells = [
            f"{a / h:.3f} ({g / h:.3f})" if h else "-" for a, g, h in zip(alone, gain, result["entropy"], strict=True)
        ]
        lines.append(f"{label:18}" + "".join(f"{c:>17}" for c in cells))
    if result["threshold"] is not None:
        lines.append(f"by chance a gain reaches {result['threshold']:.4f} nats ({result['num_shuffles']} shuffles)")
    return "\n".join(lines)


def reduced_table(result: Mapping[str, Any]) -> str:
    """MIG of each reduction at each dimension; a star where fewer numbers were there than asked for."""
    rows = result["rows"]
    dims = sorted({row["dim"] for row in rows})
    lines = ["MIG at equal dimension" + "".join(f"{f'd = {d}':>12}" for d in dims)]
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = {row["dim"]: row for row in rows if row["kind"] == kind}
        cells = [f"{of_kind[d]['mig']:.4f}{'*' if of_kind[d]['num_latents'] < d else ' '}" for d in dims]
        lines.append(f"  {kind:20}" + "".join(f"{c:>12}" for c in cells))
    lines.append("  * fewer numbers are there than asked for: compare rows that reach the dimension")
    return "\n".join(lines)


def samples_table(results: Mapping[str, Any], factor_names: Sequence[str]) -> str:
    """Precision at each distance and coverage of each factor, of samples and what they are held against."""
    first = next(iter(results.values()))
    within = [f"{distance} px" for distance in first["distances"]]
    lines = ["images within so many pixels of a real one" + "".join(f"{w:>8}" for w in within)]
    for name, result in results.items():
        cells = "".join(f"{share:>8.3f}" for share in result["precision"])
        lines.append(f"  {name:<40}"[:42] + cells + f"   ({result['num_samples']:,} images)")
    lines.append(f"values covered within {first['within']} px" + "".join(f"{n[:14]:>15}" for n in factor_names))
    for name, result in results.items():
        lines.append(f"  {name:<24}" + "".join(f"{share:>15.3f}" for share in result["coverage"]))
    return "\n".join(lines)


def unit_labels(record: dict[str, Any]) -> list[str]:
    """A name for each row of the group table."""
    shapes, count = record.get("group_shapes", []), len(record["scores"]["groups"]["matrix"])
    if len(shapes) == count and count > 1:
        return [f"group {i} ({h}x{w})" for i, (_, h, w) in enumerate(shapes)]
    return [f"latent {i}" for i in range(count)]


def describe(record: dict[str, Any]) -> str:
    """A record as the tables that a person reads."""
    lines = [
        f"code: {record['code']}; {record['num_images']:,} images",
        table(record["scores"], record["skipped"]),
    ]
    if record["untrained"]:
        fresh = {name: headline(result) for name, result in record["untrained"].items()}
        shown = "  ".join(f"{name} {value:.4f}" for name, value in fresh.items() if value is not None)
        lines.append(f"untrained weights: {shown}")
    if "reduced" in record["scores"]:
        lines += ["", reduced_table(record["scores"]["reduced"])]
    if "groups" in record["scores"]:
        lines += ["", group_table(record["scores"]["groups"], record["factor_names"], unit_labels(record))]
    if record.get("samples"):
        lines += ["", samples_table(record["samples"], record["factor_names"])]
    if "kl_at_means" in record:
        shown = " ".join(f"{value:.2f}" for value in record["kl_at_means"])
        lines += ["", f"KL per group in nats, top first: {shown}; active units {record['active_units']}"]
    return "\n".join(lines)
