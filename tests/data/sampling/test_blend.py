import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.data.sampling.blend import MAX_CYCLE, Blend, Portion
from elc_bert.utils.errors import UserError

SIMPLE = st.lists(st.integers(1, 50).map(Fraction), min_size=1, max_size=9)
DECIMAL = st.lists(st.integers(1, 999).map(lambda n: Fraction(n, 1000)), min_size=1, max_size=9)
COARSE = st.lists(st.integers(10**6, 10**9).map(Fraction), min_size=2, max_size=5)
WEIGHTS = st.one_of(SIMPLE, DECIMAL, COARSE)


def blend_of(*weights: float | str) -> Blend:
    return Blend([Fraction(str(weight)) for weight in weights])


@settings(deadline=None, max_examples=25)
@given(weights=WEIGHTS, cycles=st.integers(1, 3))
def test_every_prefix_keeps_the_proportions_within_one_sample(weights, cycles):
    blend = Blend(weights)
    total, kinds = sum(blend.cycle), len(weights)
    which, _ = blend(np.arange(cycles * total + total // 2))
    taken = np.cumsum(which[:, None] == np.arange(kinds), axis=0)
    share = np.arange(1, len(which) + 1)[:, None] * np.array(blend.cycle)
    # In units of 1 / total of a sample, so that integers decide.
    bound = total * (1 - Fraction(1, 2 * kinds - 2)) if kinds > 1 else 0
    assert np.abs(taken * total - share).max() <= bound < total


@settings(deadline=None, max_examples=25)
@given(weights=WEIGHTS)
def test_every_dataset_is_read_in_its_own_order_without_gaps(weights):
    blend = Blend(weights)
    which, places = blend(np.arange(2 * sum(blend.cycle) + 7))
    for i in range(len(weights)):
        own = places[which == i]
        assert np.array_equal(own, np.arange(len(own)))


@settings(deadline=None)
@given(
    weights=SIMPLE,
    positions=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20),
)
def test_results_do_not_depend_on_the_batch_of_positions(weights, positions):
    blend = Blend(weights)
    which, places = blend(np.array(positions))
    for i, position in enumerate(positions):
        assert [each.tolist() for each in blend(np.array([position]))] == [[which[i]], [places[i]]]
        # As many of that dataset come before as in exact arithmetic.
        assert blend.counts(position)[which[i]] == places[i]
        assert sum(blend.counts(position)) == position


def test_weights_with_a_small_common_denominator_are_met_exactly():
    assert blend_of(0.7, 0.3).cycle == [7, 3]
    assert blend_of(2, 1, 1).cycle == [2, 1, 1]
    assert blend_of("1/3", "2/3").cycle == [1, 2]
    assert blend_of(0.1, 0.2, 0.7).cycle == [1, 2, 7]
    assert blend_of(5).cycle == [1]
    assert blend_of(1, MAX_CYCLE - 1).cycle == [1, MAX_CYCLE - 1]


@settings(deadline=None, max_examples=15)
@given(weights=COARSE)
def test_other_weights_are_rounded_to_the_resolution(weights):
    cycle = Blend(weights).cycle
    assert sum(cycle) <= MAX_CYCLE
    for number, weight in zip(cycle, weights, strict=True):
        assert abs(Fraction(number, sum(cycle)) - weight / sum(weights)) < Fraction(1, MAX_CYCLE)


def test_a_weight_that_is_too_small_is_a_user_error():
    with pytest.raises(
        UserError, match=r"elc_bert\.data\.train\[1\]: its share is below 1/65536 of the blend"
    ):
        blend_of(1, 1e-6, 2)


def test_equal_weights_alternate():
    assert blend_of(1, 1)(np.arange(6))[0].tolist() in ([0, 1] * 3, [1, 0] * 3)
    assert sorted(blend_of(1, 1, 1)(np.arange(3))[0].tolist()) == [0, 1, 2]


def test_a_single_dataset_is_unchanged():
    positions = np.array([0, 1, 2, 10**12, 2**63 - 1])
    which, places = blend_of(3)(positions)
    assert not which.any()
    assert np.array_equal(places, positions)


def test_a_pickled_copy_is_small_and_the_same():
    blend = blend_of(123456, 654321, 777777)
    pickled = pickle.dumps(blend)
    assert len(pickled) < 1000
    positions = np.arange(1000)
    assert all(
        np.array_equal(a, b) for a, b in zip(blend(positions), pickle.loads(pickled)(positions), strict=True)
    )


def test_epochs_weigh_a_dataset_by_its_segments():
    twice = Portion("a", epochs=Fraction(2))
    assert twice.weight_of(50) == 100
    assert Portion("a", weight=Fraction(7, 10)).weight_of(50) == Fraction(7, 10)
