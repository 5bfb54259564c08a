import dataclasses
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.sampling import steps
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut, MicroBatch, TrainingSteps
from elc_bert.utils.errors import UserError

SCHEDULE = LengthSchedule(max_steps=10, sequence_length=32, global_batch=16, long_after=0.5)
TENSORS = ("input_ids", "attention_mask", "positions", "targets")


def steps_of(*prefixes, rank=0, world_size=1, accumulation=1, schedule=SCHEDULE, seed=5):
    return TrainingSteps(
        [Portion(each) for each in prefixes],
        schedule,
        seed,
        Masking(),
        vocab_size=512,
        rank=rank,
        world_size=world_size,
        micro_batch_of=lambda phase: phase.global_batch // world_size // accumulation,
    )


def held_out_of(prefix, sequences=None, rank=0, world_size=1, micro_batch=8):
    return HeldOut(
        prefix,
        32,
        sequences,
        5,
        Masking(),
        vocab_size=512,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
    )


def same(a: MicroBatch, b: MicroBatch) -> bool:
    return a.tokens == b.tokens and all(torch.equal(getattr(a, name), getattr(b, name)) for name in TENSORS)


def labels_of(batch: MicroBatch) -> torch.Tensor:
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.positions] = batch.targets
    return labels


def rows(batches: list[MicroBatch]) -> list[tuple]:
    """Return the samples in order, each with its tokens, padding and labels."""
    return [
        (tuple(ids), tuple(real), tuple(labels))
        for batch in batches
        for ids, real, labels in zip(
            batch.input_ids.tolist(), batch.attention_mask.tolist(), labels_of(batch).tolist(), strict=True
        )
    ]


def test_a_micro_batch_holds_positions_and_targets(tiny_dataset):
    (batch,) = steps_of(tiny_dataset)[0]
    assert batch.input_ids.shape == batch.attention_mask.shape == (16, 32)
    assert batch.input_ids.dtype == batch.positions.dtype == batch.targets.dtype == torch.int64
    assert batch.attention_mask.dtype == torch.bool
    assert batch.tokens == batch.attention_mask.sum()
    assert len(batch.positions) == len(batch.targets) > 0
    assert batch.attention_mask.view(-1)[batch.positions].all()


@pytest.mark.parametrize("step", [0, 4, 5, 9])
@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 2), (2, 1), (2, 2), (4, 1), (1, 4)])
def test_the_global_batch_does_not_depend_on_the_layout(tiny_dataset, step, world_size, accumulation):
    whole = rows(steps_of(tiny_dataset)[step])
    ranks = [
        steps_of(tiny_dataset, rank=rank, world_size=world_size, accumulation=accumulation)[step]
        for rank in range(world_size)
    ]
    in_order = [ranks[rank][k] for k in range(accumulation) for rank in range(world_size)]
    assert rows(in_order) == whole


@pytest.mark.parametrize("step", [0, 5, 9])
@pytest.mark.parametrize(("world_size", "accumulation"), [(2, 1), (1, 4), (4, 1)])
def test_the_global_batch_of_a_blend_does_not_depend_on_the_layout(
    tiny_dataset, second_dataset, step, world_size, accumulation
):
    def blend(rank=0, world_size=1, accumulation=1):
        return steps_of(
            tiny_dataset, second_dataset, rank=rank, world_size=world_size, accumulation=accumulation
        )[step]

    ranks = [blend(rank, world_size, accumulation) for rank in range(world_size)]
    in_order = [ranks[rank][k] for k in range(accumulation) for rank in range(world_size)]
    assert rows(in_order) == rows(blend())
    assert rows(blend()) != rows(steps_of(tiny_dataset)[step])


def test_micro_batches_masked_in_several_chunks(tiny_dataset, monkeypatch):
    whole = steps_of(tiny_dataset, accumulation=4)[1]
    monkeypatch.setattr(steps, "TOKENS_AT_ONCE", 3 * 4 * 32)
    parts = steps_of(tiny_dataset, accumulation=4)[1]
    assert len(whole) == len(parts) == 4
    assert all(same(a, b) for a, b in zip(whole, parts, strict=True))


def test_steps_read_every_segment_before_repeating_one(tiny_dataset):
    count = len(open_segments(IndexedDataset(tiny_dataset), 32))
    schedule = LengthSchedule(1, 32, count, long_after=1.0)
    (batch,) = steps_of(tiny_dataset, schedule=schedule)[0]
    assert len(batch.input_ids) == count
    masked = steps_of(tiny_dataset, schedule=LengthSchedule(2, 32, count, long_after=1.0))
    assert rows(masked[0]) == rows([batch])
    assert sorted(rows(masked[1])) != sorted(rows([batch]))


def test_sequences_get_longer_in_the_second_phase(tiny_dataset):
    ours = steps_of(tiny_dataset)
    assert len(ours) == 10
    assert [tuple(ours[step][0].input_ids.shape) for step in (4, 5)] == [(16, 32), (4, 128)]
    with pytest.raises(IndexError):
        ours[10]


@pytest.mark.parametrize("workers", [1, 2])
def test_steps_do_not_depend_on_workers(tiny_dataset, workers):
    def load(workers):
        loader = DataLoader(
            steps_of(tiny_dataset, accumulation=2), batch_size=None, sampler=range(3, 8), num_workers=workers
        )
        return [batch for step in loader for batch in step]

    pairs = list(zip(load(0), load(workers), strict=True))
    assert len(pairs) == 10
    assert all(same(a, b) for a, b in pairs)


def test_a_pickled_copy_gives_the_same_steps(tiny_dataset):
    ours = steps_of(tiny_dataset)
    pickled = pickle.dumps(ours)
    assert len(pickled) < 10_000
    assert same(pickle.loads(pickled)[7][0], ours[7][0])


def test_an_indivisible_global_batch_is_a_user_error(tiny_dataset):
    with pytest.raises(UserError, match="not a multiple of 3 ranks"):
        steps_of(tiny_dataset, world_size=3)


def test_a_missing_segment_index_is_a_user_error(tiny_dataset):
    with pytest.raises(UserError, match="--lengths 64"):
        steps_of(tiny_dataset, schedule=LengthSchedule(10, 64, 16, long_after=1.0))


def test_the_held_out_set_is_fixed_and_of_the_size_asked_for(tiny_dataset):
    held_out = held_out_of(tiny_dataset, sequences=20)
    batches = [held_out[i] for i in range(len(held_out))]
    assert len(batches) == 3
    assert all(batch.input_ids.shape == (8, 32) for batch in batches)
    assert all(same(batch, held_out[i]) for i, batch in enumerate(batches))
    # The third micro-batch has 4 samples; the rest of its rows is filled up and does not count.
    assert batches[2].positions.max() < 4 * 32
    assert batches[2].tokens == batches[2].attention_mask[:4].sum()
    assert len({ids for ids, _, _ in rows(batches)[:20]}) == 20


def test_held_out_samples_are_never_shortened(tiny_dataset):
    always_short = dataclasses.replace(Masking(), short_p=1.0)
    options = {"vocab_size": 512, "rank": 0, "world_size": 1, "micro_batch": 8}
    assert same(
        HeldOut(tiny_dataset, 32, 8, 5, always_short, **options)[0], held_out_of(tiny_dataset, sequences=8)[0]
    )


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_ranks_have_equally_many_held_out_batches_and_split_the_set(tiny_dataset, world_size):
    alone = held_out_of(tiny_dataset, sequences=20, micro_batch=4)
    targets = torch.cat([alone[i].targets for i in range(len(alone))])
    ranks = [held_out_of(tiny_dataset, 20, rank, world_size, micro_batch=4) for rank in range(world_size)]
    assert len({len(each) for each in ranks}) == 1
    batches = [each[i] for i in range(len(ranks[0])) for each in ranks]
    assert torch.equal(torch.cat([batch.targets for batch in batches]), targets)
    assert sum(batch.tokens for batch in batches) == sum(alone[i].tokens for i in range(len(alone)))


def test_all_segments_are_held_out_by_default(tiny_dataset):
    everything = held_out_of(tiny_dataset)
    assert everything.sequences > 100
    assert held_out_of(tiny_dataset, sequences=10**6).sequences == everything.sequences
    with pytest.raises(UserError, match="0 held-out sequences"):
        held_out_of(tiny_dataset, sequences=0)


def test_all_tensors_of_a_micro_batch_move_together(tiny_dataset):
    (batch,) = steps_of(tiny_dataset)[0]
    moved = batch.to("meta")
    assert all(getattr(moved, name).device.type == "meta" for name in TENSORS)
    assert moved.tokens == batch.tokens
