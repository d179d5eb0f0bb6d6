"""The golden codes as functions of the factors, after `hash_spec`: table look-ups serve the sampled metrics."""

from __future__ import annotations

import numpy as np

from metrics.arrays import Float64, Int64

SIZES = (3, 6, 40, 32, 32)
STRIDES = np.array([245760, 40960, 1024, 32, 1])


def _hash(s: np.ndarray) -> np.ndarray:
    s = s + np.uint64(0x9E3779B97F4A7C15)
    s = (s ^ (s >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    s = (s ^ (s >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return s ^ (s >> np.uint64(31))


def eps(factors: Int64, d: int) -> Float64:
    seed = (factors @ STRIDES).astype(np.uint64) * np.uint64(64) + np.uint64(d)
    u1 = ((_hash(seed) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    u2 = ((_hash(seed ^ np.uint64(0xD1B54A32D192ED03)) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray(np.sqrt(-2.0 * np.log(u1)) * np.cos(2.0 * np.pi * u2))


def values(factors: Int64) -> Float64:
    return np.asarray(2.0 * factors / (np.array(SIZES) - 1) - 1.0)


def code(name: str, factors: Int64, rotation: Float64 | None = None) -> np.ndarray:
    """Codes float32 [n, D] of the golden case ``name``."""
    factors = factors.astype(np.int64)
    v = values(factors)
    zero = np.zeros(len(v))
    if name == "perfect":
        columns = list(v.T)
    elif name == "rotated":
        assert rotation is not None
        columns = list((v @ rotation.T).T)
    elif name == "noisy":
        columns = [v[:, k] + 0.3 * eps(factors, k) for k in range(5)] + [eps(factors, 5 + j) for j in range(5)]
    elif name == "redundant":
        columns = list(v.T) + list(-v.T)
    elif name == "collapsed":
        columns = [v[:, 1], v[:, 3], v[:, 4]] + [zero] * 7
    elif name == "vae_like":
        columns = _vae_like(factors, v)
    else:
        raise AssertionError(name)
    return np.stack(columns, axis=1).astype(np.float32)


def _vae_like(factors: Int64, v: Float64) -> list[Float64]:
    turns = np.array([4.0, 2.0, 1.0])[factors[:, 0]]
    t = 2.0 * np.pi * factors[:, 2] / 39.0 * turns
    shape = np.array([-1.0, 0.2, 1.0])[factors[:, 0]]
    return [
        1.4 * v[:, 3] + 0.08 * eps(factors, 0),
        1.4 * v[:, 4] + 0.08 * eps(factors, 1),
        1.2 * v[:, 1] + 0.2 * v[:, 0] * v[:, 1] + 0.12 * eps(factors, 2),
        np.cos(t) + 0.2 * eps(factors, 3),
        np.sin(t) + 0.2 * eps(factors, 4),
        0.6 * shape * (0.6 + 0.4 * v[:, 1]) + 0.3 * eps(factors, 5),
        *[0.02 * eps(factors, d) for d in range(6, 10)],
    ]
