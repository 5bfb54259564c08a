"""Construction of masking, blends and held-out sets from a run's configuration."""

from fractions import Fraction

from elc_bert.config.schema import DataConfig, RunConfig
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut


def masking_from_config(data: DataConfig) -> Masking:
    """Return the masking probabilities of ``elc_bert.data``."""
    return Masking(
        mask_p=data.mask_probability,
        random_p=data.random_probability,
        keep_p=data.keep_probability,
        short_p=data.short_probability,
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
        UserError: The dataset or its segment index is missing or damaged.
    """
    ours = config.elc_bert
    return HeldOut(
        ours.data.dev,
        ours.training.sequence_length,
        ours.evaluation.sequences,
        ours.training.seed,
        masking_from_config(ours.data),
        vocab_size=ours.model.vocab_size,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        policy=ours.data.segments,
    )
