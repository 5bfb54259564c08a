import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.data.sampling.order import Order

AROUND_POWERS = [2**k + d for k in range(1, 12) for d in (-1, 0, 1)]
COUNTS = st.one_of(st.sampled_from([1, 2, 3, 997, *AROUND_POWERS]), st.integers(1, 3000))


@given(count=COUNTS, seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_every_epoch_is_a_permutation(count, seed, epoch):
    epochs, samples = Order(count, seed)(np.arange(epoch * count, (epoch + 1) * count))
    assert (epochs == epoch).all()
    assert np.array_equal(np.sort(samples), np.arange(count))


@given(count=st.integers(1, 2**63), seed=st.integers(0, 2**32), data=st.data())
def test_samples_do_not_depend_on_the_batch_of_positions(count, seed, data):
    positions = np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20)))
    order = Order(count, seed)
    epochs, samples = order(positions)
    assert ((samples >= 0) & (samples < count)).all()
    assert epochs.tolist() == [position // count for position in positions.tolist()]
    alone = [order(positions[i : i + 1])[1][0] for i in range(len(positions))]
    assert samples.tolist() == alone


@given(
    count=st.one_of(
        st.integers(1, 2**63), st.integers(1, 63).map(lambda bits: 2**bits + 1).filter(lambda n: n <= 2**63)
    ),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_no_sample_occurs_twice_in_an_epoch_of_any_size(count, seed, data):
    """Check consecutive positions, the last positions of an epoch, and random positions."""
    begin = data.draw(st.integers(0, count - 1))
    chosen = data.draw(st.lists(st.integers(0, count - 1), max_size=20))
    positions = {*range(begin, min(begin + 200, count)), *range(max(0, count - 50), count), *chosen}
    epochs, samples = Order(count, seed)(np.array(sorted(positions)))
    assert not epochs.any()
    assert len(np.unique(samples)) == len(positions)
    assert samples.min() >= 0
    assert int(samples.max()) < count


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_epochs_seeds_and_streams_are_ordered_differently(seed):
    first = Order(500, seed)(np.arange(1000))[1].reshape(2, 500)
    others = [first[1], *(order(np.arange(500))[1] for order in (Order(500, seed + 1), Order(500, seed, 1)))]
    for other in others:
        # A random permutation agrees with another one in one place on average.
        assert (first[0] == other).sum() < 10


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_all_permutations_of_small_counts_are_equally_frequent(count):
    epochs = 24000
    samples = Order(count, seed=5)(np.arange(count * epochs))[1].reshape(epochs, count)
    orders = list(itertools.permutations(range(count)))
    found, counts = np.unique(samples, axis=0, return_counts=True)
    assert len(found) == len(orders)
    expected = epochs / len(orders)
    chi2 = ((counts - expected) ** 2 / expected).sum()
    freedom = len(orders) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


def test_neighboring_samples_are_uncorrelated():
    samples = Order(100_000, seed=2)(np.arange(100_000))[1]
    assert abs(np.corrcoef(samples[1:], samples[:-1])[0, 1]) < 4 / len(samples) ** 0.5
    assert abs(np.corrcoef(samples, np.arange(100_000))[0, 1]) < 4 / len(samples) ** 0.5


def test_an_order_of_a_trillion_samples_starts_immediately():
    epochs, samples = Order(10**12, seed=0)(np.array([0, 10**12 - 1, 10**12]))
    assert epochs.tolist() == [0, 0, 1]
    assert len(set(samples.tolist())) == 3


@pytest.mark.parametrize("count", [0, -1, 2**63 + 1])
def test_invalid_counts_are_refused(count):
    with pytest.raises(ValueError, match="samples"):
        Order(count, seed=0)
