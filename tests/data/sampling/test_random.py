import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.data.sampling.random import CounterRandom, Stream, derive_seed, mix

SAMPLES = st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)


def test_the_mixing_function_is_splitmix64():
    # First outputs of SplitMix64 seeded with 1234567, as published with many implementations of it.
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * golden) % 2**64 for i in (1, 2, 3)], dtype=np.uint64)
    assert mix(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=st.integers(-(2**63), 2**64 - 1), samples=SAMPLES)
def test_a_sample_draws_the_same_in_any_batch(seed, samples):
    samples = np.array(samples)
    epochs = samples % 7
    counters = np.arange(5)[:, None]
    random = CounterRandom(seed, epochs, samples)
    whole = random.uniform(Stream.SPANS, counters)
    alone = [
        CounterRandom(seed, epochs[i : i + 1], samples[i : i + 1]).uniform(Stream.SPANS, counters)[:, 0]
        for i in range(len(samples))
    ]
    assert whole.shape == (5, len(samples))
    assert np.array_equal(whole.T, alone)
    rows = np.arange(len(samples))[::-1]
    assert np.array_equal(random.uniform(Stream.SPANS, 4, rows), whole[4, rows])
    assert np.array_equal(random.uniform(Stream.SPANS, np.full(len(rows), 4), rows), whole[4, rows])


def test_every_sample_can_have_a_seed_of_its_own():
    seeds, epochs, samples = np.array([[5, 6, 5], [0, 0, 1], [7, 7, 8]])
    whole = CounterRandom(seeds, epochs, samples).uniform(Stream.SPANS, 0)
    alone = [
        CounterRandom(int(seeds[i]), epochs[i : i + 1], samples[i : i + 1]).uniform(Stream.SPANS, 0)[0]
        for i in range(3)
    ]
    assert whole.tolist() == alone
    assert len(set(alone)) == 3


def test_numbers_are_uniform_and_uncorrelated_along_every_key():
    grid = np.arange(200)
    draws = np.stack(
        [
            CounterRandom(seed, np.full(200, epoch), grid).uniform(stream, np.arange(50)[:, None])
            for seed in (0, 1)
            for epoch in (0, 1)
            for stream in Stream
        ]
    )
    counts = np.histogram(draws, bins=64, range=(0, 1))[0]
    expected = draws.size / 64
    assert abs(((counts - expected) ** 2 / expected).sum() - 63) < 4 * (2 * 63) ** 0.5
    for axis in range(3):
        a, b = (
            np.take(draws, range(1, draws.shape[axis]), axis),
            np.take(draws, range(draws.shape[axis] - 1), axis),
        )
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / a.size**0.5


def test_integers_cover_their_range():
    draws = CounterRandom(3, np.zeros(1000, dtype=np.int64), np.arange(1000)).integers(
        Stream.SHORT, np.arange(10)[:, None], -2, 3
    )
    assert np.unique(draws).tolist() == [-2, -1, 0, 1, 2]


def test_derived_seeds_differ():
    seeds = {derive_seed(seed, word) for seed in range(50) for word in range(50)}
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)
