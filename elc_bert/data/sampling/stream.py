"""Endless streams of masked samples: datasets, blend, order and masks put together.

Shapes: `N` positions of a stream, `B` samples of a batch.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.sampling.batches import Batch, MaskedBatches, Source
from elc_bert.data.sampling.blend import Blend, Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.order import Order
from elc_bert.data.sampling.random import derive_seed

_DATASET = 1 << 33
"""Sets the seeds of a blend's datasets apart from whatever else is derived from the run's."""


class SampleStream:
    """The samples of one sequence length: a function of (seed, number, position) alone.

    Every dataset has an order and masks of its own, which depend on its place in the blend; those of the
    first are what it has alone.

    Args:
        portions: the datasets, and how much of each is read.
        sequence_length: `T`.
        seed: of the run.
        number: of an independent stream under the same seed, such as the phase of a run.
        masking: the probabilities.
        vocab_size: of the model.
        policy: how the datasets are cut into segments.

    Raises:
        UserError: a dataset or its segment index is missing or damaged, or its weight too small.
    """

    def __init__(
        self,
        portions: Sequence[Portion],
        sequence_length: int,
        seed: int,
        number: int,
        masking: Masking,
        vocab_size: int,
        policy: str,
    ):
        datasets = [IndexedDataset(portion.prefix) for portion in portions]
        segments = [open_segments(dataset, sequence_length, policy) for dataset in datasets]
        self.segments = [len(each) for each in segments]
        """Of each dataset."""
        self.blend = Blend(
            [each.weight_of(count) for each, count in zip(portions, self.segments, strict=True)]
        )
        seeds = [derive_seed(seed, _DATASET, i) if i else seed for i in range(len(datasets))]
        self._orders = [Order(count, own, number) for count, own in zip(self.segments, seeds, strict=True)]
        masks = [derive_seed(own, number) for own in seeds]
        sources = [Source(*each) for each in zip(datasets, segments, masks, strict=True)]
        self.batch = MaskedBatches(sources, sequence_length, vocab_size, masking)
        """Reads some of the samples: `batch(*samples)`."""

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which samples are at some positions, int64 [N].

        Returns:
            Number of the dataset, its epoch, and the number of its segment: int64 [3, N].
        """
        sources, places = self.blend(positions)
        samples = np.empty((3, len(positions)), dtype=np.int64)
        samples[0] = sources
        for number, order in enumerate(self._orders):
            own = np.flatnonzero(sources == number)
            samples[1:, own] = order(places[own])
        return samples

    def __call__(self, positions: NDArray[np.int64]) -> Batch:
        """The samples at some positions, int64 [B]."""
        return self.batch(*self.samples(positions))
