"""Typed configuration of a run: one JSON file, checked before anything starts."""

from elc_bert.config.reader import load_config
from elc_bert.config.schema import (
    CheckpointConfig,
    DataConfig,
    ElcBertConfig,
    EvaluationConfig,
    ModelConfig,
    RunConfig,
    TrainingConfig,
)

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "ElcBertConfig",
    "EvaluationConfig",
    "ModelConfig",
    "RunConfig",
    "TrainingConfig",
    "load_config",
]
