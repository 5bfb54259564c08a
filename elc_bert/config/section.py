"""Base classes and types shared by the sections of the configuration."""

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from elc_bert.config.resolve import WORDS

LARGEST = 10**9
"""Largest value of a number that has no narrower limit. Products of two such numbers fit into 64 bits."""


def _check_path(value: Any) -> Any:
    if isinstance(value, str):
        if not value.strip() or "\0" in value:
            raise ValueError("must name a file or folder")
        if value.startswith("~"):
            raise ValueError(f'"~" has no special meaning in a configuration; write {value} as a whole path')
    return value


Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0, le=LARGEST)]
PositiveNumber = Annotated[float, Field(gt=0.0, le=LARGEST)]
NonEmptyPath = Annotated[Path, BeforeValidator(_check_path)]
Auto = BeforeValidator(lambda value: None if value == "auto" else value)
"""Treat ``"auto"``, which DeepSpeed accepts in place of a number, as null."""


class PlainTypes(BaseModel):
    """Base class of sections in which a boolean is true, false, or the word True or False, and nothing else.

    No other value counts as a boolean, no boolean as a number, and every number is finite.
    """

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if bool in (annotation, *get_args(annotation)):
            value = WORDS.get(value, value) if isinstance(value, str) else value
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"must be true or false, not {value!r}")
        elif any(isinstance(each, bool) for each in (value if isinstance(value, list | tuple) else [value])):
            raise ValueError("must not be true or false")
        return value


class Section(PlainTypes):
    """A section under ``elc_bert`` or another one of this project; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid")


def error_at(location: str, message: str) -> PydanticCustomError:
    """Return an error in a part of the validated value, such as ``[1].weight``.

    ``reader.describe`` appends the location to the key.
    """
    return PydanticCustomError("value_error", "{message}", {"within": location, "message": message})
