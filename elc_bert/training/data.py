"""Datasets of a run, and how much of them has been read."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import check_segments
from elc_bert.data.format.vocabulary import USUAL_TOKENS, check_tokenizer, load_tokenizer, special_tokens
from elc_bert.data.sampling.from_config import (
    held_out_from_config,
    masking_from_config,
    portions_from_config,
    special_names,
)
from elc_bert.data.sampling.steps import HeldOut, TrainingSteps
from elc_bert.data.sampling.words import WordCounter
from elc_bert.distributed.world import World
from elc_bert.utils.errors import UserError

HELD_OUT_MICRO_BATCH = 64
"""Largest micro-batch of evaluations."""


@dataclass
class RunData:
    """Datasets of a run.

    Methods take the number of sequences of each phase that have been read, by phase index.
    """

    train: TrainingSteps
    """Micro-batches of this rank, by step."""
    held_out: HeldOut
    """Micro-batches of this rank for evaluation."""
    names: list[str]
    """Names of the training datasets, all different."""
    manifests: list[Manifest]
    """Manifests of the training datasets."""
    sequences_per_row: dict[int, float]
    """Mean number of samples packed into a row of this rank in the first step, by sequence length."""
    identity: dict[str, Any]
    """Identity of the data in a checkpoint, as JSON: two runs with the same identity read the same tokens."""

    def shares(self, positions: Mapping[int, int]) -> list[float]:
        """Return the share of each training dataset in the sequences."""
        counts = [self.train.streams[phase].blend.counts(read) for phase, read in positions.items()]
        total = sum(positions.values())
        return [sum(column) / total for column in zip(*counts, strict=True)]

    def epochs(self, positions: Mapping[int, int]) -> list[float]:
        """Return the number of passes over each training dataset."""
        streams = self.train.streams
        by_phase = [
            np.divide(streams[phase].blend.counts(read), streams[phase].segments)
            for phase, read in positions.items()
        ]
        epochs: list[float] = np.sum(by_phase, axis=0).tolist()
        return epochs


def open_data(
    config: RunConfig, schedule: LengthSchedule, plans: Mapping[int, BatchPlan], world: World
) -> RunData:
    """Open all datasets, and check that they, the tokenizer and the model fit together.

    Raises:
        UserError: A file is missing or damaged, or has another vocabulary.
    """
    data = config.elc_bert.data
    datasets = [IndexedDataset(path) for path in (*(each.path for each in data.train), data.dev)]
    for dataset in datasets:
        _check_vocabulary(dataset, config)
    lengths = [phase.sequence_length for phase in schedule.phases]
    held_out_lengths = [config.elc_bert.training.sequence_length]
    check_segments(
        [*((dataset, lengths) for dataset in datasets[:-1]), (datasets[-1], held_out_lengths)], data.segments
    )
    names_of_special = special_names(data)
    tokenizer = load_tokenizer(data.tokenizer, names_of_special)
    special = special_tokens(tokenizer, names_of_special)
    *manifests, dev = (dataset.manifest for dataset in datasets)
    train = TrainingSteps(
        portions_from_config(data),
        schedule,
        config.elc_bert.training.seed,
        masking_from_config(data, special),
        micro_batch_of=lambda phase: plans[phase.index].micro_batch,
        vocab_size=config.elc_bert.model.vocab_size,
        rank=world.rank,
        world_size=world.size,
        policy=data.segments,
        pack=data.pack,
        count_words=WordCounter(tokenizer.get_vocab(), special),
    )
    names = [each.path.name for each in data.train]
    hashes = [manifest.bin_sha256 for manifest in manifests]
    blend = {str(p.sequence_length): train.streams[p.index].blend.cycle for p in schedule.phases}
    micro_batch = min(HELD_OUT_MICRO_BATCH, plans[0].micro_batch)
    return RunData(
        train=train,
        held_out=held_out_from_config(
            config, micro_batch=micro_batch, rank=world.rank, world_size=world.size
        ),
        names=names if len(set(names)) == len(names) else [str(each.path) for each in data.train],
        manifests=manifests,
        sequences_per_row={
            phase.sequence_length: _sequences_per_row(train, phase.first_step) for phase in schedule.phases
        },
        identity={
            "dev": dev.bin_sha256,
            **({} if special == USUAL_TOKENS else {"special_tokens": asdict(special)}),
            **({"train": hashes, "blend": blend} if len(hashes) > 1 else {"train": hashes[0]}),
        },
    )


def _check_vocabulary(dataset: IndexedDataset, config: RunConfig) -> None:
    data = config.elc_bert.data
    check_tokenizer(dataset, data.tokenizer)
    size, found = config.elc_bert.model.vocab_size, dataset.manifest.vocab_size
    if found not in (None, size):
        raise UserError(
            f"elc_bert.model.vocab_size is {size}, but {dataset.prefix} was built with {found} subwords; "
            f"set it to {found}"
        )
    built_with = dataset.manifest.special_tokens or {}
    if dataset.manifest.tokenizer_sha256 is not None and built_with != special_names(data).changes():
        raise UserError(
            f"elc_bert.data.special_tokens: not the names that {dataset.prefix} was built with; set it to "
            f"{json.dumps(built_with, ensure_ascii=False)}, or build the dataset again"
        )


def _sequences_per_row(train: TrainingSteps, step: int) -> float:
    layout, _ = train.layout(step)
    return len(layout.samples) / layout.num_rows
