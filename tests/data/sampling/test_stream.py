import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments, open_segments
from elc_bert.data.sampling.batches import Batch
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.order import Order
from elc_bert.data.sampling.random import derive_seed
from elc_bert.data.sampling.stream import SampleStream
from elc_bert.utils.errors import UserError

SEED = 5


def stream_of(*portions: Portion, number: int = 0, policy: str = "reference") -> SampleStream:
    return SampleStream(portions, 32, SEED, number, Masking(short_p=0.3), 512, policy)


@pytest.fixture(scope="module")
def blend(tiny_dataset, second_dataset) -> SampleStream:
    return stream_of(
        Portion(tiny_dataset, weight=Fraction(7, 10)), Portion(second_dataset, weight=Fraction(3, 10))
    )


def rows(batch: Batch) -> list[tuple]:
    parts = (batch.input_ids, batch.attention_mask, batch.tokens, batch.predicted)
    return list(zip(*(map(tuple, part.tolist()) for part in parts), strict=True))


@settings(max_examples=25, deadline=None)
@given(positions=st.lists(st.integers(0, 10**6), min_size=1, max_size=40))
def test_a_batch_has_the_rows_that_each_dataset_gives(blend, positions):
    """The expected samples are computed one at a time, by components that have tests of their own."""
    whole = rows(blend(np.array(positions)))
    which, places = blend.blend(np.array(positions))
    for i, position in enumerate(positions):
        assert rows(blend(np.array([position]))) == [whole[i]]
        seed = derive_seed(SEED, 1 << 33, 1) if which[i] else SEED
        epochs, samples = Order(blend.segments[which[i]], seed)(places[i : i + 1])
        assert rows(blend.batch(which[i : i + 1], epochs, samples)) == [whole[i]]


def test_the_first_dataset_is_read_as_if_it_were_alone(blend, tiny_dataset):
    positions = np.arange(400)
    which, _ = blend.blend(positions)
    own = [row for row, source in zip(rows(blend(positions)), which, strict=True) if source == 0]
    assert len(own) == 280
    assert own == rows(stream_of(Portion(tiny_dataset))(np.arange(280)))


def test_every_segment_occurs_once_in_an_epoch_of_its_dataset(blend):
    first, second = blend.segments
    positions = np.arange(10 * max(first // 7, second // 3) + 20)
    sources, epochs, samples = blend.samples(positions)
    for source, count in ((0, first), (1, second)):
        own = (sources == source) & (epochs == 0)
        assert sorted(samples[own].tolist()) == list(range(count))


def test_a_weight_makes_no_difference_to_a_dataset_alone(tiny_dataset):
    positions = np.arange(300)
    alone = rows(stream_of(Portion(tiny_dataset))(positions))
    assert rows(stream_of(Portion(tiny_dataset, weight=Fraction(1, 3)))(positions)) == alone
    assert rows(stream_of(Portion(tiny_dataset, epochs=Fraction(3)))(positions)) == alone
    assert rows(stream_of(Portion(tiny_dataset), number=1)(positions)) != alone


def test_datasets_of_a_blend_are_ordered_and_masked_independently(tiny_dataset):
    twice = stream_of(Portion(tiny_dataset), Portion(tiny_dataset))
    sources, _, samples = twice.samples(np.arange(200))
    assert (samples[sources == 0] == samples[sources == 1]).sum() < 10
    zeros = np.zeros(50, dtype=np.int64)
    first, second = (twice.batch(zeros + source, zeros, np.arange(50)) for source in (0, 1))
    assert not np.array_equal(first.predicted, second.predicted)


def test_epochs_of_all_datasets_end_together(tiny_dataset, second_dataset):
    """Read the first dataset twice and the second one three times."""
    stream = stream_of(Portion(tiny_dataset, epochs=Fraction(2)), Portion(second_dataset, epochs=Fraction(3)))
    first, second = stream.segments
    assert stream.blend.counts(2 * first + 3 * second) == [2 * first, 3 * second]


def test_the_policy_selects_the_segments(tiny_dataset, tmp_path):
    for file in tiny_dataset.parent.glob("tiny.*"):
        shutil.copy(file, tmp_path)
    prefix = Path(tmp_path, "tiny")
    with pytest.raises(
        UserError, match=r"no packed segment index for sequence length 32; run: .*--policy packed"
    ):
        stream_of(Portion(prefix), policy="packed")
    dataset = IndexedDataset(prefix)
    build_segments(dataset, 32, "packed")
    packed = stream_of(Portion(prefix), policy="packed")
    assert packed.segments == [len(open_segments(dataset, 32, "packed"))]
    assert packed.segments != stream_of(Portion(prefix)).segments
    assert packed.batch(*np.zeros((3, 1), dtype=np.int64)).tokens.shape == (1, 32)
