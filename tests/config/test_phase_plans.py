"""Micro-batches of long sequences have as many tokens as those of short ones."""

import pytest

from elc_bert.config.batch_plan import BatchPlan, plan_phases
from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.reader import load_config


@pytest.mark.parametrize(
    ("most", "short", "long"), [(8, (8, 2), (2, 2)), (16, (16, 1), (4, 1)), (2, (2, 8), (1, 4))]
)
def test_long_sequences_get_a_quarter_of_the_micro_batch(configure, tmp_path, most, short, long):
    training = {"max_steps": 10, "long_after": 0.5, "max_micro_batch_size": most}
    config = load_config(configure(tmp_path, train_batch_size=32, training=training))
    assert plan_phases(config, length_schedule(config), 2) == {
        0: BatchPlan(*short, 2),
        1: BatchPlan(*long, 2),
    }
