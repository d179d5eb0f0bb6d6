"""Time the scores, against disent 0.8.0 where it is installed, on the same codes in the same process.

disent needs a separate environment (this project does not depend on it):

    python -m venv /tmp/disent-venv && /tmp/disent-venv/bin/pip install disent==0.8.0 scikit-learn
    OMP_NUM_THREADS=1 /tmp/disent-venv/bin/python benchmarks/metrics.py

With the project's own Python it prints our times alone. Times are CPU seconds of this process (the median of repeats,
ours and theirs in turn), so that a shared machine hardly matters. disent reads its codes from a table,
vectorised, so the metrics are compared without the loading of images.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
# The root comes first and this folder is removed, because this script has the name of the package ``metrics``.
sys.path = [str(ROOT)] + [p for p in sys.path if Path(p or ".").resolve() != ROOT / "benchmarks"]

import metrics

SIZES = np.array([3, 6, 40, 32, 32])
STRIDES = np.array([245_760, 40_960, 1_024, 32, 1])
MATRIX_POINTS, MATRIX_LATENTS, MATRIX_NUMBERS = (10_000, 50_000, 200_000, 737_280), (10, 100, 1_000, 4_000), 8e7


def grid_codes(num_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """(codes [737280, D] float32, factors): the factors with noise, then noise."""
    rng = np.random.default_rng(0)
    factors = np.stack(np.unravel_index(np.arange(SIZES.prod()), tuple(SIZES.tolist())), axis=1)
    codes = rng.standard_normal((len(factors), num_latents), dtype=np.float32)
    codes[:, :5] = 0.3 * codes[:, :5] + 2.0 * factors[:, :num_latents] / (SIZES - 1) - 1.0
    return codes, factors


def cpu_seconds(*functions: Callable[[], object], repeats: int) -> list[float]:
    """Median CPU seconds of each function, run in turn."""
    times = np.zeros((repeats, len(functions)))
    for i in range(repeats):
        for j, function in enumerate(functions):
            start = time.process_time()
            function()
            times[i, j] = time.process_time() - start
    return [float(t) for t in np.median(times, axis=0)]


class PeerData:
    """Data set for disent's metrics, backed by a table of codes."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.gt_data = SimpleNamespace(num_factors=len(SIZES), sample_factors=self.sample_factors)

    def sample_factors(self, num: int) -> np.ndarray:
        """Draw factors from NumPy's global state, as disent does."""
        return np.random.randint(SIZES, size=(num, len(SIZES)))  # noqa: NPY002

    def dataset_batch_from_factors(self, factors: np.ndarray, mode: str) -> np.ndarray:
        """Codes of given factors."""
        return self.table[factors @ STRIDES]

    def dataset_sample_batch(self, num_samples: int, mode: str) -> np.ndarray:
        """Codes of random factors."""
        return self.dataset_batch_from_factors(self.sample_factors(num_samples), mode)


def against_disent(table: np.ndarray, codes: np.ndarray, factors: np.ndarray) -> None:
    ours: list[Callable[[], object]] = [
        lambda: metrics.mig(codes, factors),
        lambda: metrics.factor_vae_metric(lambda f: table[f @ STRIDES], SIZES, seed=0, prune_std=0.0),
    ]
    names, repeats = ("MIG, N = 10,000, D = 10", "FactorVAE, default counts, D = 10"), (15, 5)
    if find_spec("disent") is None:
        for name, function, count in zip(names, ours, repeats, strict=True):
            print(f"{name}: {cpu_seconds(function, repeats=count)[0]:.4f} s (disent is not installed)")
        return
    warnings.simplefilter("ignore")  # disent's, about numba
    import torch
    from disent.metrics import metric_factor_vae
    from disent.metrics.utils import discrete_entropy, discrete_mutual_info, histogram_discretize

    def peer_mig() -> float:
        information = discrete_mutual_info(histogram_discretize(codes.T, num_bins=20), factors.T)
        ordered = np.sort(information, axis=0)[::-1]
        return float(np.mean((ordered[0] - ordered[1]) / discrete_entropy(factors.T)))

    def peer_factor_vae() -> float:
        scores = metric_factor_vae.unwrap(PeerData(table), lambda batch: torch.as_tensor(batch))
        return float(scores["factor_vae.eval_accuracy"])

    difference = abs(peer_mig() - metrics.mig(codes, factors).score)
    print(f"MIG differs by {difference:.1e}")
    for name, function, peer, count in zip(names, ours, (peer_mig, peer_factor_vae), repeats, strict=True):
        our_time, peer_time = cpu_seconds(function, peer, repeats=count)
        print(f"{name}: ours {our_time:.4f} s, disent {peer_time:.4f} s, ratio {peer_time / our_time:.1f}")


def full_grid(num_latents: int) -> None:
    """Full-grid MIG in this process alone: CPU seconds, and the most memory that the process ever held."""
    codes, factors = grid_codes(num_latents)
    (seconds,) = cpu_seconds(lambda: metrics.mig(codes, factors), repeats=3)
    # Not getrusage, whose figure a child inherits from its parent.
    status = Path("/proc/self/status").read_text().split()
    peak = int(status[status.index("VmHWM:") + 1]) / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak}))


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "--full-grid":
        full_grid(int(sys.argv[2]))
        return
    names = ("numpy", "scikit-learn", "torch")
    print(platform.machine(), "Python", platform.python_version(), *(f"{name} {version(name)}" for name in names))
    table, grid = grid_codes(10)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(table), size=10_000)
    against_disent(table, table[rows], grid[rows])
    for latents in (10, 50):
        child = [sys.executable, __file__, "--full-grid", str(latents)]
        found = json.loads(subprocess.run(child, check=True, capture_output=True, text=True).stdout)
        print(f"full-grid MIG, D = {latents}: {found['seconds']:.2f} s, peak memory {found['peak_gib']:.2f} GiB")
    for name, metric in (("beta-VAE", metrics.beta_vae_metric), ("FactorVAE", metrics.factor_vae_metric)):
        asked: list[np.ndarray] = []

        def code_of(factors: np.ndarray, asked: list[np.ndarray] = asked) -> np.ndarray:
            asked.append(factors @ STRIDES)
            return table[asked[-1]]

        draws = metric(code_of, SIZES, seed=0).num_draws
        passes = np.concatenate(asked)
        print(
            f"{name}: {draws:,} images requested, {len(passes):,} encoded, {len(np.unique(passes)):,} of them distinct"
        )
    print(
        "\nMIG, CPU seconds (ns per point and latent)\n| N | " + " | ".join(f"D = {d:,}" for d in MATRIX_LATENTS) + " |"
    )
    print("|--:|" + "--:|" * len(MATRIX_LATENTS))
    for points in MATRIX_POINTS:
        cells = [matrix_cell(grid, points, latents) for latents in MATRIX_LATENTS]
        print(f"| {points:,} | " + " | ".join(cells) + " |", flush=True)


def matrix_cell(grid: np.ndarray, points: int, latents: int) -> str:
    if points * latents > MATRIX_NUMBERS:
        return ""
    rng = np.random.default_rng(0)
    codes = rng.standard_normal((points, latents), dtype=np.float32)
    factors = grid[rng.integers(len(grid), size=points)]
    (seconds,) = cpu_seconds(lambda: metrics.mig(codes, factors), repeats=3)
    return f"{seconds:.3f} ({1e9 * seconds / points / latents:.0f})"


if __name__ == "__main__":
    main()
