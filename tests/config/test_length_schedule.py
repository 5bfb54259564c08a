"""Schedule of sequence lengths: phases, and the samples that each step reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elc_bert.config.length_schedule import LengthSchedule, Phase, steps_in_share
from elc_bert.utils.errors import UserError


def test_sequences_become_longer_and_batches_smaller_at_the_same_step():
    schedule = LengthSchedule(max_steps=100, sequence_length=128, global_batch=32)
    assert schedule.switch_step == 90
    assert schedule.phases == (Phase(0, 128, 32, 0), Phase(90, 512, 8, 1))
    assert schedule.at(0) == (128, 32, 0)
    assert schedule.at(89) == (128, 32, 89 * 32)
    assert schedule.at(90) == (512, 8, 0)
    assert schedule.at(99) == (512, 8, 72)


def test_sequences_can_stay_short_or_be_long_from_the_start():
    never = LengthSchedule(100, 128, 31, long_after=1.0)
    assert never.phases == (Phase(0, 128, 31, 0),)
    always = LengthSchedule(100, 128, 32, long_after=0.0)
    assert always.phases == (Phase(0, 512, 8, 1),)
    assert always.at(3) == (512, 8, 24)


@given(
    steps=st.integers(1, 500),
    after=st.floats(0, 1),
    batch=st.integers(1, 8).map(lambda n: 4 * n),
)
def test_every_step_has_a_phase_and_reads_the_same_number_of_tokens(steps, after, batch):
    schedule = LengthSchedule(steps, 128, batch, after)
    for step in range(steps):
        length, samples, first = schedule.at(step)
        assert length * samples == 128 * batch
        assert first % samples == 0
        assert (length == 512) == (step >= schedule.switch_step)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"global_batch": 30}, "cannot be divided by 4"),
        ({"long_after": 1.5}, "long_after is 1.5"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_impossible_schedules_are_user_errors(values, message):
    with pytest.raises(UserError, match=message):
        LengthSchedule(**{"max_steps": 100, "sequence_length": 128, "global_batch": 32, **values})


@pytest.mark.parametrize(
    ("steps", "share", "expected"),
    [(100, 0.29, 28), (100, 0.57, 56), (1000, 0.0599, 59), (99, 0.995, 98), (7, 1.0, 7), (7, 0.0, 0)],
)
def test_a_share_of_the_run_is_cut_to_whole_steps_as_in_the_reference(steps, share, expected):
    """The reference computes ``int(steps * share)`` in double precision: 100 * 0.29 is below 29."""
    assert steps_in_share(steps, share) == expected
    assert LengthSchedule(steps, 128, 4, share).switch_step == expected
