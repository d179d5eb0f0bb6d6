"""The work of the jobs in test_studies.py, in a module that their processes import quickly."""

from __future__ import annotations

from pathlib import Path


def touch(name: str) -> str | None:
    if name.endswith("bad"):
        return "it is bad"
    Path(name).write_text("touched")
    return None
