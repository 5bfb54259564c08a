"""Targets are the tokens of the text, whatever stands in their place in the input."""

import numpy as np
import pytest
import torch

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import open_segments
from elc_bert.data.format.vocabulary import CLS, MASK, PAD, SEP
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut, MicroBatch, TrainingSteps

LENGTH = 32


def text_of(dataset: IndexedDataset) -> set[tuple[int, ...]]:
    """Return all segments as samples with ``[CLS]``, ``[SEP]`` and padding."""
    index = open_segments(dataset, LENGTH)
    samples = set()
    for offset, length in zip(*index(np.arange(len(index))), strict=True):
        tokens = dataset.tokens[offset : offset + min(length, LENGTH - 2)].tolist()
        samples.add((CLS, *tokens, SEP, *[PAD] * (LENGTH - 2 - len(tokens))))
    return samples


def check(batch: MicroBatch, samples: set[tuple[int, ...]]) -> None:
    restored = batch.input_ids.clone()
    restored.view(-1)[batch.positions] = batch.targets
    assert {tuple(row) for row in restored.tolist()} <= samples
    inputs = batch.input_ids.view(-1)
    changed = (restored.view(-1) != inputs).nonzero().flatten()
    assert set(changed.tolist()) <= set(batch.positions.tolist())
    shares = [(inputs[batch.positions] == MASK), (inputs[batch.positions] == batch.targets)]
    assert shares[0].double().mean() > 0.5
    assert 0 < shares[1].double().mean() < 0.4, "some predicted tokens are left unchanged"


@pytest.mark.parametrize("seed", [1, 2])
def test_the_input_with_the_targets_in_place_is_the_text(tiny_dataset, seed):
    samples = text_of(IndexedDataset(tiny_dataset))
    steps = TrainingSteps(
        [Portion(tiny_dataset)],
        LengthSchedule(1, LENGTH, 64, 1.0),
        seed,
        Masking(short_p=0.0),
        vocab_size=512,
        rank=0,
        world_size=1,
        micro_batch_of=lambda phase: 64,
    )
    (batch,) = steps[0]
    check(batch, samples)
    assert torch.equal(batch.positions, batch.positions.sort().values)


def test_held_out_targets_are_those_of_the_text(tiny_dataset):
    samples = text_of(IndexedDataset(tiny_dataset))
    held_out = HeldOut(
        tiny_dataset, LENGTH, 64, 3, Masking(), vocab_size=512, rank=0, world_size=1, micro_batch=64
    )
    check(held_out[0], samples)
