"""The one place that calls ``deepspeed.initialize``."""

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed import deepspeed_config
from elc_bert.config.schema import RunConfig
from elc_bert.distributed.world import World
from elc_bert.engine.processes import raise_collective_timeouts
from elc_bert.engine.zero_layout import full_precision_weights, shard_lamb
from elc_bert.kernels import Choice, Kernels, kernels_for
from elc_bert.kernels.compiled import check_compiler, compile_kernels
from elc_bert.model import ElcBertForMaskedLM, use_kernels
from elc_bert.model.from_tensors import model_from_tensors
from elc_bert.optim import Lamb, parameter_groups, schedule_factor
from elc_bert.optim.dispatch import fused_lamb_kernels
from elc_bert.utils.errors import UserError


def build_engine(
    config: RunConfig,
    plan: BatchPlan,
    world: World,
    kernels: Choice | Kernels = "auto",
    initial: ElcBertForMaskedLM | None = None,
) -> Any:
    """A ``DeepSpeedEngine`` around a model, with optimizer and schedule. Collective.

    Args:
        kernels: of the model, see ``choose_kernels``.
        initial: what the weights start as; None for a fresh initialisation.

    Raises:
        UserError: a layout in which LAMB would not be exact; on all ranks alike.
    """
    torch.manual_seed(config.elc_bert.training.seed)
    model = ElcBertForMaskedLM(config.elc_bert.model)
    if initial is not None:
        model.load_state_dict(initial.state_dict())
    model.encoder.activation_checkpointing = config.elc_bert.training.activation_checkpointing
    use_kernels(model, kernels)
    settings = deepspeed_config(config, plan)
    if not config.optimizer.is_lamb:
        groups = parameter_groups(model, config.optimizer.params.get("weight_decay", 0.0))
        return _initialize(config, world, model=model, model_parameters=groups, config=settings)
    params = dict(config.optimizer.params)
    lamb = Lamb(parameter_groups(model, params.pop("weight_decay")), **params)
    with lamb.allocating():
        engine = _initialize(config, world, model=model, optimizer=lamb, config=settings)
    shard_lamb(lamb, engine)
    return engine


def current_model(engine: Any) -> ElcBertForMaskedLM:
    """A copy of the model as it is now, float32 on the CPU of every rank, in evaluation mode. Collective."""
    weights = full_precision_weights(engine)
    return model_from_tensors(engine.module.config, weights, Path("the engine"), "its model")


def choose_kernels(config: RunConfig, device: torch.device) -> Kernels:
    """What the model computes with on this device.

    Raises:
        UserError: there are no fast paths, or nothing can be compiled, and the configuration insists on it.
    """
    training = config.elc_bert.training
    try:
        kernels = kernels_for(device.type, training.kernels)
        if not training.compile:
            return kernels
        check_compiler(device)
    except UserError as error:
        raise UserError(f"{config.origin}{error}") from None
    return compile_kernels(kernels)


def missing_kernels(config: RunConfig, device: torch.device) -> str:
    """Why LAMB will take its steps by the plain definition although nobody asked for it; "" if it will not.

    Raises:
        UserError: there are no kernels, and the configuration insists on them.
    """
    fused = config.optimizer.params.get("fused")
    if not config.optimizer.is_lamb or fused is False:
        return ""
    try:
        fused_lamb_kernels("cpu" if config.offloads_optimizer else device.type)
    except UserError as error:
        if fused:
            raise
        return str(error)
    return ""


def _initialize(run: RunConfig, world: World, **arguments: Any) -> Any:
    import deepspeed

    from elc_bert.engine.checkpoint_writer import BackgroundWriter

    # Some of its optimizers print memory figures while they are built.
    with contextlib.redirect_stdout(io.StringIO()):
        engine = deepspeed.initialize(lr_scheduler=_schedule(run), **arguments)[0]
    raise_collective_timeouts(world.watchdog)  # in the process groups that it has made
    engine.checkpoint_engine = BackgroundWriter()
    # It would copy two scripts beside the checkpoints, on one rank, where a full disk is told to nobody.
    engine._copy_recovery_script = lambda save_path: None
    return engine


def _schedule(config: RunConfig) -> Any:
    """A factory of our schedule, or None to let DeepSpeed build the one that the file names.

    DeepSpeed advances it after every step that was not skipped for an overflow.
    """
    if not config.scheduler.is_ours:
        return None
    factor = schedule_factor(
        config.scheduler.type, config.elc_bert.training.max_steps, **config.scheduler.params
    )
    return lambda optimizer: LambdaLR(optimizer, factor)
