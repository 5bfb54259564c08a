"""Masked batches: samples of token datasets as arrays.

Shapes: `B` samples of `T` tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import SegmentIndex
from elc_bert.data.format.vocabulary import CLS, PAD, SEP
from elc_bert.data.sampling.masking import Masking, mask_spans
from elc_bert.data.sampling.random import CounterRandom, Stream, scale
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Batch:
    """`B` masked samples of `T` tokens."""

    input_ids: NDArray[np.int64]
    """What the model reads, [B, T]."""
    attention_mask: NDArray[np.bool_] | NDArray[np.int32]
    """True where there is a real token, False on padding, [B, T]. Of rows of several samples their numbers
    1, 2, ... instead, int32, and 0 on padding."""
    tokens: NDArray[np.int32]
    """What stood there before it was masked, [B, T]."""
    predicted: NDArray[np.bool_]
    """True where the model is to predict the token, [B, T]."""

    @classmethod
    def join(cls, parts: Iterable["Batch"]) -> "Batch":
        """The samples of several batches, in order."""
        fields = zip(*((p.input_ids, p.attention_mask, p.tokens, p.predicted) for p in parts), strict=True)
        return cls(*map(np.concatenate, fields))

    def rows(self, rows: slice) -> "Batch":
        """Some of the samples."""
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.tokens[rows], self.predicted[rows])


@dataclass(frozen=True)
class Source:
    """A dataset to take samples from."""

    dataset: IndexedDataset
    segments: SegmentIndex
    """For the sequence length of the batches."""
    seed: int
    """Of the masks."""


class MaskedBatches:
    """Reads masked samples: `[CLS]`, a segment, `[SEP]`, and `[PAD]` up to `T` tokens.

    A sample is a pure function of (seed of its source, epoch, number of the segment), in whatever batch it
    is.

    Args:
        sources: the datasets.
        sequence_length: `T`.
        vocab_size: of the model; random replacements are drawn below it.
        masking: the probabilities.
    """

    def __init__(self, sources: Sequence[Source], sequence_length: int, vocab_size: int, masking: Masking):
        self.sources = list(sources)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.masking = masking

    def __call__(
        self, sources: NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> Batch:
        """The batch of some segments in some epochs.

        Args:
            sources: which dataset each sample is of, int64 [B].
            epochs: of that dataset, int64 [B].
            samples: numbers of its segments, int64 [B].

        Raises:
            UserError: a dataset's files do not fit together, or hold ids beyond the vocabulary.
        """
        random = self._random(sources, epochs, samples)
        offsets, lengths = self._slices(sources, samples, random)
        tokens = self._read(sources, offsets)
        is_real = np.arange(self.sequence_length, dtype=np.int32) < lengths[:, None]
        tokens[:, 0] = CLS
        tokens[np.arange(len(samples)), lengths - 1] = SEP
        np.copyto(tokens, PAD, where=~is_real)
        inputs, predicted = mask_spans(tokens, lengths, self.vocab_size, self.masking, random)
        return Batch(inputs.astype(np.int64), is_real, tokens, predicted)

    def lengths(
        self, sources: NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Tokens of these samples, `[CLS]` and `[SEP]` included, int64 [B]; reads no token.

        Raises:
            UserError: a segment index is damaged.
        """
        return self._slices(sources, samples, self._random(sources, epochs, samples))[1]

    def _random(
        self, sources: NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> CounterRandom:
        seeds = np.array([source.seed for source in self.sources])
        return CounterRandom(seeds[sources], epochs, samples)

    def _slices(
        self, sources: NDArray[np.int64], samples: NDArray[np.int64], random: CounterRandom
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where segments begin in their token streams, and lengths with `[CLS]` and `[SEP]`, int64 [B]."""
        offsets, lengths = np.empty_like(samples), np.empty_like(samples)
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(sources == number)
            offsets[rows], lengths[rows] = source.segments(samples[rows])
        return offsets, np.minimum(lengths, self._longest(random)) + 2

    def _longest(self, random: CounterRandom) -> NDArray[np.int64]:
        """Most tokens of each segment, int64 [B]: for some samples a uniform number in [1, T - 2)."""
        whole = self.sequence_length - 2
        is_short, length = random.uniform(Stream.SHORT, np.arange(2)[:, None])
        return np.where(is_short < self.masking.short_p, scale(length, 1, whole), whole)

    def _read(self, sources: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """Segments in their places, with any tokens around them, int32 [B, T]."""
        tokens = np.empty((len(offsets), self.sequence_length), dtype=np.int32)
        for number, source in enumerate(self.sources):
            rows = np.flatnonzero(sources == number)
            places = offsets[rows, None] + np.arange(-1, self.sequence_length - 1)
            np.clip(places, 0, source.dataset.num_tokens - 1, out=places)
            tokens[rows] = self._checked(source.dataset, source.dataset.gather(places))
        return tokens

    def _checked(self, dataset: IndexedDataset, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        highest = int(tokens.max(initial=0))
        if highest >= self.vocab_size:
            raise UserError(
                f"{dataset.prefix}.bin: holds token id {highest}, but the vocabulary has "
                f"{self.vocab_size} subwords; give the tokenizer that the dataset was built with"
            )
        return tokens
