"""Masked batches: samples of a token dataset as arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.masking import Masking, mask_spans
from elc_bert.data.random import CounterRandom, Stream, scale
from elc_bert.data.segments import SegmentIndex
from elc_bert.data.vocabulary import CLS, PAD, SEP
from elc_bert.errors import UserError


@dataclass(frozen=True)
class Batch:
    """`B` masked samples of `T` tokens."""

    input_ids: NDArray[np.int64]
    """What the model reads, [B, T]."""
    attention_mask: NDArray[np.bool_]
    """True where there is a real token, False on padding, [B, T]."""
    labels: NDArray[np.int64]
    """The token to predict, -100 where there is none, [B, T]."""


class MaskedBatches:
    """Reads masked samples: `[CLS]`, a segment, `[SEP]`, and `[PAD]` up to `T` tokens.

    A sample is a pure function of (seed, epoch, number of the segment), in whatever batch it is.

    Args:
        dataset: the token stream.
        segments: its segments for this sequence length.
        sequence_length: `T`.
        vocab_size: of the model; random replacements are drawn below it.
        seed: of the masks.
        masking: the probabilities.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        segments: SegmentIndex,
        sequence_length: int,
        vocab_size: int,
        seed: int,
        masking: Masking,
    ):
        self.dataset = dataset
        self.segments = segments
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.seed = seed
        self.masking = masking

    def __call__(self, epochs: NDArray[np.int64], samples: NDArray[np.int64]) -> Batch:
        """The batch of some segments in some epochs, both int64 [B].

        Raises:
            UserError: the dataset's files do not fit together, or hold ids beyond the vocabulary.
        """
        random = CounterRandom(self.seed, epochs, samples)
        offsets, lengths = self.segments(samples)
        lengths = self._shortened(np.minimum(lengths, self.sequence_length - 2), random)
        tokens = self._framed(offsets, lengths)
        inputs, labels = mask_spans(tokens, lengths + 2, self.vocab_size, self.masking, random)
        return Batch(inputs, tokens != PAD, labels)

    def _shortened(self, lengths: NDArray[np.int64], random: CounterRandom) -> NDArray[np.int64]:
        """Lengths of the segments, some of them cut to a uniform length in [1, T - 2)."""
        is_short, length = random.uniform(Stream.SHORT, np.arange(2)).T
        cut = scale(length, 1, self.sequence_length - 2)
        return np.where(is_short < self.masking.short_p, np.minimum(lengths, cut), lengths)

    def _framed(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token ids with `[CLS]`, `[SEP]` and padding, [B, T]."""
        steps = np.arange(self.sequence_length - 2)
        # Only the pages of the file that hold these segments are read.
        places = np.minimum(offsets[:, None] + steps, self.dataset.num_tokens - 1)
        segment = np.where(steps < lengths[:, None], self.dataset.tokens[places], PAD)
        highest = int(segment.max())
        if highest >= self.vocab_size:
            raise UserError(
                f"{self.dataset.prefix}.bin: holds token id {highest}, but the vocabulary has "
                f"{self.vocab_size} subwords; give the tokenizer that the dataset was built with"
            )
        tokens = np.full((len(offsets), self.sequence_length), PAD, dtype=np.int64)
        tokens[:, 0] = CLS
        tokens[:, 1:-1] = segment
        tokens[np.arange(len(offsets)), lengths + 1] = SEP
        return tokens
