"""PyTorch datasets of training steps and of the held-out set.

Both are map-style datasets for ``DataLoader(dataset, batch_size=None, sampler=range(...))``. The samples of a
global batch and their masks do not depend on the number of ranks, micro-batches or data workers.

Shapes: ``m`` rows of a micro-batch, ``T`` tokens of a row, ``M`` tokens to predict in a micro-batch. A row is
one sample, or several samples if they are packed.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from elc_bert.config.length_schedule import LengthSchedule, Phase
from elc_bert.data.sampling.batches import Batch
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.packing import Layout, pack_rows, packed_layout, unpacked_layout
from elc_bert.data.sampling.stream import SampleStream
from elc_bert.data.sampling.words import WordCounter
from elc_bert.utils.errors import UserError

_HELD_OUT = 1 << 32
"""Stream number of the held-out set, above the number of any phase."""
TOKENS_AT_ONCE = 1 << 16
"""Maximum number of tokens masked in one call, which bounds memory use."""


@dataclass(frozen=True)
class MicroBatch:
    """Input of one micro-step on one rank."""

    input_ids: Tensor
    """Token ids after masking, int64 ``[m, T]``."""
    attention_mask: Tensor
    """True on real tokens and False on padding, bool ``[m, T]``. In packed rows: the number of the sample
    within its row, 1, 2, ..., and 0 on padding, int32 ``[m, T]``."""
    positions: Tensor
    """Flat positions b * T + t to predict, int64 ``[M]``; computed here to avoid a synchronization with the
    device."""
    targets: Tensor
    """Token ids to predict, int64 ``[M]``."""
    tokens: int
    """Number of real tokens, with ``[CLS]`` and ``[SEP]`` and without padding."""
    words: int = 0
    """Number of words of the text; 0 if words are not counted."""

    @classmethod
    def from_batch(cls, batch: Batch, count_words: WordCounter | None = None) -> "MicroBatch":
        """Convert a batch of NumPy arrays."""
        positions = np.flatnonzero(batch.predicted)
        return cls(
            torch.from_numpy(batch.input_ids),
            torch.from_numpy(batch.attention_mask),
            torch.from_numpy(positions),
            torch.from_numpy(batch.tokens.ravel()[positions].astype(np.int64)),
            int(np.count_nonzero(batch.attention_mask)),
            0 if count_words is None else count_words(batch.tokens),
        )

    def pin_memory(self) -> "MicroBatch":
        """Return a copy in page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MicroBatch":
        """Return a copy on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "MicroBatch":
        return MicroBatch(
            function(self.input_ids),
            function(self.attention_mask),
            function(self.positions),
            function(self.targets),
            self.tokens,
            self.words,
        )


class TrainingSteps(Dataset[list[MicroBatch]]):
    """Micro-batches of one rank, by step: ``steps[17]`` is the list of those of step 17, in order.

    Each phase has its own stream of samples. Its global batches of G samples are consecutive slices of that
    stream. ``elc_bert.data.sampling.packing`` assigns the samples of a global batch to the ranks and their
    micro-batches. All ranks have the same number of micro-batches. With packing, the number of micro-batches
    and of their rows varies from step to step.

    Args:
        portions: Datasets and their shares.
        schedule: Sequence lengths and global batch sizes.
        seed: Seed of the sample order and of the masks.
        masking: Masking probabilities and special tokens.
        vocab_size: Vocabulary size of the model.
        rank: Rank of this process.
        world_size: Number of processes.
        micro_batch_of: Function that returns the maximum number of rows of a micro-batch in a phase.
        policy: Segment policy.
        pack: Pack several samples into a row if they fit.
        count_words: Word counter; without it, words are not counted.

    Raises:
        UserError: A dataset or a segment index is missing or damaged, or the global batch size of a phase is
            not a multiple of the world size times the micro-batch size.
    """

    def __init__(
        self,
        portions: Sequence[Portion],
        schedule: LengthSchedule,
        seed: int,
        masking: Masking,
        *,
        vocab_size: int,
        rank: int,
        world_size: int,
        micro_batch_of: Callable[[Phase], int],
        policy: str = "reference",
        pack: bool = False,
        count_words: WordCounter | None = None,
    ) -> None:
        self.schedule = schedule
        self.rank = rank
        self.world_size = world_size
        self.pack = pack
        self.count_words = count_words
        self.streams: dict[int, SampleStream] = {}
        """Sample stream of each phase, by its index."""
        self._micro_batches: dict[int, int] = {}
        for phase in schedule.phases:
            micro_batch = micro_batch_of(phase)
            if micro_batch < 1 or phase.global_batch % (world_size * micro_batch):
                raise UserError(
                    f"the global batch of {phase.global_batch} samples at sequence length "
                    f"{phase.sequence_length} is not a multiple of {world_size} ranks times a micro-batch of "
                    f"{micro_batch} samples; change one of them"
                )
            self._micro_batches[phase.index] = micro_batch
            self.streams[phase.index] = SampleStream(
                portions, phase.sequence_length, seed, phase.index, masking, vocab_size, policy
            )

    def __len__(self) -> int:
        return self.schedule.max_steps

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """Return this rank's micro-batches of a step, one for each gradient accumulation step."""
        layout, samples = self.layout(step)
        phase = self.schedule.phase_at(step)
        batch = self.streams[phase.index].batch
        chunk = max(1, TOKENS_AT_ONCE // phase.sequence_length)
        parts = (
            batch(*samples[:, begin : begin + chunk]) for begin in range(0, max(1, samples.shape[1]), chunk)
        )
        pad = batch.masking.special.pad
        rows = pack_rows(parts, layout, phase.sequence_length, pad) if self.pack else Batch.join(parts)
        ends = np.cumsum(layout.sizes).tolist()
        return [
            MicroBatch.from_batch(rows.rows(slice(begin, end)), self.count_words)
            for begin, end in zip([0, *ends], ends, strict=False)
        ]

    def layout(self, step: int) -> tuple[Layout, NDArray[np.int64]]:
        """Return this rank's layout of a step, and its samples in the format of ``SampleStream.samples``."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        phase = self.schedule.phase_at(step)
        _, global_batch, first = self.schedule.at(step)
        stream, micro_batch = self.streams[phase.index], self._micro_batches[phase.index]
        if not self.pack:
            layout = unpacked_layout(global_batch, self.world_size, micro_batch, self.rank)
            return layout, stream.samples(first + layout.samples)
        samples = stream.samples(first + np.arange(global_batch))
        lengths = stream.batch.lengths(*samples)
        layout = packed_layout(lengths, phase.sequence_length, self.world_size, micro_batch, self.rank)
        return layout, samples[:, layout.samples]

    def samples_of(self, step: int) -> list[NDArray[np.int64]]:
        """Return the samples of each of this rank's micro-batches of a step.

        Returns:
            For each micro-batch: index of the dataset, its epoch and index of the segment of each sample,
            int64 ``[3, samples]``.
        """
        layout, samples = self.layout(step)
        ends = np.searchsorted(layout.rows, np.cumsum(layout.sizes))
        return np.split(samples, ends[:-1], axis=1)


class HeldOut(Dataset[MicroBatch]):
    """Micro-batches of one rank over a held-out set with fixed samples and masks.

    The set consists of the first samples of a shuffled epoch; no sample is shortened. Every rank has the same
    number of micro-batches of the same shape. Rows beyond the end of the set have no tokens to predict, and
    their tokens are not counted.

    Args:
        prefix: Path of the dataset without ``.bin``.
        sequence_length: Sequence length ``T``.
        sequences: Size of the set, or None for all segments.
        seed: Seed of the sample order and of the masks.
        masking: Masking probabilities and special tokens; ``short_p`` is ignored.
        vocab_size: Vocabulary size of the model.
        rank: Rank of this process.
        world_size: Number of processes.
        micro_batch: Number of rows ``m`` of a micro-batch.
        policy: Segment policy.

    Raises:
        UserError: The dataset or its segment index is missing or damaged, or ``sequences`` is below 1.
    """

    def __init__(
        self,
        prefix: str | os.PathLike[str],
        sequence_length: int,
        sequences: int | None,
        seed: int,
        masking: Masking,
        *,
        vocab_size: int,
        rank: int,
        world_size: int,
        micro_batch: int,
        policy: str = "reference",
    ) -> None:
        if sequences is not None and sequences < 1:
            raise UserError(
                f"{sequences} held-out sequences requested; use at least 1, or leave the number out for all"
            )
        masking = dataclasses.replace(masking, short_p=0.0)
        self.stream = SampleStream(
            [Portion(prefix)], sequence_length, seed, _HELD_OUT, masking, vocab_size, policy
        )
        (segments,) = self.stream.segments
        self.sequences = min(sequences or segments, segments)
        self.rank = rank
        self.world_size = world_size
        self.micro_batch = micro_batch

    def __len__(self) -> int:
        return -(-self.sequences // (self.world_size * self.micro_batch))

    def __getitem__(self, index: int) -> MicroBatch:
        """Return the micro-batch of this rank with the given index."""
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        first = (index * self.world_size + self.rank) * self.micro_batch
        positions = np.arange(first, first + self.micro_batch)
        is_real = positions < self.sequences
        batch = self.stream(np.minimum(positions, self.sequences - 1))
        batch.predicted[~is_real] = False
        micro_batch = MicroBatch.from_batch(batch)
        return dataclasses.replace(micro_batch, tokens=int(batch.attention_mask[is_real].sum()))
