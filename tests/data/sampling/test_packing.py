"""Tests of packing: assignment of samples to rows and ranks, and contents of packed rows."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.format.vocabulary import PAD
from elc_bert.data.sampling import steps
from elc_bert.data.sampling.batches import Batch
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.collate import CollatedStep
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.packing import Layout, best_fit, pack_rows, packed_layout, unpacked_layout
from elc_bert.data.sampling.steps import MicroBatch, TrainingSteps

WIDTH = 32
LENGTHS = st.lists(st.integers(3, WIDTH), min_size=1, max_size=200) | st.lists(
    st.sampled_from([3, 5, 16, 17, 31, 32]), min_size=1, max_size=200
)
"""Sample lengths of a global batch: arbitrary ones, or a few values that occur many times."""
SCHEDULE = LengthSchedule(max_steps=10, sequence_length=32, global_batch=48, long_after=0.5)


def contents(lengths, rows) -> list[list[int]]:
    """Return the sample lengths in each row, the longest first."""
    return [sorted(np.array(lengths)[rows == row].tolist(), reverse=True) for row in range(max(rows) + 1)]


# ---- rows ------------------------------------------------------------------------------------


def test_rows_are_filled_up():
    lengths = [10, 6, 4, 3, 7, 2, 5]
    rows = best_fit(np.array(lengths), 10)
    assert contents(lengths, rows) == [[10], [7, 3], [6, 4], [5, 2]]


def test_a_sample_goes_into_the_row_with_the_least_room():
    lengths = [7, 8, 2]
    assert contents(lengths, best_fit(np.array(lengths), 10)) == [[8, 2], [7]]


def test_samples_of_one_length_share_rows():
    rows = best_fit(np.full(11, 3), 10)
    assert np.bincount(rows).tolist() == [3, 3, 3, 2]


def rooms_plainly(lengths, width) -> list[int]:
    """Return the room left in each row by best-fit decreasing, one sample at a time."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append(min(fitting, default=width) - length)
    return sorted(rooms)


@given(LENGTHS)
def test_rows_match_the_plain_algorithm(lengths):
    rows = best_fit(np.array(lengths), WIDTH)
    assert sorted(WIDTH - sum(row) for row in contents(lengths, rows)) == rooms_plainly(lengths, WIDTH)


def test_realistic_lengths_leave_almost_no_padding():
    lengths = np.minimum(np.random.default_rng(1).geometric(1 / 200, 8192) + 2, 512)
    rows = best_fit(lengths, 512)
    assert lengths.sum() / (512 * (rows.max() + 1)) > 0.995


# ---- ranks and micro-batches -----------------------------------------------------------------


def all_ranks(lengths, world_size, micro_batch) -> list[Layout]:
    lengths = np.array(lengths)
    return [packed_layout(lengths, WIDTH, world_size, micro_batch, rank) for rank in range(world_size)]


def rows_of(layouts) -> Counter:
    """Return the samples in each row of all ranks."""
    return Counter(
        tuple(sorted(layout.samples[layout.rows == row].tolist()))
        for layout in layouts
        for row in np.unique(layout.rows)
    )


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
def test_every_sample_is_in_one_row_of_one_rank(lengths, world_size, micro_batch):
    layouts = all_ranks(lengths, world_size, micro_batch)
    assert sorted(np.concatenate([each.samples for each in layouts])) == list(range(len(lengths)))
    for layout in layouts:
        assert (np.diff(layout.rows) >= 0).all()
        used = np.bincount(layout.rows, np.array(lengths)[layout.samples], minlength=layout.num_rows)
        assert used.max(initial=0) <= WIDTH
    assert rows_of(layouts).total() <= len(lengths)


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
def test_rows_do_not_depend_on_ranks_and_micro_batches(lengths, world_size, micro_batch):
    assert rows_of(all_ranks(lengths, world_size, micro_batch)) == rows_of(all_ranks(lengths, 1, 1000))


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
def test_ranks_have_equally_many_micro_batches_of_about_the_same_size(lengths, world_size, micro_batch):
    layouts = all_ranks(lengths, world_size, micro_batch)
    rows = max(best_fit(np.array(lengths), WIDTH)) + 1
    in_micro_batches = np.concatenate([each.sizes for each in layouts])
    on_ranks = [len(np.unique(each.rows)) for each in layouts]
    assert {len(each.sizes) for each in layouts} == {-(-rows // (world_size * micro_batch))}
    assert max(in_micro_batches) <= micro_batch
    assert max(in_micro_batches) - min(in_micro_batches) <= 1
    assert max(on_ranks) - min(on_ranks) <= 1


@settings(deadline=None)
@given(LENGTHS, st.integers(1, 5), st.integers(1, 6))
def test_no_rank_has_much_more_work_than_another(lengths, world_size, micro_batch):
    """Check that attention work (squared lengths) differs by at most one row between ranks."""
    squares = np.array(lengths) ** 2
    costliest = np.bincount(best_fit(np.array(lengths), WIDTH), squares).max()
    of_ranks, of_micro_batches = [], []
    for layout in all_ranks(lengths, world_size, micro_batch):
        of_rows = np.bincount(layout.rows, squares[layout.samples], minlength=layout.num_rows)
        of_ranks.append(of_rows.sum())
        of_micro_batches += [part.sum() for part in np.split(of_rows, np.cumsum(layout.sizes)[:-1])]
    assert max(of_ranks) - min(of_ranks) <= costliest
    assert max(of_micro_batches) - min(of_micro_batches) <= costliest


def test_work_is_balanced_closely_where_there_are_many_rows():
    lengths = np.minimum(np.random.default_rng(1).geometric(1 / 15, 4096) + 2, WIDTH)
    work = [(lengths[packed_layout(lengths, WIDTH, 8, 16, rank).samples] ** 2).sum() for rank in range(8)]
    assert max(work) / min(work) < 1.01


def test_if_there_are_too_few_rows_a_micro_batch_is_a_row_of_padding():
    layouts = all_ranks([10, 9, 8], 3, 2)
    assert [each.sizes.tolist() for each in layouts] == [[1], [1], [1]]
    assert [len(each.samples) for each in layouts] == [3, 0, 0]


def test_unpacked_samples_are_assigned_in_order():
    layouts = [unpacked_layout(12, 2, 3, rank) for rank in range(2)]
    assert [each.samples.tolist() for each in layouts] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]
    assert [each.rows.tolist() for each in layouts] == [list(range(6))] * 2
    assert [each.sizes.tolist() for each in layouts] == [[3, 3]] * 2


# ---- contents of rows ------------------------------------------------------------------------


def batch_of(*rows, predicted=()) -> Batch:
    """Return samples padded with zeros, whose input ids are the original ids plus 100."""
    tokens = np.array(rows, dtype=np.int32)
    is_predicted = np.isin(tokens, predicted)
    return Batch(np.where(tokens > 0, tokens + 100, 3).astype(np.int64), tokens > 0, tokens, is_predicted)


def test_samples_of_a_row_are_contiguous_and_numbered():
    parts = [batch_of([5, 6, 7, 0, 0], [8, 0, 0, 0, 0], predicted=[6, 8]), batch_of([9, 10, 0, 0, 0])]
    layout = Layout(np.arange(3), np.array([0, 0, 1]), np.array([3]))
    batch = pack_rows(parts, layout, width=5, pad=PAD)
    assert batch.input_ids.tolist() == [[105, 106, 107, 108, 3], [109, 110, 3, 3, 3], [3] * 5]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 2, 0], [1, 1, 0, 0, 0], [0] * 5]
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 3], [9, 10, 3, 3, 3], [3] * 5]
    assert batch.predicted.tolist() == [[False, True, False, True, False], [False] * 5, [False] * 5]
    assert batch.attention_mask.dtype == np.int32
    again = pack_rows(parts, layout, width=5, pad=9)
    assert again.input_ids[:, -1].tolist() == again.tokens[:, -1].tolist() == [9] * 3


# ---- steps -----------------------------------------------------------------------------------


def steps_of(*prefixes, rank=0, world_size=1, accumulation=1, pack=True, schedule=SCHEDULE, **masking):
    return TrainingSteps(
        [Portion(each) for each in prefixes],
        schedule,
        5,
        Masking(**masking),
        vocab_size=512,
        rank=rank,
        world_size=world_size,
        micro_batch_of=lambda phase: phase.global_batch // world_size // accumulation,
        pack=pack,
    )


def samples_in(micro_batches: list[MicroBatch]) -> Counter:
    """Return the input ids and the labels of each sample, with label -1 where nothing is predicted."""
    found: Counter = Counter()
    for micro in micro_batches:
        labels = torch.full_like(micro.input_ids, -1)
        labels.view(-1)[micro.positions] = micro.targets
        for ids, numbers, targets in zip(micro.input_ids, micro.attention_mask, labels, strict=True):
            for number in range(1, int(numbers.max()) + 1):
                is_own = numbers == number
                found[tuple(ids[is_own].tolist()), tuple(targets[is_own].tolist())] += 1
    return found


@pytest.mark.parametrize("step", [0, 4, 5, 9])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (1, 4), (2, 2), (4, 1), (3, 2)])
def test_a_packed_step_has_the_samples_and_masks_of_the_unpacked_one(
    tiny_dataset, second_dataset, step, world_size, accumulation
):
    prefixes = (tiny_dataset, second_dataset)
    ranks = [
        steps_of(*prefixes, rank=rank, world_size=world_size, accumulation=accumulation)[step]
        for rank in range(world_size)
    ]
    unpacked = steps_of(*prefixes, pack=False)[step]
    ours = [micro for rank in ranks for micro in rank]
    assert samples_in(ours) == samples_in(unpacked)
    assert sum(micro.tokens for micro in ours) == sum(micro.tokens for micro in unpacked)
    assert len({len(rank) for rank in ranks}) == 1
    assert len(ranks[0]) <= accumulation


def test_a_packed_micro_batch_is_full_rows_of_numbered_samples(tiny_dataset):
    (micro,) = steps_of(tiny_dataset, short_p=1.0)[0]
    numbers = micro.attention_mask
    assert numbers.shape == micro.input_ids.shape == (len(numbers), 32)
    assert (numbers.dtype, micro.input_ids.dtype) == (torch.int32, torch.int64)
    assert len(numbers) < 48 * 0.7
    assert micro.tokens == (numbers > 0).sum() > 0.9 * numbers.numel()
    assert numbers.view(-1)[micro.positions].all()
    assert (micro.input_ids[numbers == 0] == 3).all()  # [PAD]
    for row in numbers.tolist():
        real = [number for number in row if number]
        assert real == sorted(real)
        assert set(real) == set(range(1, max(real) + 1))
        assert row == real + [0] * (32 - len(real))


def test_a_rank_without_a_row_has_nothing_to_predict(tiny_dataset):
    schedule = LengthSchedule(2, 32, 4, long_after=1.0)
    ranks = [
        steps_of(tiny_dataset, rank=rank, world_size=4, schedule=schedule, short_p=1.0)[0]
        for rank in range(4)
    ]
    assert [len(rank) for rank in ranks] == [1] * 4
    empty = [rank[0] for rank in ranks if not rank[0].tokens]
    assert empty, "the samples fit into fewer rows than there are ranks"
    for micro in empty:
        assert micro.input_ids.shape == micro.attention_mask.shape == (1, 32)
        assert not micro.attention_mask.any()
        assert len(micro.positions) == len(micro.targets) == 0


def test_micro_batches_masked_in_several_chunks(tiny_dataset, monkeypatch):
    whole = steps_of(tiny_dataset, accumulation=4)[1]
    monkeypatch.setattr(steps, "TOKENS_AT_ONCE", 3 * 32)
    parts = steps_of(tiny_dataset, accumulation=4)[1]
    assert_same(whole, parts)


@pytest.mark.parametrize("workers", [0, 1])
def test_steps_are_the_same_from_workers_and_every_time(tiny_dataset, workers):
    ours = steps_of(tiny_dataset, accumulation=4)
    loader = DataLoader(
        ours, batch_size=None, sampler=range(3, 7), num_workers=workers, collate_fn=CollatedStep.collate
    )
    for step, loaded in zip(range(3, 7), loader, strict=True):
        assert_same(loaded.micro_batches(), ours[step])


def assert_same(some: list[MicroBatch], others: list[MicroBatch]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.tokens == b.tokens
        for name in ("input_ids", "attention_mask", "positions", "targets"):
            assert torch.equal(getattr(a, name), getattr(b, name))
