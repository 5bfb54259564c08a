"""The datasets of a run, and how much of them has been read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.vocabulary import check_tokenizer, load_tokenizer
from elc_bert.data.sampling.from_config import held_out_set, masking_of, portions_of
from elc_bert.data.sampling.steps import HeldOut, TrainingSteps
from elc_bert.data.sampling.words import WordCounter
from elc_bert.distributed.world import World
from elc_bert.utils.errors import UserError


@dataclass
class RunData:
    """The datasets of a run.

    Methods take how many sequences of each phase have been read, by phase index.
    """

    train: TrainingSteps
    held_out: HeldOut
    names: list[str]
    """Of the training datasets, all different."""
    manifests: list[Manifest]
    """Of the training datasets."""
    in_a_row: dict[int, float]
    """By sequence length, samples in a row of this rank in the first step of that length."""
    identity: dict[str, Any]
    """What makes the data of two runs the same; goes into a checkpoint as JSON."""

    def shares(self, positions: Mapping[int, int]) -> list[float]:
        """Share of each training dataset in the sequences."""
        counts = [self.train.streams[phase].blend.counts(read) for phase, read in positions.items()]
        total = sum(positions.values())
        return [sum(column) / total for column in zip(*counts, strict=True)]

    def epochs(self, positions: Mapping[int, int]) -> list[float]:
        """Times that each training dataset has been gone through."""
        streams = self.train.streams
        by_phase = [
            np.divide(streams[phase].blend.counts(read), streams[phase].segments)
            for phase, read in positions.items()
        ]
        return np.sum(by_phase, axis=0).tolist()


def open_data(
    config: RunConfig, schedule: LengthSchedule, plans: Mapping[int, BatchPlan], world: World
) -> RunData:
    """Open all datasets and make sure that they, the tokenizer and the model belong together.

    Raises:
        UserError: something is missing, damaged, or of another vocabulary.
    """
    data = config.elc_bert.data
    datasets = [IndexedDataset(path) for path in (*(each.path for each in data.train), data.dev)]
    for dataset in datasets:
        _check_vocabulary(dataset, config)
    *manifests, dev = (dataset.manifest for dataset in datasets)
    train = TrainingSteps(
        portions_of(data),
        schedule,
        config.elc_bert.training.seed,
        masking_of(data),
        micro_batch_of=lambda phase: plans[phase.index].micro_batch,
        vocab_size=config.elc_bert.model.vocab_size,
        rank=world.rank,
        world_size=world.size,
        policy=data.segments,
        pack=data.pack,
        count_words=WordCounter(load_tokenizer(data.tokenizer).get_vocab()),
    )
    names = [each.path.name for each in data.train]
    hashes = [manifest.bin_sha256 for manifest in manifests]
    blend = {str(p.sequence_length): train.streams[p.index].blend.cycle for p in schedule.phases}
    return RunData(
        train=train,
        held_out=held_out_set(
            config, micro_batch=min(64, plans[0].micro_batch), rank=world.rank, world_size=world.size
        ),
        names=names if len(set(names)) == len(names) else [str(each.path) for each in data.train],
        manifests=manifests,
        in_a_row={
            phase.sequence_length: _samples_in_a_row(train, phase.first_step) for phase in schedule.phases
        },
        identity={
            "dev": dev.bin_sha256,
            "tokenizer": manifests[0].tokenizer_sha256,
            **({"train": hashes, "blend": blend} if len(hashes) > 1 else {"train": hashes[0]}),
        },
    )


def _check_vocabulary(dataset: IndexedDataset, config: RunConfig) -> None:
    check_tokenizer(dataset, config.elc_bert.data.tokenizer)
    size, found = config.elc_bert.model.vocab_size, dataset.manifest.vocab_size
    if found not in (None, size):
        raise UserError(
            f"elc_bert.model.vocab_size is {size}, but {dataset.prefix} was built with {found} subwords; "
            "set it to that"
        )


def _samples_in_a_row(train: TrainingSteps, step: int) -> float:
    layout, _ = train.layout(step)
    return len(layout.samples) / layout.num_rows
