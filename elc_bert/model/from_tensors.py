"""Construction of a model from named tensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.model.masked_lm import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError


def model_from_tensors(
    config: ModelConfig, weights: Mapping[str, Tensor], origin: Path, config_name: str
) -> ElcBertForMaskedLM:
    """Build a model with these weights, float32 on the CPU, in evaluation mode.

    Args:
        config: Configuration of the model.
        weights: Weights by parameter name.
        origin: File that the weights come from, for messages.
        config_name: Name of the configuration in messages.

    Raises:
        UserError: The weights do not fit the configuration, or are not finite.
    """
    model = ElcBertForMaskedLM(config)
    parameters = dict(model.named_parameters())
    if unmatched := sorted(parameters.keys() ^ weights.keys()):
        name = unmatched[0]
        problem = (
            f"lacks {name}" if name in parameters else f"holds {name}, which {config_name} does not define"
        )
        raise UserError(f"{origin}: {problem}; use files of the same model")
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{origin}: {name} holds NaN or infinite weights, because the training diverged; use an "
                "earlier checkpoint"
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if weights[name].shape != parameter.shape:
                raise UserError(
                    f"{origin}: {name} has shape {list(weights[name].shape)}, but {config_name} asks for "
                    f"{list(parameter.shape)}; use files of the same model"
                )
            parameter.copy_(weights[name])
    return model.eval()
