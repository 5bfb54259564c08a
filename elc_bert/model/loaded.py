"""A trained model together with the files that belong to it."""

from dataclasses import dataclass, field
from pathlib import Path

from elc_bert.data.format.vocabulary import SpecialNames
from elc_bert.model.masked_lm import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class LoadedModel:
    """A model and the files that belong to it."""

    model: ElcBertForMaskedLM
    """The model, float32 on the CPU, in evaluation mode."""
    tokenizer: Path | None
    """The model's tokenizer file, or None if it is unknown."""
    checkpoint: Path | None = None
    """Directory of the checkpoint that the model was read from, if a run of this project wrote it."""
    special_names: SpecialNames = field(default_factory=SpecialNames)
    """Names of the special tokens in the tokenizer file."""

    def tokenizer_path(self, given: Path | None) -> Path:
        """Return the tokenizer file that the user has given, or the model's own.

        Raises:
            UserError: There is neither.
        """
        path = given or self.tokenizer
        if path is None:
            raise UserError(
                "--tokenizer: required, because the model comes without a tokenizer; give the tokenizer.json "
                "that it was trained with"
            )
        return path
