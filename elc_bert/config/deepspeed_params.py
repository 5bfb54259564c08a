"""Check the parameters of an optimizer or schedule that DeepSpeed builds, with its own classes.

DeepSpeed passes ``optimizer.params`` and ``scheduler.params`` to a class as keyword arguments. Here they are
compared with its signature, and the class is tried out on a small tensor, unless DeepSpeed would compile it.
"""

import copy
import inspect
import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from elc_bert.config.optimizer import OUR_SCHEDULES
from elc_bert.config.schema import RunConfig
from elc_bert.config.secrets import shown
from elc_bert.utils.errors import UserError
from elc_bert.utils.text import did_you_mean

_OF_DEEPSPEED = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
"""Parameters of ``Adam`` and ``AdamW`` that DeepSpeed reads itself."""
_SWITCHES = _OF_DEEPSPEED | {"fused", "foreach", "capturable", "differentiable"}
"""Parameters that are true, false or null, whatever the default of a class is."""
_MUON = {"lr", "momentum", "weight_decay", "ns_method", "betas", "eps", "muon_lr", "adam_lr", "torch_adam"}


def check_optimizer(config: RunConfig) -> None:
    """Check the name and the parameters of the optimizer.

    Raises:
        UserError: There is no such optimizer, or it does not take these parameters.
    """
    from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS

    if config.optimizer.is_lamb:
        return
    name, params = config.optimizer.type, config.optimizer.params
    of_torch = {
        name: value
        for name, value in vars(torch.optim).items()
        if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
    }
    del of_torch["Optimizer"]
    if name.lower() not in DEEPSPEED_OPTIMIZERS and name not in of_torch:
        nearest = did_you_mean(name, ["Lamb", *of_torch])
        raise UserError(f"{config.origin}optimizer.type: unknown optimizer {name}{nearest}")
    if name.lower().startswith("mu") and name.lower() != "muon":
        raise UserError(
            f"{config.origin}optimizer.type: {name} is not supported by this project; choose another"
        )
    origin = f"{config.origin}optimizer.params"
    _check_device(config)
    if name.lower() == "muon":
        _check_names(origin, name, params, _MUON)
        return
    optimizer_class = _optimizer_class(config, of_torch)
    is_adam = config.optimizer.is_adam
    _check_names(origin, name, params, _names(optimizer_class) | (_OF_DEEPSPEED if is_adam else set()))
    _check_types(origin, optimizer_class, params)
    is_of_torch = optimizer_class in of_torch.values()
    try:
        if is_of_torch:
            given = {key: value for key, value in params.items() if not (is_adam and key in _OF_DEEPSPEED)}
            _two_steps(optimizer_class, given)
        else:
            torch.optim.AdamW([_weight()], **{k: v for k, v in params.items() if k in ("lr", "betas", "eps")})
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{origin}: {name} cannot be used with these: {_one_line(error)}") from None


def _check_device(config: RunConfig) -> None:
    """Check what DeepSpeed's optimizers need of the device and of ZeRO (0.19.8)."""
    from deepspeed.accelerator import get_accelerator

    name, key = config.optimizer.type.lower(), f"{config.origin}optimizer.type"
    zero = config.deepspeed_extras.get("zero_optimization", {})
    if name == "muon" and config.zero_stage == 3 and zero.get("reduce_scatter", True):
        raise UserError(f"{key}: Muon at ZeRO stage 3 needs zero_optimization.reduce_scatter = false; add it")
    if config.offloads_optimizer:
        return
    if name == "lion" and get_accelerator().device_name() == "cpu":
        raise UserError(f"{key}: DeepSpeed's Lion needs a GPU; choose another optimizer")
    if name == "adagrad" and config.zero_stage > 0:
        raise UserError(
            f"{key}: Adagrad creates its state before ZeRO partitions the weights; set "
            "zero_optimization.stage to 0, or choose another optimizer"
        )


def _optimizer_class(config: RunConfig, of_torch: dict[str, type]) -> type:
    """Return the class that DeepSpeed builds (``DeepSpeedEngine._configure_basic_optimizer``, 0.19.8)."""
    name, offloads = config.optimizer.type.lower(), config.offloads_optimizer
    if config.optimizer.is_adam:
        from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam

        if config.uses_torch_adam:
            is_adamw = name == "adamw" or config.optimizer.params.get("adam_w_mode", True)
            return torch.optim.AdamW if is_adamw else torch.optim.Adam
        return DeepSpeedCPUAdam if offloads else FusedAdam  # type: ignore[no-any-return]
    if name == "lion":
        from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion

        return DeepSpeedCPULion if offloads else FusedLion  # type: ignore[no-any-return]
    if name == "adagrad":
        from deepspeed.ops.adagrad import DeepSpeedCPUAdagrad

        return DeepSpeedCPUAdagrad if offloads else torch.optim.Adagrad
    return of_torch[config.optimizer.type]


def check_schedule(config: RunConfig) -> None:
    """Check the name and the parameters of the schedule.

    Raises:
        UserError: There is no such schedule, or it does not take these parameters.
    """
    from deepspeed.runtime import lr_schedules

    name, params = config.scheduler.type, config.scheduler.params
    schedules = [*OUR_SCHEDULES, *lr_schedules.VALID_LR_SCHEDULES]
    if name not in schedules:
        nearest = did_you_mean(name, schedules)
        raise UserError(f"{config.origin}scheduler.type: unknown schedule {name}{nearest}")
    if config.scheduler.is_ours:
        return
    origin, schedule_class = f"{config.origin}scheduler.params", getattr(lr_schedules, name)
    _check_names(origin, name, params, _names(schedule_class) - {"last_batch_iteration"})
    required = [
        key
        for key, value in inspect.signature(schedule_class).parameters.items()
        if value.default is inspect.Parameter.empty and key != "optimizer"
    ]
    if missing := [key for key in required if key not in params]:
        raise UserError(f"{origin}: {name} needs a value for {' and '.join(missing)}; add it")
    _check_types(origin, schedule_class, params)
    if params.get("total_num_steps", 1) in (0, 0.0):
        raise UserError(f"{origin}.total_num_steps = 0: must be at least 1; set it to the steps of the run")
    if params.get("warmup_type", "log") not in ("log", "linear"):
        raise UserError(f"{origin}.warmup_type: {params['warmup_type']} is unknown; choose log or linear")
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(logging.ERROR)
    optimizer = torch.optim.AdamW([_weight()], lr=0.1)
    try:
        schedule_class(optimizer, **copy.deepcopy(params)).step()
    except (TypeError, ValueError, ArithmeticError) as error:
        raise UserError(f"{origin}: {name} cannot be used with these: {_one_line(error)}") from None
    finally:
        logger.setLevel(level)


def _check_names(origin: str, name: str, params: Iterable[str], valid: set[str]) -> None:
    for key in params:
        if key not in valid:
            raise UserError(f"{origin}.{key}: unknown for {name}{did_you_mean(key, sorted(valid))}")


def _names(built: type) -> set[str]:
    """Return the names of a class's arguments, without the first, which is what it works on."""
    return set(list(inspect.signature(built).parameters)[1:])


def _check_types(origin: str, built: type, params: dict[str, Any]) -> None:
    """Check that booleans are given where the class has booleans as defaults, and nowhere else."""
    arguments = inspect.signature(built).parameters
    for key, value in params.items():
        default = arguments[key].default if key in arguments else None
        is_switch = key in _SWITCHES or isinstance(default, bool)
        if isinstance(value, bool) != is_switch and not (is_switch and value is None):
            expected = "true or false" if is_switch else "a number or text"
            raise UserError(f"{origin}.{key} = {shown(key, value)}: must be {expected}")


def _two_steps(optimizer_class: Any, params: dict[str, Any]) -> None:
    """Take two steps with an optimizer of two groups, as in a run."""
    weights = [_weight(), _weight()]
    groups = [{"params": [weights[0]], "weight_decay": 0.1}, {"params": [weights[1]], "weight_decay": 0.0}]
    optimizer = optimizer_class(groups, **copy.deepcopy(params))
    for _ in range(2):
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer.step()


def _weight() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
