"""The sections ``optimizer`` and ``scheduler``, shared between this project and DeepSpeed."""

import math
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from elc_bert.config.resolve import WORDS
from elc_bert.config.section import Probability, Section, error_at

OUR_SCHEDULES = ("Cosine", "Linear", "Constant")
"""Values of ``scheduler.type`` that this project implements; all others are DeepSpeed's."""
_Decay = Annotated[float, Field(ge=0, lt=1)]


class LambParams(Section):
    """Parameters of the optimizer ``Lamb`` (section ``optimizer.params``)."""

    lr: float = Field(0.01, ge=0.0)
    """Peak learning rate."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.98)
    """Decay rates of the running averages of the gradient and of its square."""
    eps: float = Field(1e-6, gt=0)
    """Small constant added to the square root of the second moment."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Decoupled weight decay of the weight matrices. Biases, layer norms, embeddings and layer weights never
    decay."""
    fused: bool | None = None
    """Choice of kernels: true requires the fused kernels, false uses plain PyTorch, null uses fused kernels
    where possible."""


class OptimizerConfig(Section):
    """Optimizer: ``Lamb`` is this project's; every other type is DeepSpeed's."""

    type: str = "Lamb"
    """Name of the optimizer: ``Lamb``, or any optimizer that DeepSpeed knows, such as ``AdamW``."""
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Parameters of the optimizer: those of ``LambParams`` for ``Lamb``; others are passed to DeepSpeed
    unchanged."""

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # The defaults are filled in so that the saved configuration is complete.
        return LambParams(**params).model_dump() if _is_lamb(info.data.get("type")) else _plain(params)

    @property
    def is_adam(self) -> bool:
        """True for Adam and AdamW, in any capitalization of the name."""
        return self.type.lower() in ("adam", "adamw")

    @property
    def is_lamb(self) -> bool:
        """True for this project's LAMB, in any capitalization of the name."""
        return _is_lamb(self.type)


def _is_lamb(name: str | None) -> bool:
    return name is not None and name.lower() == "lamb"


def _plain(params: dict[str, Any]) -> dict[str, Any]:
    """Return parameters for a class of DeepSpeed or PyTorch, with booleans in place of True and False.

    Raises:
        PydanticCustomError: A number is not finite, or a value is left to Hugging Face's Trainer.
    """
    infinite = [
        key
        for key, value in params.items()
        for each in (value if isinstance(value, list) else [value])
        if isinstance(each, float) and not math.isfinite(each)
    ]
    automatic = [key for key, value in params.items() if value == "auto"]
    reason = 'only Hugging Face\'s Trainer can fill in "auto"; give a value'
    for keys, message in ((infinite, "must be a finite number"), (automatic, reason)):
        if len(keys) == 1:
            raise error_at(f".{keys[0]}", message)
        if keys:
            raise error_at("", f"{', '.join(keys)}: {message} for each")
    return {key: WORDS[value] if value in ("True", "False") else value for key, value in params.items()}


class ScheduleParams(Section):
    """Parameters of the schedules ``Cosine``, ``Linear`` and ``Constant`` (section ``scheduler.params``)."""

    warmup_proportion: Probability = 0.016
    """Fraction of the run during which the learning rate rises linearly from 0 to its peak."""
    min_factor: Probability = 0.1
    """Learning rate at the end of the run, as a fraction of the peak (no effect with Constant)."""


class SchedulerConfig(Section):
    """Learning-rate schedule: ``Cosine``, ``Linear``, ``Constant`` are this project's, others DeepSpeed's."""

    type: str = "Cosine"
    """Name of the schedule: ``Cosine``, ``Linear``, ``Constant``, or any schedule that DeepSpeed knows."""
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Parameters of the schedule: those of ``ScheduleParams`` for this project's schedules; others are
    passed to DeepSpeed unchanged."""

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        is_ours = info.data.get("type") in OUR_SCHEDULES
        return ScheduleParams(**params).model_dump() if is_ours else _plain(params)

    @property
    def is_ours(self) -> bool:
        """True for the schedules that this project implements."""
        return self.type in OUR_SCHEDULES
