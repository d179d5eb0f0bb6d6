"""Any result as plain data, for JSON and for printing."""

from __future__ import annotations

import dataclasses
import math
from typing import TypeAlias

Plain: TypeAlias = bool | int | float | str | list["Plain"] | dict[str, "Plain"] | None


def to_plain(result: object) -> Plain:
    """A result dataclass (or array, tensor, number, sequence, mapping of such) as plain Python data.

    Numbers that JSON cannot hold become the strings "inf", "-inf" and "nan". Raises ValueError for anything that has
    no plain form.
    """
    if result is None or isinstance(result, (bool, str)):
        return result
    if isinstance(result, int):
        return int(result)
    if isinstance(result, float):
        return float(result) if math.isfinite(result) else str(float(result))
    tolist = getattr(result, "tolist", None)
    if tolist is not None and not isinstance(result, type):  # an array, a NumPy number or a tensor
        return to_plain(tolist())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return {field.name: to_plain(getattr(result, field.name)) for field in dataclasses.fields(result)}
    if isinstance(result, (list, tuple)):
        return [to_plain(item) for item in result]
    if isinstance(result, dict):
        return {str(key): to_plain(value) for key, value in result.items()}
    raise ValueError(
        f"{type(result).__name__} has no plain form; give a result, an array, a number, text or a collection"
    )
