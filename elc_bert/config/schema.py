"""The configuration of a run: one JSON file, typed, frozen and checked before anything starts.

DeepSpeed's keys are at the top level of the file and keep DeepSpeed's meaning; everything of this project is
under ``"elc_bert"``. Defaults are overridden by the file, and the file by ``--set key=value``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from elc_bert.config.data import DataConfig, TrainingDataset
from elc_bert.config.deepspeed_sections import DeepSpeedSections, Precision
from elc_bert.config.model import ModelConfig
from elc_bert.config.optimizer import LambParams, OptimizerConfig, ScheduleParams, SchedulerConfig
from elc_bert.config.section import Auto, PlainTypes, Positive, Section
from elc_bert.config.training import CheckpointConfig, EvaluationConfig, TrainingConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "ElcBertConfig",
    "EvaluationConfig",
    "LambParams",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleParams",
    "SchedulerConfig",
    "TrainingConfig",
    "TrainingDataset",
]


OWN_PEAKS: dict[str, tuple[str, float | None]] = {
    "WarmupLR": ("warmup_max_lr", None),
    "WarmupDecayLR": ("warmup_max_lr", 0.001),
    "OneCycle": ("cycle_max_lr", None),
}
"""Parameter of DeepSpeed's schedules that replaces the learning rate of the optimizer, and its default."""


class ElcBertConfig(Section):
    """Everything of this project that DeepSpeed does not know (section ``elc_bert``)."""

    model: ModelConfig = ModelConfig()
    """Architecture of the model."""
    data: DataConfig
    """Datasets, and how sequences are cut, masked and batched."""
    training: TrainingConfig
    """Length, data order, logging and safety checks of the run."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation during training."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """How often checkpoints are taken, and which ones are kept."""


class RunConfig(PlainTypes):
    """The whole file. Keys of DeepSpeed that have no field here are passed to DeepSpeed unchanged."""

    model_config = ConfigDict(extra="allow")

    train_batch_size: Positive
    """Number of sequences per optimizer step over all devices (the global batch), before the length
    switch."""
    train_micro_batch_size_per_gpu: Annotated[Positive | None, Auto] = None
    """Number of rows that a device processes at once (an upper bound if sequences are packed); null means
    the largest possible number up to ``elc_bert.training.max_micro_batch_size``."""
    gradient_accumulation_steps: Annotated[Positive | None, Auto] = None
    """Number of micro-batches per device and optimizer step (an upper bound if sequences are packed); null
    means that it follows from the other batch sizes."""
    gradient_clipping: float = Field(2.0, ge=0.0)
    """Largest norm of the gradient, to which larger gradients are scaled down; 0 means no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer and its parameters."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """Learning-rate schedule and its parameters."""
    elc_bert: ElcBertConfig
    """Model, data, training, evaluation and checkpoints: everything that is not DeepSpeed's."""
    _file: Path | None = PrivateAttr(None)
    _deepspeed: DeepSpeedSections = PrivateAttr(default_factory=DeepSpeedSections)

    @field_validator("train_batch_size", mode="before")
    @classmethod
    def _require_number(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError(
                "give the global batch as a number; micro-batch and gradient accumulation follow from it"
            )
        return value

    @model_validator(mode="after")
    def _parse_deepspeed_sections(self) -> RunConfig:
        self._deepspeed = DeepSpeedSections.model_validate(self.deepspeed_extras)
        return self

    @property
    def deepspeed(self) -> DeepSpeedSections:
        """DeepSpeed's sections, parsed."""
        return self._deepspeed

    @property
    def deepspeed_extras(self) -> dict[str, Any]:
        """Top-level keys without a field here, as they are in the file."""
        return self.model_extra or {}

    @property
    def origin(self) -> str:
        """Prefix of messages about a key: the file that the key was read from."""
        return f"{self._file}: " if self._file else ""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return self.deepspeed.zero_optimization.stage

    @property
    def precision(self) -> Precision:
        """Type of the weights in forward and backward (``DeepSpeedSections.precision``)."""
        return self.deepspeed.precision

    @property
    def peak_learning_rate(self) -> float | None:
        """Peak learning rate; None if it is left to the default of a class of PyTorch or DeepSpeed.

        Some of DeepSpeed's schedules ignore ``optimizer.params.lr`` and have a peak of their own.
        """
        own, default = OWN_PEAKS.get(self.scheduler.type, ("", None))
        peak: float | None = self.scheduler.params.get(own, default) or self.optimizer.params.get("lr")
        return peak

    @property
    def uses_torch_adam(self) -> bool:
        """True if Adam or AdamW is PyTorch's, false if it is DeepSpeed's, which has to be compiled.

        ``optimizer.params.torch_adam`` decides. By default it is DeepSpeed's only for the features that
        require it.
        """
        zero = self.deepspeed.zero_optimization
        return self.optimizer.is_adam and bool(
            self.optimizer.params.get("torch_adam", not zero.requires_deepspeed_adam)
        )

    @property
    def offloads_optimizer(self) -> bool:
        """True if master weights and moments are in CPU memory and the optimizer steps there."""
        return self.deepspeed.zero_optimization.offloads_optimizer
