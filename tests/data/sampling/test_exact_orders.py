"""Small examples of the distribution of rows and of the masks of phases, with exact values."""

import numpy as np

from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.packing import distribute_rows
from elc_bert.data.sampling.stream import SampleStream


def test_rows_go_back_and_forth_over_ranks_and_micro_steps():
    ranks, steps = distribute_rows(np.array([8, 7, 6, 5, 4, 3, 2, 1]), world_size=2, micro_steps=2)
    assert ranks.tolist() == [0, 1, 1, 0, 0, 1, 1, 0]
    assert steps.tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert np.bincount(ranks, weights=[8, 7, 6, 5, 4, 3, 2, 1]).tolist() == [18, 18]


def test_the_costliest_row_is_distributed_first():
    ranks, steps = distribute_rows(np.array([1, 9, 5]), world_size=3, micro_steps=1)
    assert ranks.tolist() == [2, 0, 1]
    assert steps.tolist() == [0, 0, 0]


def test_every_phase_masks_the_same_segment_differently(tiny_dataset):
    def predicted(number: int) -> np.ndarray:
        stream = SampleStream([Portion(tiny_dataset)], 32, 5, number, Masking(short_p=0.0), 512, "reference")
        samples = np.arange(20)
        return stream.batch(np.zeros(20, dtype=np.int64), np.zeros(20, dtype=np.int64), samples).predicted

    assert np.array_equal(predicted(0), predicted(0))
    assert (predicted(0) != predicted(1)).any(axis=1).sum() > 15
