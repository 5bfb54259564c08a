import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import CLS, PAD, SEP, SpecialTokens
from elc_bert.data.sampling.batches import MaskedBatches, Source
from elc_bert.data.sampling.masking import Masking
from elc_bert.utils.errors import UserError

PARTS = ("input_ids", "attention_mask", "tokens", "predicted")


class Batches(MaskedBatches):
    """Return batches of one dataset."""

    def __init__(self, prefix, length=32, vocab_size=512, seed=3, **masking):
        self.dataset = IndexedDataset(prefix)
        self.segments = open_segments(self.dataset, length)
        source = Source(self.dataset, self.segments, seed)
        super().__init__([source], length, vocab_size, Masking(**masking))

    def __call__(self, epochs, samples):
        return super().__call__(np.zeros_like(samples), epochs, samples)


def test_a_sample_is_a_segment_between_cls_and_sep(tiny_dataset):
    batches = Batches(tiny_dataset, mask_p=0, short_p=0)
    samples = np.arange(len(batches.segments))
    batch = batches(np.zeros_like(samples), samples)
    assert {getattr(batch, name).shape for name in PARTS} == {(len(samples), 32)}
    assert not batch.predicted.any()
    for row, real, offset, length in zip(
        batch.input_ids, batch.attention_mask, *batches.segments(samples), strict=True
    ):
        segment = batches.dataset.tokens[offset : offset + length].tolist()
        assert row.tolist() == [CLS, *segment, SEP] + [PAD] * (30 - length)
        assert real.tolist() == [True] * (length + 2) + [False] * (30 - length)


def test_a_sample_has_the_special_tokens_of_its_vocabulary(tiny_dataset):
    special = SpecialTokens(unk=500, cls=501, sep=502, pad=503, mask=504)
    batches = Batches(tiny_dataset, short_p=0, random_p=0, keep_p=0, special=special)
    samples = np.arange(len(batches.segments))
    batch = batches(np.zeros_like(samples), samples)
    lengths = batch.attention_mask.sum(axis=1)
    assert (batch.input_ids[:, 0] == 501).all()
    assert (batch.input_ids[samples, lengths - 1] == 502).all()
    assert (batch.input_ids[~batch.attention_mask] == 503).all()
    assert (batch.tokens[~batch.attention_mask] == 503).all()
    assert (batch.input_ids[batch.predicted] == 504).all()
    assert batch.predicted.any()


def test_masked_tokens_restore_the_sample(tiny_dataset):
    samples = np.arange(50)
    plain = Batches(tiny_dataset, mask_p=0, short_p=0)(samples * 0, samples)
    masked = Batches(tiny_dataset, short_p=0)(samples * 0, samples)
    restored = np.where(masked.predicted, masked.tokens, masked.input_ids)
    assert np.array_equal(restored, plain.input_ids)
    assert np.array_equal(masked.tokens, plain.tokens)
    assert (masked.input_ids != plain.input_ids).any()


@settings(max_examples=25, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 90)), min_size=2, max_size=12))
def test_a_sample_is_the_same_in_any_batch(tiny_dataset, pairs):
    batches = Batches(tiny_dataset, short_p=0.5)
    epochs, samples = np.array(pairs).T
    whole = batches(epochs, samples)
    alone = [batches(epochs[i : i + 1], samples[i : i + 1]) for i in range(len(pairs))]
    for name in PARTS:
        assert np.array_equal(getattr(whole, name), np.concatenate([getattr(each, name) for each in alone]))


def test_epochs_and_seeds_mask_differently(tiny_dataset):
    samples = np.arange(50)
    first = Batches(tiny_dataset)(samples * 0, samples).predicted
    assert not np.array_equal(first, Batches(tiny_dataset)(samples * 0 + 1, samples).predicted)
    assert not np.array_equal(first, Batches(tiny_dataset, seed=4)(samples * 0, samples).predicted)


def test_short_segments_have_every_length(tiny_dataset):
    batches = Batches(tiny_dataset, mask_p=0, short_p=1)
    samples = np.repeat(np.arange(50), 100)
    batch = batches(np.tile(np.arange(100), 50), samples)
    lengths = batch.attention_mask.sum(axis=1) - 2
    full = batches.segments(samples)[1]
    # Cut to 1..29 of the at most 30 tokens, so a full segment never stays.
    assert np.unique(lengths[full == 30]).tolist() == list(range(1, 30))
    share = Batches(tiny_dataset, short_p=0.25)(np.tile(np.arange(100), 50), samples)
    is_cut = (share.attention_mask.sum(axis=1) - 2 < full)[full == 30]
    assert abs(is_cut.mean() - 0.25) < 4 * (0.25 * 0.75 / is_cut.size) ** 0.5


def test_a_vocabulary_that_is_too_small_is_a_user_error(tiny_dataset):
    with pytest.raises(UserError, match=r"\.bin: contains token id \d+, .* 20 subwords"):
        Batches(tiny_dataset, vocab_size=20)(np.zeros(9, dtype=np.int64), np.arange(9))
