"""The hash of counters against a version with Python integers, and the random views built on it."""

from __future__ import annotations

import numpy as np

from datasets.views import Views, _mix, hash64, hash_split

MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def mix_twin(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_twin(*keys: int) -> int:
    state = 0
    for key in keys:
        state = mix_twin(((state + STEP) & MASK) ^ mix_twin(((key & MASK) + STEP) & MASK))
    return state


def test_mixing_gives_the_published_first_words_of_splitmix64() -> None:
    words = _mix(np.array([STEP, 2 * STEP & MASK], np.uint64))  # the generator seeded with 0
    assert [hex(word) for word in words.tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]


def test_hash_equals_a_twin_in_python_integers() -> None:
    indices = np.array([0, 1, 5, 10**12])
    assert hash64(-3, 2**63, indices).tolist() == [hash_twin(-3, 2**63, i) for i in indices.tolist()]
    assert hash64(1, 2)[0] != hash64(2, 1)[0]


def test_hash_is_uniform_in_every_bit() -> None:
    words = hash64(7, np.arange(20_000))
    bits = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert np.abs(bits - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)  # five standard errors


def test_split_by_hash_is_90_5_5() -> None:
    shares = np.bincount(hash_split(hash64(np.arange(100_000))), minlength=3) / 100_000
    np.testing.assert_allclose(shares, [0.9, 0.05, 0.05], atol=0.005)
    edges = np.array([0, 2**64 // 20 * 18, 2**64 - 1], np.uint64)
    assert hash_split(edges).tolist() == [0, 0, 2]


def test_flip_mirrors_about_half_and_nothing_else() -> None:
    images = np.random.default_rng(0).integers(0, 256, (400, 3, 4, 5), dtype=np.uint8)
    views = Views(seed=1, hflip=True)
    drawn = views.apply(images.copy(), np.arange(400), draw=2)
    mirrored = np.array([not np.array_equal(a, b) for a, b in zip(drawn, images, strict=True)])
    np.testing.assert_array_equal(drawn[mirrored], images[mirrored][..., ::-1])
    assert 150 < mirrored.sum() < 250  # five standard deviations of a fair coin
    assert not np.array_equal(drawn, views.apply(images.copy(), np.arange(400), draw=3))
    assert not np.array_equal(drawn, Views(seed=2, hflip=True).apply(images.copy(), np.arange(400), draw=2))


def test_a_view_depends_on_the_index_not_on_the_batch() -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 1, 4, 5), dtype=np.uint8)
    for views in (Views(hflip=True), Views(binarise=True)):
        whole = views.apply(images.copy(), np.arange(32), draw=5)
        some = np.array([30, 3, 4])
        np.testing.assert_array_equal(views.apply(images[some].copy(), some, draw=5), whole[some])
    assert Views(binarise=True).apply(images[:0], np.arange(0), draw=0).shape == (0, 1, 4, 5)


def test_binarisation_has_the_probability_of_the_grey_level() -> None:
    levels = np.broadcast_to(np.array([0, 1, 64, 200, 254, 255], np.uint8)[:, None], (1, 1, 6, 100))
    images = np.repeat(levels, 400, axis=0)
    drawn = Views(binarise=True).apply(images, np.arange(400), draw=0)
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 1}
    share = drawn.mean(axis=(0, 1, 3))
    p = np.array([0, 1, 64, 200, 254, 255]) / 255
    assert np.all(np.abs(share - p) <= 5 * np.sqrt(p * (1 - p) / 40_000))  # exact at 0 and 255
