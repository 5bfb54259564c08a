"""A trained model together with the files that belong to it."""

from dataclasses import dataclass
from pathlib import Path

from elc_bert.model.masked_lm import ElcBertForMaskedLM


@dataclass(frozen=True)
class LoadedModel:
    """A model and the files that belong to it."""

    model: ElcBertForMaskedLM
    """The model, float32 on the CPU, in evaluation mode."""
    tokenizer: Path | None
    """The model's tokenizer file, or None if it is unknown."""
    checkpoint: Path | None = None
    """Directory of the checkpoint that the model was read from, if a run of this project wrote it."""
