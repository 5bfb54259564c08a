"""Validation of DeepSpeed's sections with DeepSpeed's own classes, and the dictionary for its engine."""

import functools
import pydoc
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed_params import check_optimizer, check_schedule
from elc_bert.config.deepspeed_sections import MONITORS
from elc_bert.config.reader import describe
from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import refuse_secrets
from elc_bert.config.section import Section
from elc_bert.utils.errors import UserError

LAMB_REQUIREMENTS: dict[str, tuple[tuple[Any, ...], str]] = {
    "zero_optimization.offload_optimizer.device": (
        ("none", "cpu"),
        "DeepSpeed can swap optimizer state to disk only for its own Adam; set it to cpu",
    ),
    "zero_optimization.offload_optimizer.ratio": (
        (1.0,),
        "DeepSpeed can split a step between devices only for its own Adam; remove it",
    ),
    "zero_optimization.offload_optimizer.super_offload": (
        (False,),
        "this feature always uses DeepSpeed's own Adam; remove it",
    ),
    "zero_optimization.zenflow": ((), "this feature always uses DeepSpeed's own Adam; remove it"),
    "fp16.fp16_master_weights_and_grads": ((False,), "LAMB's master weights are float32; remove it"),
    "bf16.bf16_master_weights_and_grads": ((False,), "LAMB's master weights are float32; remove it"),
    "bf16.bf16_optimizer_states": ((False,), "LAMB's moments are float32; remove it"),
}
"""Keys that ``Lamb`` restricts: the values with which it works, and the reason why other values fail."""


class TorchAutocast(Section):
    """The section ``torch_autocast``, for which DeepSpeed has no class: fp32 weights, bf16 matrix products.

    fp16 is not supported: each rank would decide alone whether its part of a step overflows and is skipped.
    """

    enabled: bool = False
    """Run the model under ``torch.autocast``."""
    dtype: Literal["bfloat16", "bf16", "torch.bfloat16"] = "bfloat16"
    """Type of the matrix products."""
    lower_precision_safe_modules: list[str] | None = None
    """Module classes whose gradients are communicated in ``dtype``; null means linear and convolutional
    layers."""


def check_deepspeed_sections(config: RunConfig) -> None:
    """Check DeepSpeed's own sections with DeepSpeed's own classes.

    Raises:
        UserError: A section has an unknown or out-of-range key, or two keys contradict each other.
    """
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    classes: dict[str, type[BaseModel]] = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "torch_autocast": TorchAutocast,
        "zero_optimization": DeepSpeedZeroConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }
    refuse_secrets(config.model_dump(mode="json"), config.origin)
    given = {name: section.as_given() for name, section in config.deepspeed.sections.items()}
    for name in given:
        # Null counts as an empty section when the file is read, but DeepSpeed would fail on it.
        if config.deepspeed_extras.get(name, {}) is None:
            raise UserError(f"{config.origin}{name}: must be a section, not None")
    checked: dict[str, Any] = {}
    for name, section_class in classes.items():
        try:
            checked[name] = section_class(**given[name])
        except ValidationError as error:
            raise UserError(f"{config.origin}{describe(error, section_class, prefix=name)}") from None
    _check_precision(config, checked)
    _check_zero(config, checked["zero_optimization"])
    check_optimizer(config)
    check_schedule(config)
    if config.optimizer.is_lamb:
        _check_lamb(config, checked)


def _check_precision(config: RunConfig, checked: dict[str, Any]) -> None:
    from deepspeed.accelerator import get_accelerator

    enabled = [name for name in ("bf16", "fp16", "torch_autocast") if checked[name].enabled]
    if len(enabled) > 1:
        raise UserError(f"{config.origin}{' and '.join(enabled)} are both enabled; keep one")
    for name in checked["torch_autocast"].lower_precision_safe_modules or []:
        if pydoc.locate(name) is None:
            raise UserError(
                f"{config.origin}torch_autocast.lower_precision_safe_modules: there is no class {name}; "
                "give the full name, such as torch.nn.Linear"
            )
    accelerator = get_accelerator()
    supported = {"bf16": accelerator.is_bf16_supported, "fp16": accelerator.is_fp16_supported}
    for name, is_supported in supported.items():
        if name in enabled and not is_supported():
            raise UserError(
                f"{config.origin}{name}.enabled: this {accelerator.device_name()} cannot compute in {name}; "
                "set it to false"
            )
    if not checked["bf16"].check_grad_overflow:
        raise UserError(
            f"{config.origin}bf16.check_grad_overflow = false: steps with a non-finite gradient would be "
            "taken; remove it"
        )
    _check_accumulation_dtype(config)


def _check_accumulation_dtype(config: RunConfig) -> None:
    """Check the type in which gradients of several micro-batches are summed."""
    from deepspeed.runtime.config import DtypeEnum

    key = "data_types.grad_accum_dtype"
    dtype = config.deepspeed.data_types.grad_accum_dtype
    weights = config.precision if config.precision in ("bf16", "fp16") else "fp32"
    try:
        is_weights_dtype = dtype is None or DtypeEnum(dtype) is DtypeEnum(weights)
    except ValueError:
        raise UserError(f"{config.origin}{key} = {dtype!r}: choose fp32, bf16 or fp16") from None
    if not is_weights_dtype and config.zero_stage == 0:
        raise UserError(
            f"{config.origin}{key} = {dtype}: without ZeRO, DeepSpeed sums in {weights}, the type of the "
            "weights; remove it, or set zero_optimization.stage to 1"
        )


def _check_zero(config: RunConfig, zero: Any) -> None:
    from deepspeed.accelerator import get_accelerator

    offloads = zero.offload_optimizer is not None and zero.offload_optimizer.device != "none"
    if offloads and zero.stage == 0:
        raise UserError(
            f"{config.origin}zero_optimization.offload_optimizer: has no effect at stage 0; set "
            "zero_optimization.stage to 1, 2 or 3"
        )
    offloads_weights = zero.offload_param is not None and zero.offload_param.device != "none"
    if offloads_weights and zero.stage < 3:
        raise UserError(
            f"{config.origin}zero_optimization.offload_param: has no effect at stage {zero.stage}; set "
            "zero_optimization.stage to 3, or remove it"
        )
    predivide = config.deepspeed_extras.get("gradient_predivide_factor", 1.0)
    if zero.stage >= 2 and zero.reduce_scatter and predivide != 1.0:
        raise UserError(
            f"{config.origin}gradient_predivide_factor: DeepSpeed cannot use it at ZeRO stage {zero.stage}; "
            "remove it, or set zero_optimization.reduce_scatter to false"
        )
    quantized = [
        key
        for key in ("weights", "nontrainable_weights", "gradients")
        if getattr(zero, f"zero_quantized_{key}")
    ]
    if quantized and get_accelerator().device_name() == "cpu":
        raise UserError(
            f"{config.origin}zero_optimization.zero_quantized_{quantized[0]}: needs a GPU; remove it"
        )
    if not zero.compute_grad_norm:
        raise UserError(
            f"{config.origin}zero_optimization.compute_grad_norm = false: the gradient norm is needed for "
            "the log; remove it"
        )


def _check_lamb(config: RunConfig, checked: dict[str, Any]) -> None:
    for key, (allowed, reason) in LAMB_REQUIREMENTS.items():
        section, *path = key.split(".")
        value = functools.reduce(lambda part, name: getattr(part, name, None), path, checked[section])
        if value is not None and value not in allowed:
            raise UserError(f"{config.origin}{key}: does not work with optimizer.type Lamb: {reason}")


def deepspeed_config(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
    """Return the dictionary to pass to ``deepspeed.initialize``.

    It contains neither Lamb nor this project's schedules, which the project builds itself, nor the monitors:
    the project writes their events, and DeepSpeed's own would repeat them under other names.
    """
    from deepspeed.accelerator import get_accelerator

    built = {key: value for key, value in config.deepspeed_extras.items() if key not in MONITORS}
    if not config.optimizer.is_lamb:
        built["optimizer"] = config.optimizer.model_dump()
        if config.uses_torch_adam:
            # DeepSpeed would compile its own Adam for minutes. PyTorch's fused one needs no compiler.
            params = config.optimizer.params
            # PyTorch refuses the two together.
            fused = get_accelerator().device_name() in ("cpu", "cuda") and not params.get("foreach")
            built["optimizer"]["params"] = {"fused": fused, **params, "torch_adam": True}
        elif config.optimizer.type.lower() == "muon":
            # Muon leaves embeddings and vectors to an Adam.
            built["optimizer"]["params"] = {"torch_adam": True, **config.optimizer.params}
    if not config.scheduler.is_ours:
        built["scheduler"] = config.scheduler.model_dump()
    if "torch_autocast" in built:
        # DeepSpeed's default type is the device's, which is float16 on a GPU.
        built["torch_autocast"] = {"dtype": "bfloat16", **config.deepspeed.torch_autocast.as_given()}
    return built | {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.gradient_clipping,
        # DeepSpeed does not know this project's LAMB, which engine/zero_layout.py makes exact under ZeRO.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
