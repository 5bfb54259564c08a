"""Reduction of the number of points of a curve."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.report.thinning import smooth, subsample, thin
from elc_bert.utils.event_files import Series


def series_of(values) -> Series:
    return Series(np.arange(1, len(values) + 1), np.array(values, dtype=np.float64))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 60))
def test_thinned_series_keep_ends_and_extremes(values, most):
    thinned = thin(series_of(values), most)
    assert len(thinned.steps) <= most
    assert thinned.values.min() == min(values)
    assert thinned.values.max() == max(values)
    assert (thinned.values[0], thinned.last) == (values[0], values[-1])
    assert (np.diff(thinned.steps) > 0).all()
    assert all(values[step - 1] == value for step, value in zip(thinned.steps, thinned.values, strict=True))


def test_a_short_series_stays_as_it_is():
    series = series_of(range(100))
    assert thin(series, 100) is series


def test_a_single_spike_is_kept():
    values = np.zeros(15_625)
    values[7_777] = 9.0
    thinned = thin(series_of(values), 1000)
    assert thinned.values.max() == 9.0
    assert thinned.steps[thinned.values.argmax()] == 7_778


@given(st.integers(1, 3000), st.integers(2, 500))
def test_subsampling_keeps_both_ends(count, most):
    kept = subsample(series_of(range(count)), most).steps
    assert len(kept) <= most
    assert (kept[0], kept[-1]) == (1, count)


def test_smoothing_is_the_mean_around_each_entry():
    values = np.random.default_rng(1).normal(size=50)
    smoothed = smooth(series_of(values), 7).values
    np.testing.assert_allclose(smoothed[20], values[17:24].mean())
    np.testing.assert_allclose(smoothed[1], values[:3].mean())
    np.testing.assert_allclose(smoothed[0], values[0])
    np.testing.assert_allclose(smoothed[-1], values[-4:].mean())


def test_smoothing_does_not_move_a_straight_line_before_its_end():
    np.testing.assert_allclose(smooth(series_of(range(100)), 21).values[:90], range(90), atol=1e-9)


def test_an_infinite_loss_is_ignored():
    values = np.ones(40)
    values[20] = np.inf
    assert smooth(series_of(values), 5).values.tolist() == [1.0] * 40
