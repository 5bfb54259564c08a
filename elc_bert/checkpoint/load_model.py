"""Loading the model of a checkpoint without DeepSpeed and without unpickling."""

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from elc_bert.checkpoint.files import LATEST, named_checkpoint
from elc_bert.config.reader import describe
from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.utils.errors import UserError

_ADVICE = "give the directory of a complete checkpoint, such as RUN_DIR/checkpoints/step-000500"


def newest_checkpoint(run: Path) -> Path:
    """Return the directory of a run's newest checkpoint.

    Args:
        run: The run's ``elc_bert.training.output_dir``.

    Raises:
        UserError: The run has no checkpoint, or ``latest`` names something else.
    """
    checkpoints = run / "checkpoints"
    newest = named_checkpoint(checkpoints)
    if newest is None and (checkpoints / LATEST).exists():
        raise UserError(
            f"{checkpoints / LATEST}: names no checkpoint; write the name of an existing one there"
        )
    if newest is None:
        raise UserError(
            f"{checkpoints}: no checkpoint yet; train with launch/pretrain.py until it has written one"
        )
    if not newest.is_dir():
        raise UserError(
            f"{newest}: missing, although {checkpoints / LATEST} names it; write the name of an existing "
            "checkpoint there"
        )
    return newest


def load_checkpoint_model(directory: Path) -> ElcBertForMaskedLM:
    """Return the model saved in a checkpoint, float32 on the CPU, in evaluation mode.

    Args:
        directory: ``checkpoints/step-NNNNNN`` of a run, with ``model.json`` and ``model.safetensors``.

    Raises:
        UserError: A file is missing or damaged, or the files do not match.
    """
    config, weights = directory / "model.json", directory / "model.safetensors"
    return model_from_tensors(_read_config(config), _read_weights(weights), weights, config.name)


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_ADVICE}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, ModelConfig)}; {_ADVICE}") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; {_ADVICE}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such file'}; {_ADVICE}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}; {_ADVICE}") from None
