"""The section ``elc_bert.data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from elc_bert.config.section import NonEmptyPath, PositiveNumber, Probability, Section, error_at


class TrainingDataset(Section):
    """One dataset of a blend (entry of ``elc_bert.data.train``), with either ``weight`` or ``epochs``."""

    path: NonEmptyPath
    """Prefix of the dataset's files PREFIX.bin, PREFIX.idx and PREFIX.json, which data_tools writes."""
    weight: PositiveNumber | None = None
    """Share of the training sequences taken from this dataset, relative to the weights of the others.
    Null if ``epochs`` is given, or for a single dataset."""
    epochs: PositiveNumber | None = None
    """Number of passes over this dataset, relative to the epochs of the others. Null if ``weight`` is given,
    or for a single dataset."""


class SpecialTokensConfig(Section):
    """Names of the special tokens in the tokenizer file (section ``elc_bert.data.special_tokens``).

    The usual names are those of tokenizers that data_tools trains. Datasets must have been built with the
    same names (``data_tools build --special-tokens``).
    """

    unk: str = "[UNK]"
    """Name of the token for text that the vocabulary cannot spell, such as ``<unk>``."""
    cls: str = "[CLS]"
    """Name of the first token of a sequence, such as ``<s>``."""
    sep: str = "[SEP]"
    """Name of the last token of a sequence, such as ``</s>``."""
    pad: str = "[PAD]"
    """Name of the padding token, such as ``<pad>``."""
    mask: str = "[MASK]"
    """Name of the token that replaces masked tokens, such as ``<mask>``."""
    par: str | None = "[PAR]"
    """Name of the token at the end of a paragraph; null if the ends of paragraphs are not marked. The
    tokenizer need not have ``[PAR]``."""
    tab: str | None = "[TAB]"
    """Name of the token for indentation; null if it is not marked. The tokenizer need not have ``[TAB]``."""


class DataConfig(Section):
    """Datasets, and how sequences are cut, masked and batched (section ``elc_bert.data``)."""

    train: tuple[TrainingDataset, ...]
    """Training datasets to blend, each with ``path`` and either ``weight`` or ``epochs``. A single dataset
    may be given as its path."""
    dev: NonEmptyPath
    """Prefix of the held-out dataset's files."""
    tokenizer: NonEmptyPath
    """Tokenizer file (JSON) that all datasets were built with, or one that encodes text in the same way."""
    special_tokens: SpecialTokensConfig = SpecialTokensConfig()
    """Names of the special tokens in the tokenizer file, by role, if they are not the usual ones."""
    segments: Literal["reference", "packed"] = "reference"
    """Policy that cuts a dataset into segments: ``reference`` takes whole sentences of one document,
    ``packed`` cuts the token stream regardless of sentences and documents."""
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Fraction of the non-special tokens to predict."""
    random_probability: Probability = 0.1
    """Fraction of the masked spans replaced by random tokens."""
    keep_probability: Probability = 0.1
    """Fraction of the masked spans left unchanged."""
    short_probability: Probability = 0.1
    """Probability that a segment is shortened to a uniformly random length."""
    pack: bool = True
    """Pack several sequences into one row where they fit. This saves the work on padding and does not change
    the loss."""
    workers: int = Field(1, ge=0, le=1024)
    """Number of processes per device that prepare batches; 0 prepares them in the training process."""

    @field_validator("train", mode="before")
    @classmethod
    def _as_list(cls, train: Any) -> Any:
        if isinstance(train, str | Path):
            train = [train]
        if not isinstance(train, list | tuple) or not train:
            raise ValueError('must be a path, or a list such as [{"path": "data/a", "weight": 0.7}, ...]')
        return [{"path": entry} if isinstance(entry, str | Path) else entry for entry in train]

    @field_validator("train")
    @classmethod
    def _check_blend(cls, train: tuple[TrainingDataset, ...]) -> tuple[TrainingDataset, ...]:
        for index, dataset in enumerate(train):
            given = [key for key in ("weight", "epochs") if getattr(dataset, key) is not None]
            if len(given) == 2:
                raise error_at(f"[{index}]", "has both weight and epochs; keep one")
            if len(train) > 1 and not given:
                raise error_at(
                    f"[{index}].weight", f"missing; give the weight or the epochs of {dataset.path}"
                )
            if (dataset.weight is None) != (train[0].weight is None):
                key = "epochs" if dataset.epochs is None else "weight"
                raise error_at(f"[{index}].{given[0]}", f"train[0] has {key}; use the same key for all")
            if dataset.path in [earlier.path for earlier in train[:index]]:
                raise error_at(
                    f"[{index}].path", f"{dataset.path} is listed twice; raise its share in the first entry"
                )
        return train

    @field_serializer("train")
    def _shortest_form(self, train: tuple[TrainingDataset, ...]) -> str | list[dict[str, Any]]:
        """Serialize a single dataset as its path, the short form that users write."""
        if len(train) == 1 and train[0].weight is None and train[0].epochs is None:
            return str(train[0].path)
        return [dataset.model_dump(mode="json", exclude_none=True) for dataset in train]

    @model_validator(mode="after")
    def _check_replacements(self) -> DataConfig:
        if self.random_probability + self.keep_probability > 1.0:
            raise ValueError("random_probability + keep_probability must not exceed 1")
        return self
