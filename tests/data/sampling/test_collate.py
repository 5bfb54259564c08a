"""Tests that micro-batches pass through a worker process unchanged, with few file descriptors."""

import os
import resource
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.collate import CollatedStep
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import TrainingSteps


def steps_with(accumulation: int, prefix: Path) -> TrainingSteps:
    schedule = LengthSchedule(4, 32, 2 * accumulation, long_after=1.0)
    return TrainingSteps(
        [Portion(prefix)],
        schedule,
        7,
        Masking(),
        vocab_size=512,
        rank=0,
        world_size=1,
        micro_batch_of=lambda _: 2,
        count_words=lambda tokens: int(tokens[0, 1]),  # a number that differs between micro-batches
    )


def test_collated_micro_batches_are_restored(tiny_dataset):
    micro_batches = steps_with(5, tiny_dataset)[1]
    unloaded = CollatedStep.collate(micro_batches).micro_batches()
    assert len(unloaded) == 5
    assert len({micro.words for micro in micro_batches}) > 1
    for before, after in zip(micro_batches, unloaded, strict=True):
        assert (before.tokens, before.words) == (after.tokens, after.words)
        for name in ("input_ids", "attention_mask", "positions", "targets"):
            assert torch.equal(getattr(before, name), getattr(after, name))


def test_many_micro_batches_fit_through_few_file_descriptors(tiny_dataset):
    steps = steps_with(200, tiny_dataset)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, limits[1]))
    try:
        loader = DataLoader(
            steps, batch_size=None, sampler=range(4), num_workers=1, collate_fn=CollatedStep.collate
        )
        kept = [step.micro_batches() for step in loader]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [len(micro_batches) for micro_batches in kept] == [200] * 4
    assert torch.equal(kept[3][199].input_ids, steps[3][199].input_ids)
