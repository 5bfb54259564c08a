"""Infinite stream of masked samples, which combines datasets, blend, sample order and masking.

Shapes: ``N`` positions of a stream, ``B`` samples of a batch.
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
"""Constant that makes the seeds of a blend's datasets differ from other seeds derived from the run's."""


class SampleStream:
    """Infinite stream of samples of one sequence length, a pure function of (seed, number, position).

    Each dataset has its own sample order and masks, which depend on its index in the blend. The first dataset
    has the same order and masks as if it were used alone.

    Args:
        portions: Datasets and their shares.
        sequence_length: Sequence length ``T``.
        seed: Seed of the run.
        number: Number of an independent stream under the same seed, such as the phase of a run.
        masking: Masking probabilities and special tokens.
        vocab_size: Vocabulary size of the model.
        policy: Segment policy.

    Raises:
        UserError: A dataset or its segment index is missing or damaged, or its weight is too small.
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
    ) -> None:
        datasets = [IndexedDataset(portion.prefix) for portion in portions]
        segments = [open_segments(dataset, sequence_length, policy) for dataset in datasets]
        self.segments = [len(each) for each in segments]
        """Number of segments of each dataset."""
        self.blend = Blend(
            [each.weight_of(count) for each, count in zip(portions, self.segments, strict=True)]
        )
        seeds = [derive_seed(seed, _DATASET, i) if i else seed for i in range(len(datasets))]
        self._orders = [Order(count, own, number) for count, own in zip(self.segments, seeds, strict=True)]
        masks = [derive_seed(own, number) for own in seeds]
        sources = [Source(*each) for each in zip(datasets, segments, masks, strict=True)]
        self.batch = MaskedBatches(sources, sequence_length, vocab_size, masking)
        """Reader of samples: ``batch(*samples)``."""

    def samples(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the samples at some positions, int64 ``[N]``, without reading them.

        Returns:
            Index of the dataset, its epoch and index of its segment, int64 ``[3, N]``.
        """
        sources, own_positions = self.blend(positions)
        samples = np.empty((3, len(positions)), dtype=np.int64)
        samples[0] = sources
        for number in np.unique(sources).tolist():
            own = np.flatnonzero(sources == number)
            samples[1:, own] = self._orders[number](own_positions[own])
        return samples

    def __call__(self, positions: NDArray[np.int64]) -> Batch:
        """Read and mask the samples at some positions, int64 ``[B]``."""
        return self.batch(*self.samples(positions))
