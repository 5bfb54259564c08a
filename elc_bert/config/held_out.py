"""Text and masks of a held-out evaluation: what two losses must have in common to be comparable."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from elc_bert.config.schema import RunConfig

RANDOM_PROBABILITY = KEEP_PROBABILITY = 0.1
"""Fractions of the masked spans that every evaluation replaces by random tokens and leaves unchanged."""


def describe_masks(config: Mapping[str, Any]) -> str:
    """Return by which masks a run that wrote this configuration measured its held-out loss, for display."""
    try:
        return HeldOutSettings.of_record(config).describe()
    except (LookupError, TypeError, ValueError):
        return "masks unknown"


def held_out_step(before: Mapping[str, Any], now: RunConfig) -> str:
    """Return a warning if a resumed run continues the curve of the held-out loss by other settings, else "".

    Args:
        before: The configuration in the checkpoint.
        now: Configuration of the resumed run.
    """
    try:
        old, new = HeldOutSettings.of_record(before), HeldOutSettings.of_run(now)
    except (LookupError, TypeError):
        return ""
    if old == new:
        return ""
    message = (
        f"up to the checkpoint, the held-out loss was measured with {old.describe()}; from now on with "
        f"{new.describe()}; its curve may have a step"
    )
    if old == replace(new, seed=old.seed, mask_probability=old.mask_probability):
        message += (
            f"; to avoid that, set elc_bert.evaluation.seed={old.seed} and "
            f"elc_bert.evaluation.mask_probability={old.mask_probability}"
        )
    return message


@dataclass(frozen=True)
class HeldOutSettings:
    """Settings that decide which sequences of a dataset are evaluated, and which of their tokens are masked.

    The defaults are those of a model that does not belong to a run.
    """

    seed: int = 42
    """Seed of the choice of the sequences and of the masks."""
    mask_probability: float = 0.15
    """Fraction of the tokens to predict."""
    sequence_length: int = 128
    """Tokens per sequence."""
    sequences: int | None = None
    """Number of sequences; None for all."""
    segments: str = "reference"
    """Policy that cuts the dataset into segments."""
    random_probability: float = RANDOM_PROBABILITY
    """Fraction of the masked spans replaced by random tokens."""
    keep_probability: float = KEEP_PROBABILITY
    """Fraction of the masked spans left unchanged."""

    @classmethod
    def of_run(cls, config: RunConfig) -> "HeldOutSettings":
        """Return the settings of a run's evaluations."""
        ours = config.elc_bert
        return cls(
            ours.evaluation.seed,
            ours.evaluation.mask_probability,
            ours.training.sequence_length,
            ours.evaluation.sequences,
            ours.data.segments,
        )

    @classmethod
    def of_record(cls, config: Mapping[str, Any]) -> "HeldOutSettings":
        """Return the settings by which a run that wrote this configuration evaluated.

        Early versions have no settings of their own: they used the seed and the masks of training.

        Args:
            config: The resolved configuration, as in ``config.json`` and in checkpoints.

        Raises:
            LookupError: A key is missing.
            TypeError: A section is not one.
        """
        ours = config["elc_bert"]
        evaluation, training, data = ours["evaluation"], ours["training"], ours["data"]
        text = training["sequence_length"], evaluation["sequences"], data["segments"]
        if "seed" in evaluation:
            return cls(evaluation["seed"], evaluation["mask_probability"], *text)
        masks = data["random_probability"], data["keep_probability"]
        return cls(training["seed"], data["mask_probability"], *text, *masks)

    def describe(self) -> str:
        """Return the settings for display."""
        replaced = self.random_probability, self.keep_probability
        usual = replaced == (RANDOM_PROBABILITY, KEEP_PROBABILITY)
        how = "" if usual else " ({:g} random, {:g} unchanged)".format(*replaced)
        count = "all" if self.sequences is None else f"at most {self.sequences:,}"
        return (
            f"masks of {100 * self.mask_probability:g} % of the tokens{how}, seed {self.seed}, on {count} "
            f"sequences of {self.sequence_length} tokens ({self.segments} segments)"
        )
