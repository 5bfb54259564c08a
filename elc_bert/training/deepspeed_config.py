"""From a run configuration to the dictionary that DeepSpeed reads."""

from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from elc_bert.config import OUR_SCHEDULES, RunConfig
from elc_bert.config_file import describe, did_you_mean
from elc_bert.errors import UserError
from elc_bert.training.batch_plan import BatchPlan

#: Sections of DeepSpeed that no class of its own checks; what they do not know is ignored without a word.
UNCHECKED_SECTIONS = {"data_types": ("grad_accum_dtype",)}
MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")


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
    for name, section in sections.items():
        try:
            section(**config.deepspeed_extras.get(name, {}))
        except ValidationError as error:
            raise UserError(f"{config.origin}{describe(error, section, prefix=name)}") from None
    for name, keys in UNCHECKED_SECTIONS.items():
        for key in config.deepspeed_extras.get(name, {}):
            if key not in keys:
                raise UserError(f"{config.origin}unknown key {name}.{key}{did_you_mean(key, keys)}")
    if all(config.deepspeed_extras.get(name, {}).get("enabled") for name in ("bf16", "fp16")):
        raise UserError(f"{config.origin}bf16 and fp16 are both enabled; keep one")
    _check_optimizer(config)


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
    if config.optimizer.is_lamb and config.zero_stage > 2:
        raise UserError(
            f"{config.origin}zero_optimization.stage = {config.zero_stage}: optimizer.type Lamb is exact at "
            "stages 0, 1 and 2; set one of these"
        )
    offload = (config.deepspeed_extras.get("zero_optimization") or {}).get("offload_optimizer") or {}
    if config.optimizer.is_lamb and offload.get("device", "none") != "none":
        raise UserError(
            f"{config.origin}zero_optimization.offload_optimizer: optimizer.type Lamb does not work with it; "
            "leave it out"
        )


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
    return built | {
        "train_batch_size": plan.global_batch,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        "gradient_clipping": config.gradient_clipping,
        # DeepSpeed does not know our LAMB; optim/zero_layout.py makes it exact or refuses.
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
