"""Pretraining of a model from its configuration, from the first process to the exit status."""

import logging
import os
from contextlib import suppress
from pathlib import Path

import torch

from elc_bert.config.schema import RunConfig
from elc_bert.distributed.collectives import SharedUserError
from elc_bert.distributed.watchdog.diagnosis import Timeouts
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.engine.processes import connect
from elc_bert.training.callbacks.build import build_callbacks
from elc_bert.training.callbacks.callback import restore_states
from elc_bert.training.checks.memory import explaining_out_of_memory
from elc_bert.training.data_workers import explaining_worker_failures
from elc_bert.training.loop import train
from elc_bert.training.setup import set_up
from elc_bert.utils import logs
from elc_bert.utils.errors import UserError

logger = logging.getLogger(__name__)


def pretrain(
    config: RunConfig,
    watchdog: Watchdog,
    resume: str = "never",
    init_from: Path | None = None,
    log_level: str = "info",
) -> int:
    """Pretrain a model on all processes that the launcher started.

    Args:
        config: Configuration of the run.
        watchdog: Watchdog of this process.
        resume: ``never``, ``auto`` (continue this run if it has been started) or a checkpoint's directory.
        init_from: Model whose weights a new run starts from, see ``hub.loading.load_model``.
        log_level: Least severe messages on the terminal, see ``utils.logs``.

    Returns:
        Exit status: ``DONE``, or ``PREEMPTED`` after a signal, with a checkpoint of the last step.

    Raises:
        UserError: The run cannot start or continue; nothing has been overwritten. Raised on all ranks.
    """
    training = config.elc_bert.training
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # must be set before the device is used
        torch.use_deterministic_algorithms(True)
    world = connect(watchdog, Timeouts(training.silence_limit, training.hang_limit))
    logs.configure(world.rank, log_level)
    with explaining_out_of_memory(), explaining_worker_failures():
        run = set_up(config, resume, world, init_from)
        callbacks = build_callbacks(run)
        restore_states(callbacks, run.progress.callbacks)
        try:
            status = train(run, callbacks)
        except SharedUserError:
            # The error that ends the run is no reason to lose the checkpoint that is being written.
            with suppress(UserError):
                run.checkpoints.finish()
            raise
        finally:
            for callback in callbacks:
                try:
                    callback.close()
                except Exception:  # it must not replace the status or error of the run
                    logger.exception("%s.close failed", type(callback).__name__)
    run.monitor.close()
    return status
