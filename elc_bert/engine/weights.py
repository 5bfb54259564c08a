"""Weights of the model in an engine, whatever the ZeRO stage and precision."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from elc_bert.engine.protocol import Engine
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.model.layers import LayerMixture


def full_numel(parameter: Tensor) -> int:
    """Return the number of elements of a parameter, even if ZeRO 3 left an empty tensor in the model."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_shape(parameter: Tensor) -> torch.Size:
    """Return the shape of a parameter, even if ZeRO 3 left an empty tensor in the model."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


@contextmanager
def gathered(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Make parameters readable within this block, at ZeRO 3 too. Collective."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(parameters)):
        yield


def layer_weights(engine: Engine) -> dict[str, Tensor]:
    """Return ``ElcBertEncoder.layer_weights`` of the model in the engine. Collective."""
    encoder = engine.module.encoder
    with gathered(module.weights for module in encoder.modules() if isinstance(module, LayerMixture)):
        return encoder.layer_weights()


def full_precision_weights(engine: Engine) -> dict[str, Tensor]:
    """Return the model's parameters by name, float32 on the CPU, from the master weights. Collective.

    A tied parameter appears once, under the name that ``named_parameters`` gives it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    # The wrapper of bf16 and fp16 at ZeRO stage 0 keeps its master weights in lists, parallel to the model's
    # tensors, where safe_get_full_fp32_param (0.19.8) does not find them.
    masters = {}
    if not engine.zero_optimization():
        groups = zip(
            getattr(engine.optimizer, "fp16_groups", []),
            getattr(engine.optimizer, "fp32_groups", []),
            strict=True,
        )
        masters = {id(low): full for lows, fulls in groups for low, full in zip(lows, fulls, strict=True)}
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        full = masters.get(id(parameter), parameter) if full is None else full
        weights[name] = full.detach().float().reshape(full_shape(parameter)).cpu().contiguous()
    return weights


def current_model(engine: Engine) -> ElcBertForMaskedLM:
    """Return a copy of the model as it is now, float32 on the CPU of every rank, in eval mode. Collective.

    Raises:
        UserError: A weight is NaN or infinite.
    """
    return model_from_tensors(
        engine.module.config, full_precision_weights(engine), Path("the engine"), "its model"
    )


def copy_masters_to_model(engine: Engine) -> None:
    """Set the weights that the model computes with to those of the optimizer's master weights. Collective."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "update_lp_params"):  # ZeRO 1 and 2
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp16_partitioned_groups_flat"):  # ZeRO 3
        flats = zip(
            wrapper.fp16_partitioned_groups_flat,
            wrapper.fp32_partitioned_groups_flat,
            wrapper.fp16_partitioned_groups,
            strict=True,
        )
        for low, full, tensors in flats:
            low.data.copy_(full.data)
            for tensor, part in zip(tensors, wrapper.unflatten(low, tensors), strict=True):
                tensor.data = part.data
        wrapper.checkpoint_event_epilogue()  # updates the small parameters, which every rank keeps whole
    elif hasattr(wrapper, "fp32_groups"):  # bf16 and fp16 at ZeRO stage 0
        for lows, fulls in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for low, full in zip(lows, fulls, strict=True):
                low.data.copy_(full.data)
