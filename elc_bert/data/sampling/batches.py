"""Masked batches of samples as NumPy arrays.

Shapes: ``B`` samples of ``T`` tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import SegmentIndex
from elc_bert.data.sampling.masking import Masking, mask_spans
from elc_bert.data.sampling.random import CounterRandom, Stream, scale
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Masked samples, or packed rows of several samples."""

    input_ids: NDArray[np.int64]
    """Token ids after masking, the input of the model, ``[B, T]``."""
    attention_mask: NDArray[np.bool_] | NDArray[np.int32]
    """True on real tokens and False on padding, bool ``[B, T]``. In packed rows: the number of the sample
    within its row, 1, 2, ..., and 0 on padding, int32 ``[B, T]``."""
    tokens: NDArray[np.int32]
    """Token ids before masking, ``[B, T]``."""
    predicted: NDArray[np.bool_]
    """True at the positions to predict, ``[B, T]``."""

    @classmethod
    def join(cls, parts: Iterable["Batch"]) -> "Batch":
        """Concatenate several batches."""
        fields = zip(*((p.input_ids, p.attention_mask, p.tokens, p.predicted) for p in parts), strict=True)
        return cls(*map(np.concatenate, fields))

    def rows(self, rows: slice) -> "Batch":
        """Return some of the rows."""
        return Batch(self.input_ids[rows], self.attention_mask[rows], self.tokens[rows], self.predicted[rows])


@dataclass(frozen=True)
class Source:
    """Dataset to take samples from."""

    dataset: IndexedDataset
    """Token stream."""
    segments: SegmentIndex
    """Segment index for the sequence length of the batches."""
    seed: int
    """Seed of the masks."""


class MaskedBatches:
    """Reader of masked samples: ``[CLS]``, a segment, ``[SEP]``, and ``[PAD]`` up to ``T`` tokens.

    A sample is a pure function of its source's seed, the epoch and the segment, independent of the other
    samples in the batch.

    Args:
        sources: Datasets to read from.
        sequence_length: Length ``T`` of the samples.
        vocab_size: Vocabulary size of the model; random replacements are drawn below it.
        masking: Masking probabilities and special tokens.
    """

    def __init__(
        self, sources: Sequence[Source], sequence_length: int, vocab_size: int, masking: Masking
    ) -> None:
        self.sources = list(sources)
        self.sequence_length = sequence_length
        self.vocab_size = vocab_size
        self.masking = masking

    def __call__(
        self, sources: NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> Batch:
        """Read and mask a batch of samples.

        Args:
            sources: Index of each sample's dataset in ``sources``, int64 ``[B]``.
            epochs: Epoch of that dataset, int64 ``[B]``.
            samples: Index of the segment in that dataset, int64 ``[B]``.

        Raises:
            UserError: A dataset's files do not match, or contain token ids outside of the vocabulary.
        """
        random = self._random(sources, epochs, samples)
        offsets, lengths = self._slices(sources, samples, random)
        tokens = self._read(sources, offsets)
        is_real = np.arange(self.sequence_length, dtype=np.int32) < lengths[:, None]
        special = self.masking.special
        tokens[:, 0] = special.cls
        tokens[np.arange(len(samples)), lengths - 1] = special.sep
        np.copyto(tokens, special.pad, where=~is_real)
        inputs, predicted = mask_spans(tokens, lengths, self.vocab_size, self.masking, random)
        return Batch(inputs.astype(np.int64), is_real, tokens, predicted)

    def lengths(
        self, sources: NDArray[np.int64], epochs: NDArray[np.int64], samples: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the number of tokens of each sample, with ``[CLS]`` and ``[SEP]``, int64 ``[B]``.

        Only the segment indexes are read, not the tokens.

        Raises:
            UserError: A segment index is damaged.
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
        """Return segment positions, and sample lengths with ``[CLS]`` and ``[SEP]``, int64 ``[B]`` each."""
        offsets, lengths = np.empty_like(samples), np.empty_like(samples)
        for number in np.unique(sources).tolist():
            source = self.sources[number]
            rows = np.flatnonzero(sources == number)
            offsets[rows], lengths[rows] = source.segments(samples[rows])
        return offsets, np.minimum(lengths, self._length_limits(random)) + 2

    def _length_limits(self, random: CounterRandom) -> NDArray[np.int64]:
        """Draw the maximum number of tokens of each segment, int64 ``[B]``.

        It is T - 2, or with probability ``short_p`` uniform from 1 to T - 3.
        """
        whole = self.sequence_length - 2
        is_short, length = random.uniform(Stream.SHORT, np.arange(2)[:, None])
        return np.where(is_short < self.masking.short_p, scale(length, 1, whole), whole)

    def _read(self, sources: NDArray[np.int64], offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """Read segments from column 1 on, int32 ``[B, T]``; the columns around them hold arbitrary tokens."""
        tokens = np.empty((len(offsets), self.sequence_length), dtype=np.int32)
        for number in np.unique(sources).tolist():
            source = self.sources[number]
            rows = np.flatnonzero(sources == number)
            positions = offsets[rows, None] + np.arange(-1, self.sequence_length - 1)
            np.clip(positions, 0, source.dataset.num_tokens - 1, out=positions)
            tokens[rows] = self._check_ids(source.dataset, source.dataset.gather(positions))
        return tokens

    def _check_ids(self, dataset: IndexedDataset, tokens: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the tokens if all ids are below the vocabulary size."""
        highest = int(tokens.max(initial=0))
        if highest >= self.vocab_size:
            raise UserError(
                f"{dataset.prefix}.bin: contains token id {highest}, but the vocabulary has "
                f"{self.vocab_size} subwords; give the tokenizer that the dataset was built with"
            )
        return tokens
