"""Construction of the engine: model, optimizer and schedule, wrapped by ``deepspeed.initialize``."""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed import deepspeed_config
from elc_bert.config.schema import RunConfig
from elc_bert.distributed.world import World
from elc_bert.engine.compilation import explaining_failed_compilation
from elc_bert.engine.processes import raise_collective_timeouts
from elc_bert.engine.protocol import Engine
from elc_bert.engine.zero_layout import shard_lamb
from elc_bert.kernels import Choice, Kernels, kernels_for
from elc_bert.kernels.compiled import check_compiler, compile_kernels
from elc_bert.model import ElcBertForMaskedLM, use_kernels
from elc_bert.optim import Lamb, parameter_groups, schedule_factor
from elc_bert.optim.dispatch import fused_lamb_kernels
from elc_bert.utils.errors import UserError


def build_engine(
    config: RunConfig,
    plan: BatchPlan,
    world: World,
    kernels: Choice | Kernels = "auto",
    initial: ElcBertForMaskedLM | None = None,
) -> Engine:
    """Build the model, its optimizer and its schedule, and wrap them in a DeepSpeed engine. Collective.

    Args:
        config: Configuration of the run.
        plan: Micro-batch and gradient accumulation of the first phase.
        world: Processes of the run.
        kernels: Kernels of the model, see ``choose_kernels``.
        initial: Model whose weights the run starts from; None for a fresh initialization.

    Raises:
        UserError: LAMB would not be exact in DeepSpeed's layout, or DeepSpeed cannot compile an operation.
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


def choose_kernels(config: RunConfig, device: torch.device) -> Kernels:
    """Return the kernels that the model computes with on a device.

    Raises:
        UserError: The configuration requires fused kernels or compilation, which this device cannot have.
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


def reason_for_plain_lamb(config: RunConfig, device: torch.device) -> str:
    """Return the reason why LAMB falls back to plain PyTorch.

    Returns:
        The reason; empty if the fused kernels are used or were switched off on purpose.

    Raises:
        UserError: There are no fused kernels, and the configuration requires them.
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


def _initialize(run: RunConfig, world: World, **arguments: Any) -> Engine:
    """Call ``deepspeed.initialize``, and replace what does not fit this project."""
    import deepspeed

    from elc_bert.engine.checkpoint_writer import BackgroundWriter

    # Some of DeepSpeed's optimizers print memory figures while they are built.
    with contextlib.redirect_stdout(io.StringIO()), explaining_failed_compilation():
        engine: Any = deepspeed.initialize(lr_scheduler=_schedule(run), **arguments)[0]
    raise_collective_timeouts(world.watchdog)  # now that DeepSpeed has created its process groups
    engine.checkpoint_engine = BackgroundWriter()
    # DeepSpeed (0.19.8, DeepSpeedEngine._save_zero_checkpoint) copies two scripts into the checkpoint on rank
    # 0, where a full disk would end this rank alone. Check again when DeepSpeed is updated.
    engine._copy_recovery_script = lambda save_path: None
    built: Engine = engine
    return built


def _schedule(config: RunConfig) -> Callable[[Optimizer], LambdaLR] | None:
    """Return a factory of this project's schedule, or None if DeepSpeed builds the one that the file names.

    DeepSpeed advances the schedule after every step, except after steps that were skipped.
    """
    if not config.scheduler.is_ours:
        return None
    factor = schedule_factor(
        config.scheduler.type, config.elc_bert.training.max_steps, **config.scheduler.params
    )
    return lambda optimizer: LambdaLR(optimizer, factor)
