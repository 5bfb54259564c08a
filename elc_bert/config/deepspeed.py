"""From a run configuration to the dictionary that DeepSpeed reads."""

import functools
import pydoc
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.reader import describe
from elc_bert.config.schema import OUR_SCHEDULES, RunConfig, Section
from elc_bert.utils.errors import UserError
from elc_bert.utils.text import did_you_mean

#: Sections of DeepSpeed that no class of its own checks; what they do not know is ignored without a word.
UNCHECKED_SECTIONS = {"data_types": ("grad_accum_dtype",)}
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")
#: What does not go together with Lamb: the key, the values that do, and what to say of others.
NOT_WITH_LAMB: dict[str, tuple[tuple[Any, ...], str]] = {
    "zero_optimization.offload_optimizer.device": (
        ("none", "cpu"),
        "DeepSpeed swaps optimizer state to disk for its own Adam only; set it to cpu",
    ),
    "zero_optimization.offload_optimizer.ratio": (
        (1.0,),
        "DeepSpeed splits a step between devices for its own Adam only; leave it out",
    ),
    "zero_optimization.offload_optimizer.super_offload": (
        (False,),
        "it steps with DeepSpeed's own Adam; leave it out",
    ),
    "zero_optimization.zenflow": ((), "it steps with DeepSpeed's own Adam; leave it out"),
    "fp16.fp16_master_weights_and_grads": ((False,), "its master weights are float32; leave it out"),
    "bf16.bf16_master_weights_and_grads": ((False,), "its master weights are float32; leave it out"),
    "bf16.bf16_optimizer_states": ((False,), "its moments are float32; leave it out"),
}


class TorchAutocast(Section):
    """DeepSpeed's section ``torch_autocast``, for which it has no class: float32 weights, bf16 arithmetic.

    Not fp16: there each rank would decide alone whether its part of a step overflows and is skipped.
    """

    enabled: bool = False
    """Run the model under torch.autocast."""
    dtype: Literal["bfloat16", "bf16", "torch.bfloat16"] = "bfloat16"
    """Type of matrix products."""
    lower_precision_safe_modules: list[str] | None = None
    """Classes of modules whose gradients travel in that type; null = linear and convolutional ones."""


def check_deepspeed_sections(config: RunConfig) -> None:
    """Check DeepSpeed's own sections with DeepSpeed's own classes.

    Raises:
        UserError: an unknown or out-of-range key in one of them, or two that contradict each other.
    """
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    sections: dict[str, type[BaseModel]] = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "torch_autocast": TorchAutocast,
        "zero_optimization": DeepSpeedZeroConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }
    for name in (*sections, *UNCHECKED_SECTIONS):
        content = config.deepspeed_extras.get(name, {})
        if not isinstance(content, dict):
            raise UserError(f"{config.origin}{name}: must be a section, not {content!r}")
    parsed: dict[str, Any] = {}
    for name, section in sections.items():
        try:
            parsed[name] = section(**config.deepspeed_extras.get(name, {}))
        except ValidationError as error:
            raise UserError(f"{config.origin}{describe(error, section, prefix=name)}") from None
    for name, keys in UNCHECKED_SECTIONS.items():
        for key in config.deepspeed_extras.get(name, {}):
            if key not in keys:
                raise UserError(f"{config.origin}unknown key {name}.{key}{did_you_mean(key, keys)}")
    _check_precision(config, parsed)
    _check_zero(config, parsed["zero_optimization"])
    _check_optimizer(config)
    if config.optimizer.is_lamb:
        _check_lamb(config, parsed)


def _check_precision(config: RunConfig, parsed: dict[str, Any]) -> None:
    from deepspeed.accelerator import get_accelerator

    enabled = [name for name in ("bf16", "fp16", "torch_autocast") if parsed[name].enabled]
    if len(enabled) > 1:
        raise UserError(f"{config.origin}{' and '.join(enabled)} are both enabled; keep one")
    for name in parsed["torch_autocast"].lower_precision_safe_modules or []:
        if pydoc.locate(name) is None:
            raise UserError(
                f"{config.origin}torch_autocast.lower_precision_safe_modules: there is no class {name}"
            )
    accelerator = get_accelerator()
    supported = {"bf16": accelerator.is_bf16_supported, "fp16": accelerator.is_fp16_supported}
    for name, is_supported in supported.items():
        if name in enabled and not is_supported():
            raise UserError(
                f"{config.origin}{name}.enabled: this {accelerator.device_name()} cannot compute in {name}; "
                "set it to false"
            )
    if not parsed["bf16"].check_grad_overflow:
        raise UserError(
            f"{config.origin}bf16.check_grad_overflow = false: a step whose gradient is not finite would be "
            "taken; leave it out"
        )
    _check_sums(config)


def _check_sums(config: RunConfig) -> None:
    """The type that gradients of several micro-batches are summed in."""
    from deepspeed.runtime.config import DtypeEnum

    key = "data_types.grad_accum_dtype"
    sums = config.deepspeed_extras.get("data_types", {}).get("grad_accum_dtype")
    weights = config.precision if config.precision in ("bf16", "fp16") else "fp32"
    try:
        same = sums is None or DtypeEnum(sums) is DtypeEnum(weights)
    except ValueError:
        raise UserError(f"{config.origin}{key} = {sums!r}: choose fp32, bf16 or fp16") from None
    if not same and config.zero_stage == 0:
        raise UserError(
            f"{config.origin}{key} = {sums}: DeepSpeed sums in {weights}, the type of the weights, without "
            "ZeRO; leave it out, or set zero_optimization.stage to 1"
        )


def _check_zero(config: RunConfig, zero: Any) -> None:
    offload = zero.offload_optimizer is not None and zero.offload_optimizer.device != "none"
    if offload and zero.stage == 0:
        raise UserError(
            f"{config.origin}zero_optimization.offload_optimizer: does nothing at stage 0; set "
            "zero_optimization.stage to 1, 2 or 3"
        )
    if not zero.compute_grad_norm:
        raise UserError(
            f"{config.origin}zero_optimization.compute_grad_norm = false: the norm is logged; leave it out"
        )


def _check_optimizer(config: RunConfig) -> None:
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    from deepspeed.runtime.lr_schedules import VALID_LR_SCHEDULES

    name, schedule = config.optimizer.type, config.scheduler.type
    of_torch = [name for name, value in vars(torch.optim).items() if isinstance(value, type)]
    if name.lower() not in DEEPSPEED_OPTIMIZERS and name not in of_torch:
        raise UserError(
            f"{config.origin}optimizer.type: there is no {name}{did_you_mean(name, ['Lamb', *of_torch])}"
        )
    schedules = [*OUR_SCHEDULES, *VALID_LR_SCHEDULES]
    if schedule not in schedules:
        raise UserError(
            f"{config.origin}scheduler.type: there is no {schedule}{did_you_mean(schedule, schedules)}"
        )


def _check_lamb(config: RunConfig, parsed: dict[str, Any]) -> None:
    for key, (allowed, otherwise) in NOT_WITH_LAMB.items():
        section, *path = key.split(".")
        value = functools.reduce(lambda part, name: getattr(part, name, None), path, parsed[section])
        if value is not None and value not in allowed:
            raise UserError(f"{config.origin}{key}: not with optimizer.type Lamb: {otherwise}")


def deepspeed_config(config: RunConfig, plan: BatchPlan) -> dict[str, Any]:
    """What ``deepspeed.initialize`` gets.

    Lamb, our schedules and the monitors are left out: this project builds the first two itself and
    writes the monitors' events, DeepSpeed's own would repeat them under other names.
    """
    built = {key: value for key, value in config.deepspeed_extras.items() if key not in MONITORS}
    if not config.optimizer.is_lamb:
        built["optimizer"] = config.optimizer.model_dump()
    if not config.scheduler.is_ours:
        built["scheduler"] = config.scheduler.model_dump()
    if config.precision == "bf16 autocast":
        # Its own default is the device's, float16 on a GPU.
        built["torch_autocast"] = {"dtype": "bfloat16", **built["torch_autocast"]}
    return built | {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.gradient_clipping,
        # DeepSpeed does not know our LAMB; optim/zero_layout.py makes it exact or refuses.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
    }
