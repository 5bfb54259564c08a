"""Parts of the data path as a run's configuration describes them."""

from elc_bert.config import DataConfig, RunConfig
from elc_bert.data.masking import Masking
from elc_bert.data.steps import HeldOut


def masking_of(data: DataConfig) -> Masking:
    """The probabilities of ``elc_bert.data``."""
    return Masking(
        mask_p=data.mask_probability,
        random_p=data.random_probability,
        keep_p=data.keep_probability,
        short_p=data.short_probability,
    )


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
    )
