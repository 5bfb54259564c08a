"""Base class and number types shared by the sections of the configuration."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Auto = BeforeValidator(lambda value: None if value == "auto" else value)
"""Treat ``"auto"``, which DeepSpeed accepts in place of a number, as null."""


class Section(BaseModel):
    """A section under ``elc_bert`` or another one of this project; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
