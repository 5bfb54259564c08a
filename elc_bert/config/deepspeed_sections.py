"""DeepSpeed's sections of the configuration, parsed once into typed objects for the rest of the program.

Only the keys that this project reads have a field here. All others are kept as they are. ``resolve`` has
given every value one spelling before, and DeepSpeed's own classes check all of them before a run starts
(``elc_bert.config.deepspeed``). This module imports neither DeepSpeed nor PyTorch, so that reading a
configuration stays cheap.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    JsonValue,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)
from pydantic_core import PydanticCustomError

Precision = Literal["bf16", "fp16", "bf16 autocast", "fp32"]
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")
"""Sections of DeepSpeed's monitors."""


def _parse_dtype_name(value: Any) -> Any:
    if value is not None and not isinstance(value, str):
        raise PydanticCustomError("dtype", "Choose fp32, bf16 or fp16")
    return value


def _parse_stage(value: Any) -> int:
    # Like DeepSpeed, accept 2.0, true and "2".
    if value not in (*range(4), *"0123"):
        raise PydanticCustomError("stage", "Choose 0, 1, 2 or 3")
    return int(value)


def _parse_size(value: Any) -> float:
    try:
        size = float(value)
    except (TypeError, ValueError):
        size = math.nan
    if not 0 <= size < math.inf:
        raise PydanticCustomError("size", "Give a number")
    return size


Stage = Annotated[int, BeforeValidator(_parse_stage)]
Size = Annotated[float, BeforeValidator(_parse_size)]
"""Number of elements."""
DtypeName = Annotated[str | None, BeforeValidator(_parse_dtype_name)]


class DeepSpeedSection(BaseModel):
    """Base class of DeepSpeed's sections. Null counts as an empty section here."""

    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)
    _content: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="wrap")
    @classmethod
    def _keep_content(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        content = {} if value is None else value
        if not isinstance(content, dict):
            raise ValueError(f"must be a section, not {value!r}")
        section = handler(content)
        section._content = dict(content)
        return section

    def as_given(self) -> dict[str, Any]:
        """Return a copy of the section as it is in the file, for DeepSpeed."""
        return dict(self._content)


class SwitchedSection(DeepSpeedSection):
    """A section whose feature is off by default: ``bf16``, ``fp16``, ``torch_autocast`` and the monitors."""

    enabled: bool = False
    """Use the feature that the section describes."""


class OffloadOptimizerSection(DeepSpeedSection):
    """``zero_optimization.offload_optimizer``: where master weights and optimizer state are kept."""

    device: Literal["none", "cpu", "nvme"] = "none"
    """Device that holds master weights and optimizer state; ``none`` means the accelerator."""
    ratio: float = 1.0
    """Share of the optimizer state on that device (stage 3)."""
    super_offload: bool = False
    """Use DeepSpeed's offloading for superchips (stage 3)."""


class ZeroSection(DeepSpeedSection):
    """``zero_optimization``: partitioning of weights, gradients and optimizer state over the ranks.

    The defaults are DeepSpeed's. None means that the key is not given and that DeepSpeed chooses the value.
    """

    stage: Stage = 0
    """ZeRO stage, 0 to 3."""
    offload_optimizer: OffloadOptimizerSection = OffloadOptimizerSection()
    """Offloading of master weights and optimizer state."""
    reduce_bucket_size: Size = 500_000_000
    """Number of gradient elements reduced at once."""
    overlap_comm: bool | None = None
    """Reduce gradients while the backward pass continues. DeepSpeed's default is true at stage 3 only."""
    stage3_max_live_parameters: Size = 1_000_000_000
    """Largest number of parameters that stage 3 keeps gathered at any time."""
    zenflow: JsonValue = None
    """DeepSpeed's asynchronous updates; value as in the file."""
    sub_group_size: JsonValue = None
    """Number of parameters that stage 3 processes together; value as in the file."""
    round_robin_gradients: JsonValue = None
    """Assign gradients to ranks round-robin (stages 1 and 2); value as in the file."""
    parameter_alignment: JsonValue = None
    """Pad flat buffers to align every parameter (stages 1 and 2); value as in the file."""

    @property
    def offloads_optimizer(self) -> bool:
        """True if master weights and moments are in CPU memory and the optimizer steps there."""
        return self.offload_optimizer.device != "none"

    @property
    def requires_deepspeed_adam(self) -> bool:
        """True if a feature works with DeepSpeed's own Adam only."""
        offload = self.offload_optimizer
        return (
            offload.device == "nvme" or offload.ratio < 1 or offload.super_offload or self.zenflow is not None
        )

    @property
    def overlaps_communication(self) -> bool:
        """True if gradients are reduced while the backward pass continues."""
        return self.stage == 3 if self.overlap_comm is None else self.overlap_comm


class DataTypesSection(DeepSpeedSection):
    """``data_types``: types of buffers."""

    grad_accum_dtype: DtypeName = None
    """Type in which gradients of several micro-batches are summed; None means the type of the weights."""


class DeepSpeedSections(BaseModel):
    """The top-level keys of DeepSpeed that this project reads; all other keys are ignored here."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    zero_optimization: ZeroSection = ZeroSection()
    """Partitioning of the training state (ZeRO)."""
    bf16: SwitchedSection = SwitchedSection()
    """Weights in bf16."""
    fp16: SwitchedSection = SwitchedSection()
    """Weights in fp16, with loss scaling."""
    torch_autocast: SwitchedSection = SwitchedSection()
    """Weights in fp32, matrix products in bf16."""
    data_types: DataTypesSection = DataTypesSection()
    """Types of buffers."""
    communication_data_type: DtypeName = None
    """Type in which gradients travel between devices; None means the type of the weights."""
    tensorboard: SwitchedSection = SwitchedSection()
    """Monitor that writes TensorBoard event files."""
    wandb: SwitchedSection = SwitchedSection()
    """Monitor for Weights & Biases."""
    csv_monitor: SwitchedSection = SwitchedSection()
    """Monitor that writes CSV files."""
    comet: SwitchedSection = SwitchedSection()
    """Monitor for Comet."""

    @property
    def precision(self) -> Precision:
        """Type of the weights in forward and backward; DeepSpeed keeps fp32 masters of bf16 and fp16.

        With autocast the weights are fp32 and the matrix products bf16.
        """
        if self.bf16.enabled:
            return "bf16"
        if self.fp16.enabled:
            return "fp16"
        return "bf16 autocast" if self.torch_autocast.enabled else "fp32"

    @property
    def monitors(self) -> dict[str, SwitchedSection]:
        """Sections of the monitors, by name."""
        return {name: getattr(self, name) for name in MONITORS}

    @property
    def sections(self) -> dict[str, DeepSpeedSection]:
        """All sections, by name."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in values.items() if isinstance(value, DeepSpeedSection)}
