"""Parts of the data path as a run's configuration describes them."""

from fractions import Fraction

from elc_bert.config.schema import DataConfig, RunConfig
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut


def masking_of(data: DataConfig) -> Masking:
    """The probabilities of ``elc_bert.data``."""
    return Masking(
        mask_p=data.mask_probability,
        random_p=data.random_probability,
        keep_p=data.keep_probability,
        short_p=data.short_probability,
    )


def portions_of(data: DataConfig) -> list[Portion]:
    """The training datasets of ``elc_bert.data``."""
    return [
        Portion(
            each.path,
            weight=Fraction(1) if each.weight is None else _as_written(each.weight),
            epochs=None if each.epochs is None else _as_written(each.epochs),
        )
        for each in data.train
    ]


def _as_written(number: float) -> Fraction:
    """0.7 as 7/10, not as the nearest binary fraction."""
    return Fraction(repr(number))


def held_out_set(config: RunConfig, *, micro_batch: int, rank: int = 0, world_size: int = 1) -> HeldOut:
    """The sequences and masks that a run evaluates on, the same on any number of ranks.

    Raises:
        UserError: the dataset or its segment index is missing or damaged.
    """
    ours = config.elc_bert
    return HeldOut(
        ours.data.dev,
        ours.training.sequence_length,
        ours.evaluation.sequences,
        ours.training.seed,
        masking_of(ours.data),
        vocab_size=ours.model.vocab_size,
        rank=rank,
        world_size=world_size,
        micro_batch=micro_batch,
        policy=ours.data.segments,
    )
