"""Reader of DeepSpeed's checkpoint files, without running code from them."""

import os
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MASTER = "fp32"
"""Key of the master weights, next to the optimizer's own keys such as ``exp_avg``."""


def allowed_classes() -> list[Any]:
    """Return the classes that DeepSpeed (0.19.8) puts into its checkpoints.

    Any other class could run code when it is loaded. Check the list again when DeepSpeed is updated.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def load_state(path: str | os.PathLike[str], mapped: bool = False) -> Any:
    """Return the state saved in a file of a checkpoint, in CPU memory.

    Args:
        path: File written by ``BackgroundWriter``.
        mapped: Leave tensors on disk until they are read.

    Raises:
        pickle.UnpicklingError: The file holds more than tensors, plain values and DeepSpeed's own classes.
    """
    with torch.serialization.safe_globals(allowed_classes()):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)


class OptimizerFile:
    """File with the optimizer state of one rank, in any of DeepSpeed's layouts. It is mapped into memory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @cached_property
    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = load_state(self._path, mapped=True)
        return content

    @cached_property
    def _wrapper(self) -> dict[str, Any]:
        """State of DeepSpeed's wrapper around the optimizer, or of the optimizer if it has no wrapper."""
        key = "optimizer_state_dict" if "optimizer_state_dict" in self._content else "optimizer"
        wrapper: dict[str, Any] = self._content[key]
        return wrapper

    @cached_property
    def base(self) -> dict[str, Any]:
        """The ``state_dict`` of the optimizer inside the wrapper."""
        for key in ("base_optimizer_state", "optimizer_state_dict"):
            if key in self._wrapper:
                state: dict[str, Any] = self._wrapper[key]
                return state
        return self._wrapper

    @property
    def loss_scale(self) -> dict[str, float]:
        """State of the dynamic loss scale of fp16; empty otherwise."""
        if not self._wrapper.get("dynamic_loss_scale"):
            return {}
        scaler = self._wrapper.get("loss_scaler")
        saved = vars(scaler) if scaler is not None else self._wrapper
        return {key: saved[key] for key in ("cur_scale", "cur_iter", "last_overflow_iter") if key in saved}

    @cached_property
    def _masters(self) -> list[Tensor] | None:
        """fp32 master weights, indexed by optimizer parameter.

        None in fp32 at ZeRO stage 0, where the model's own weights are the masters.
        """
        for key in ("single_partition_of_fp32_groups", "fp32_flat_groups"):
            if key in self._wrapper:
                flats: list[Tensor] = self._wrapper[key]
                return flats
        if "fp32_groups" in self._wrapper:
            return [tensor for group in self._wrapper["fp32_groups"] for tensor in group]
        return None

    def flat(self, parameter: int, name: str, key: str) -> Tensor:
        """Return one of the optimizer's parameters, or its state, as a flat tensor.

        Args:
            parameter: Index of the optimizer's parameter.
            name: Name of a tensor of the model in it.
            key: ``MASTER``, or a key of the optimizer's state such as ``exp_avg``.
        """
        if key != MASTER:
            state: Tensor = self.base["state"][parameter][key]
            return state.view(-1)
        if self._masters is None:
            weights: Tensor = self._content["module"][name]
            return weights.view(-1)
        return self._masters[parameter].view(-1)
