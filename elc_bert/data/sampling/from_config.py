"""Construction of masking, blends and held-out sets from a run's configuration."""

from fractions import Fraction
from pathlib import Path

from elc_bert.config.held_out import HeldOutSettings
from elc_bert.config.schema import DataConfig, RunConfig
from elc_bert.data.format.vocabulary import SpecialNames, SpecialTokens, load_tokenizer, special_tokens
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut


def special_names(data: DataConfig) -> SpecialNames:
    """Return the names of the special tokens in ``elc_bert.data.special_tokens``."""
    return SpecialNames(**data.special_tokens.model_dump())


def special_tokens_from_config(data: DataConfig) -> SpecialTokens:
    """Return the ids of the special tokens in the tokenizer of ``elc_bert.data``.

    Raises:
        UserError: The tokenizer cannot be read, or lacks one of them.
    """
    names = special_names(data)
    return special_tokens(load_tokenizer(data.tokenizer, names), names)


def masking_from_config(data: DataConfig, special: SpecialTokens) -> Masking:
    """Return the masking probabilities of ``elc_bert.data`` with the special tokens of its tokenizer."""
    return Masking(
        mask_p=data.mask_probability,
        random_p=data.random_probability,
        keep_p=data.keep_probability,
        short_p=data.short_probability,
        special=special,
    )


def portions_from_config(data: DataConfig) -> list[Portion]:
    """Return the training datasets of ``elc_bert.data`` and their shares."""
    return [
        Portion(
            each.path,
            weight=Fraction(1) if each.weight is None else _decimal_fraction(each.weight),
            epochs=None if each.epochs is None else _decimal_fraction(each.epochs),
        )
        for each in data.train
    ]


def _decimal_fraction(number: float) -> Fraction:
    """Convert a number as printed in decimal: 0.7 becomes 7/10, not the nearest binary fraction."""
    return Fraction(repr(number))


def held_out_from_config(
    config: RunConfig, *, micro_batch: int, rank: int = 0, world_size: int = 1
) -> HeldOut:
    """Return the held-out set of a run; its samples and masks do not depend on the number of ranks.

    Raises:
        UserError: The dataset, its segment index or the tokenizer is missing or damaged.
    """
    return held_out_set(
        config.elc_bert.data.dev,
        HeldOutSettings.of_run(config),
        special_tokens_from_config(config.elc_bert.data),
        vocab_size=config.elc_bert.model.vocab_size,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
    )


def held_out_set(
    prefix: Path,
    settings: HeldOutSettings,
    special: SpecialTokens,
    *,
    vocab_size: int,
    micro_batch: int,
    rank: int = 0,
    world_size: int = 1,
) -> HeldOut:
    """Return a held-out set.

    Args:
        prefix: Path of the dataset without ``.bin``.
        settings: Choice of the sequences, and their masks.
        special: Ids of the special tokens in the dataset.
        vocab_size: Vocabulary size of the model.
        micro_batch: Number of rows of a micro-batch.
        rank: Rank of this process.
        world_size: Number of processes.

    Raises:
        UserError: The dataset or its segment index is missing or damaged.
    """
    return HeldOut(
        prefix,
        settings.sequence_length,
        settings.sequences,
        settings.seed,
        Masking(
            mask_p=settings.mask_probability,
            random_p=settings.random_probability,
            keep_p=settings.keep_probability,
            special=special,
        ),
        vocab_size=vocab_size,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        policy=settings.segments,
    )
