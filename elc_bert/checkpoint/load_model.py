"""The model of a checkpoint, without DeepSpeed and without unpickling anything."""

import json
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from elc_bert.config.reader import describe
from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.utils.errors import UserError


def newest_checkpoint(run: Path) -> Path:
    """Directory of the newest checkpoint of a run.

    Args:
        run: the run's ``elc_bert.training.output_dir``.

    Raises:
        UserError: the run has none.
    """
    checkpoints = run / "checkpoints"
    try:
        newest = checkpoints / (checkpoints / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"{checkpoints}: holds no checkpoint yet; train with launch/pretrain.py until the first one"
        ) from None
    if not newest.is_dir():
        raise UserError(f"{newest}: named by {checkpoints / 'latest'}, but missing; name another one there")
    return newest


def load_checkpoint_model(directory: Path) -> ElcBertForMaskedLM:
    """The model saved in a checkpoint, float32 on the CPU, in evaluation mode.

    Args:
        directory: ``checkpoints/step-NNNNNN`` of a run, with model.json and model.safetensors.

    Raises:
        UserError: a file is missing or damaged, or they do not fit together.
    """
    config, weights = directory / "model.json", directory / "model.safetensors"
    return model_from_tensors(_read_config(config), _read_weights(weights), weights, config.name)


def _read_config(path: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; {_MEND}") from None
    except ValidationError as error:
        raise UserError(f"{path}: {describe(error, ModelConfig)}; {_MEND}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}; {_MEND}") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or 'no such file'}; {_MEND}") from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged: {error}; {_MEND}") from None


_MEND = "give the directory of a whole checkpoint, such as RUN_DIR/checkpoints/step-000500"
