"""The scripts of Strata, and the packages that implement them.

The packages from the top down; each imports only from those below it:

* scripts: parse, call, print. No script imports another.
* `studies/`: experiments of many runs.
* `report/`: the tables that scripts print, and the report of `compare.py`.
* `results/`: from a run folder to numbers: open a run, encode, score, compress.
* `training/`: from a configuration to a run folder: start, loop, step, checkpoints, records.
* `families/`: the model families, each in one module; the only package that names a model.
* `console/`: the user's side: flags, configuration, errors, pictures.
* `machine/`: the hardware and the operating system: ranks, noise, files, compiled parts.

docs/architecture.md shows the packages and lists the place for common changes.
"""

import os
import sys
from pathlib import Path


def _refuse_foreign_packages() -> None:
    """Refuse to run if another project's package has the name of one of ours, such as Hugging Face's ``datasets``.

    Raises:
        ImportError: one of them is already imported.
        SystemExit: the same in a script, after a line with the error and a line with the remedy.
    """
    root = Path(__file__).resolve().parents[1]
    for name in ("datasets", "metrics", "nvae", "flat_vae"):
        where = getattr(sys.modules.get(name), "__file__", None)
        if where is None or root in Path(where).resolve().parents:
            continue
        text = f"the package {name!r} was imported from {where}"
        remedy = "run the script in its checkout, in a process that has not imported the other package"
        if Path(getattr(sys.modules["__main__"], "__file__", "") or "").resolve().parent == root / "launch":
            print(f"error: {text}\n  fix: {remedy}", file=sys.stderr)
            raise SystemExit(2)
        raise ImportError(f"{text}; {remedy}")


def _bound_spinning() -> None:
    """Make waiting OpenMP threads yield their core after a short spin, unless the user chose how they wait.

    By default they spin for milliseconds, which on a busy machine takes the core from the thread that they wait for
    (docs/benchmarks/2026-11-28-openmp.md). GNU's library reads the variable when PyTorch is imported, so it must be
    set before that. Child processes inherit it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


_refuse_foreign_packages()
_bound_spinning()
