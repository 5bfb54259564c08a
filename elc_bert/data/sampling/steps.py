"""Torch datasets of training steps and of the held-out set.

Both are map-style and made for `DataLoader(dataset, batch_size=None, sampler=range(...))`. Which
samples make up a global batch, and how they are masked, depends on neither the number of ranks, nor
micro-batches, nor workers.

Shapes: `m` rows of a micro-batch, `T` tokens of a row, `M` tokens to predict in a micro-batch. A row is a
sample, or several of them side by side where samples are packed.
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
from elc_bert.data.sampling.packing import Layout, lay_out, one_a_row, packed
from elc_bert.data.sampling.stream import SampleStream
from elc_bert.data.sampling.words import WordCounter
from elc_bert.utils.errors import UserError

_HELD_OUT = 1 << 32
"""Stream of the held-out set, beyond the numbers of any phase."""
TOKENS_AT_ONCE = 1 << 16
"""Samples are masked together up to so many tokens: few calls, in memory that does not grow."""


@dataclass(frozen=True)
class MicroBatch:
    """What one rank reads in one micro-step."""

    input_ids: Tensor
    """int64 [m, T]."""
    attention_mask: Tensor
    """True where there is a real token, bool [m, T]; or, where samples are packed, the number of the sample
    in its row, 1, 2, ..., and 0 on padding, int32 [m, T]."""
    positions: Tensor
    """Where to predict, as b * T + t, int64 [M]: known here, so that the device need not be asked."""
    targets: Tensor
    """The tokens to predict, int64 [M]."""
    tokens: int
    """Real tokens, `[CLS]` and `[SEP]` included, padding not."""
    words: int = 0
    """Words of the text, if they are counted."""

    @classmethod
    def from_batch(cls, batch: Batch, count_words: WordCounter | None = None) -> "MicroBatch":
        """The tensors of a batch of arrays."""
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
        """A copy in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "MicroBatch":
        """A copy on a device."""
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
    """The micro-batches of one rank, by step: `steps[17]` holds those of step 17, in order.

    Global batch number n of a phase is positions [n G, (n + 1) G) of the phase's own stream of samples.
    `elc_bert.data.packing` says which of them each micro-batch of a rank reads. All ranks have equally many
    micro-batches; where samples are packed, their number and that of their rows change from step to step.

    Args:
        portions: the datasets, and how much of each is read.
        schedule: sequence lengths and global batches.
        seed: of the order and of the masks.
        masking: the probabilities.
        vocab_size: of the model.
        rank: of this process.
        world_size: number of processes.
        micro_batch_of: most rows of a micro-batch, for each phase.
        policy: how the datasets are cut into segments.
        pack: put several samples into a row where they fit.
        count_words: counts those of the text; without it they are not counted.

    Raises:
        UserError: a dataset or a segment index is missing or damaged, or a phase's batch is no multiple of
            world size times micro-batch.
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
    ):
        self.schedule = schedule
        self.rank = rank
        self.world_size = world_size
        self.pack = pack
        self.count_words = count_words
        self.streams: dict[int, SampleStream] = {}
        """What each phase reads, by its index."""
        self._micro_batches: dict[int, int] = {}
        for phase in schedule.phases:
            micro_batch = micro_batch_of(phase)
            if micro_batch < 1 or phase.global_batch % (world_size * micro_batch):
                raise UserError(
                    f"a batch of {phase.global_batch} samples at sequence length {phase.sequence_length} is "
                    f"no multiple of {world_size} ranks times a {micro_batch} samples; change one of them"
                )
            self._micro_batches[phase.index] = micro_batch
            self.streams[phase.index] = SampleStream(
                portions, phase.sequence_length, seed, phase.index, masking, vocab_size, policy
            )

    def __len__(self) -> int:
        return self.schedule.max_steps

    def __getitem__(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of a step; there are as many as gradients are accumulated."""
        layout, samples = self.layout(step)
        phase = self.schedule.phase_at(step)
        batch = self.streams[phase.index].batch
        at_once = max(1, TOKENS_AT_ONCE // phase.sequence_length)
        parts = (
            batch(*samples[:, begin : begin + at_once])
            for begin in range(0, max(1, samples.shape[1]), at_once)
        )
        rows = lay_out(parts, layout, phase.sequence_length) if self.pack else Batch.join(parts)
        ends = np.cumsum(layout.sizes).tolist()
        return [
            MicroBatch.from_batch(rows.rows(slice(begin, end)), self.count_words)
            for begin, end in zip([0, *ends], ends, strict=False)
        ]

    def layout(self, step: int) -> tuple[Layout, NDArray[np.int64]]:
        """Where this rank's samples of a step go, and which they are: see `SampleStream.samples`."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        phase = self.schedule.phase_at(step)
        _, global_batch, first = self.schedule.at(step)
        stream, micro_batch = self.streams[phase.index], self._micro_batches[phase.index]
        if not self.pack:
            layout = one_a_row(global_batch, self.world_size, micro_batch, self.rank)
            return layout, stream.samples(first + layout.samples)
        samples = stream.samples(first + np.arange(global_batch))
        lengths = stream.batch.lengths(*samples)
        layout = packed(lengths, phase.sequence_length, self.world_size, micro_batch, self.rank)
        return layout, samples[:, layout.samples]

    def samples_of(self, step: int) -> list[NDArray[np.int64]]:
        """Which samples each micro-batch of this rank holds in a step.

        Returns:
            of each micro-batch, numbers of the dataset, its epoch and the segment: int64 [3, samples].
        """
        layout, samples = self.layout(step)
        ends = np.searchsorted(layout.rows, np.cumsum(layout.sizes))
        return np.split(samples, ends[:-1], axis=1)


class HeldOut(Dataset[MicroBatch]):
    """The micro-batches of one rank over a fixed, masked held-out set.

    Its samples are the first of one epoch's order, uncut. Every rank has the same number of
    micro-batches of the same shape: rows beyond the end of the set have nothing to predict and do not
    count as tokens.

    Args:
        prefix: path of the dataset.
        sequence_length: `T`.
        sequences: size of the set, or None for all segments.
        seed: of the choice and of the masks.
        masking: the probabilities; `short_p` is taken as 0.
        vocab_size: of the model.
        rank: of this process.
        world_size: number of processes.
        micro_batch: `m`.
        policy: how the dataset is cut into segments.

    Raises:
        UserError: the dataset or its segment index is missing or damaged, or `sequences` is below 1.
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
    ):
        if sequences is not None and sequences < 1:
            raise UserError(f"{sequences} held-out sequences; use at least 1, or none for all")
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
        """Micro-batch number `index` of this rank."""
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        first = (index * self.world_size + self.rank) * self.micro_batch
        positions = np.arange(first, first + self.micro_batch)
        is_real = positions < self.sequences
        batch = self.stream(np.minimum(positions, self.sequences - 1))
        batch.predicted[~is_real] = False
        micro_batch = MicroBatch.from_batch(batch)
        return dataclasses.replace(micro_batch, tokens=int(batch.attention_mask[is_real].sum()))
