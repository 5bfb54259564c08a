"""A model built from named tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.model.masked_lm import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError


def model_of(
    config: ModelConfig, weights: Mapping[str, Tensor], origin: Path, config_name: str
) -> ElcBertForMaskedLM:
    """A model with these weights, float32 on the CPU, in evaluation mode.

    Args:
        weights: by the names of its parameters.
        origin: file that they come from.
        config_name: what the configuration is called in messages.

    Raises:
        UserError: they do not fit the configuration.
    """
    model = ElcBertForMaskedLM(config)
    parameters = dict(model.named_parameters())
    if odd := sorted(parameters.keys() ^ weights.keys()):
        what = "lacks" if odd[0] in parameters else f"holds, but no model of {config_name} has,"
        raise UserError(f"{origin}: {what} {odd[0]}; use files of the same model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{origin}: {name} has shape {list(weights[name].shape)}, but {config_name} asks for "
                    f"{list(parameter.shape)}; use files of the same model"
                )
            parameter.copy_(weights[name])
    return model.eval()
