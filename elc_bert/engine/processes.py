"""Start and end of the processes of a run: connect them through DeepSpeed, run a command, exit cleanly."""

import atexit
import contextlib
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from elc_bert.distributed.collectives import SharedUserError, raise_on_all_ranks
from elc_bert.distributed.exit_status import DONE, FAILED
from elc_bert.distributed.launchers import (
    current_rank,
    on_several_hosts,
    ranks_on_this_host,
    set_environment,
)
from elc_bert.distributed.watchdog.diagnosis import Timeouts
from elc_bert.distributed.watchdog.watchdog import Watchdog
from elc_bert.distributed.world import World
from elc_bert.engine.compilation import guard_compilation
from elc_bert.utils.errors import UserError
from elc_bert.utils.logs import FILE_ONLY
from elc_bert.utils.machine import available_cores, free_port, keep_freed_memory

logger = logging.getLogger(__name__)
Command = Callable[[Watchdog], int | None]
"""Command of a program of several processes; it returns an exit status, or None for 0."""
_RANK_0_REPORTS_FIRST = 30.0
"""Seconds for which another rank waits before it reports an error that rank 0 most likely reports too."""


def connect(watchdog: Watchdog, timeouts: Timeouts | None = None) -> World:
    """Join the processes started by ``deepspeed``, ``torchrun``, ``mpirun`` or ``srun``, or run alone.

    Args:
        watchdog: Watchdog of this process, started here if there are several.
        timeouts: Timeouts of the watchdog. By default there is no timeout for hangs.

    Raises:
        UserError: Not all processes have connected, or they cannot reach each other.
    """
    # DeepSpeed warns on every rank that there is no GPU; the start table of the run lists the devices.
    logging.disable(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    logging.disable(logging.NOTSET)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    # DeepSpeed 0.19.8 compiles this CPU operation when communication starts (TorchBackend.__init__ in
    # deepspeed/comm/torch.py), which takes a minute and a C++ compiler; only its inference uses it. An
    # operation that is not compatible is left out. Check again when DeepSpeed is updated.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    guard_compilation()
    set_environment()
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    on_cpu = accelerator.device_name() == "cpu"
    # Slurm may show a process only its own GPU, while DeepSpeed uses LOCAL_RANK as the device's index.
    index = 0 if on_cpu else local_rank % accelerator.device_count()
    os.environ["LOCAL_RANK"] = str(local_rank if on_cpu else index)
    try:
        deepspeed.init_distributed(verbose=False)
    except dist.DistError as error:
        raise UserError(_explain_failed_connection(str(error).splitlines()[0])) from None
    if on_cpu:
        _share_cores()
        keep_freed_memory()
        device = torch.device("cpu")
    else:
        accelerator.set_device(index)
        device = torch.device(accelerator.device_name(index))
    world = World(dist.get_rank(), dist.get_world_size(), device, watchdog)
    watchdog.start(world.rank, local_rank, world.size, on_several_hosts(), timeouts or Timeouts())
    raise_collective_timeouts(watchdog)
    return world


def raise_collective_timeouts(watchdog: Watchdog) -> None:
    """Raise every process group's timeout above the watchdog's, whose message is clearer.

    torch 2.13 has no public function for the timeout of existing groups, hence the private ``_world`` and
    ``_set_pg_timeout``. Check again when torch is updated.
    """
    hang, silence = watchdog.timeouts.hang, watchdog.timeouts.silence
    timeout = timedelta(seconds=hang + 2 * silence) if hang else timedelta(days=365)
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(timeout, group)


def run_command(command: Command) -> NoReturn:
    """Run a command and end this process with the command's exit status.

    The status is the one that the command returns (see ``distributed.exit_status``), or 1 after a UserError,
    which is printed in one line. Any other exception ends all ranks and prints its traceback; in a run of one
    process it is raised as usual.
    """
    status = run_to_status(command, Watchdog())
    # The interpreter is not finalized. Threads of gloo outlive the process group while anything refers to it,
    # and a thread that meets a finalized interpreter aborts the process ("terminate called without an active
    # exception"), in about one of 20 exits on a busy machine (torch 2.13: destroy_process_group does not join
    # them). Check again when torch is updated.
    finish_interpreter()
    os._exit(status)


def finish_interpreter() -> None:
    """Do what Python does when it exits, for a process that exits with ``os._exit``."""
    atexit._run_exitfuncs()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        MPI.Finalize()  # without it, mpirun treats the process as crashed
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader of a pipe may have exited
            stream.flush()


def run_to_status(command: Command, watchdog: Watchdog) -> int:
    """Run a command, disconnect from the other processes, and return the exit status; see ``run_command``."""
    try:
        status = command(watchdog) or DONE
    except UserError as error:
        if not dist.is_initialized() and on_several_hosts():
            error = _share_with_other_hosts(error, watchdog)
        rank, on_this_rank_only = current_rank(), not isinstance(error, SharedUserError)
        if rank != 0 and not dist.is_initialized():
            # Rank 0 most likely reports the same and exits, and then the launcher stops this rank. If it does
            # not, something is wrong on this machine only.
            time.sleep(_RANK_0_REPORTS_FIRST)
        if rank == 0 or on_this_rank_only:
            where = f" on rank {rank}" if rank else ""
            logger.error("%s", error, extra=FILE_ONLY)
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        if on_this_rank_only and dist.is_initialized():
            watchdog.end_all_ranks()  # the other ranks are waiting in a collective
        disconnect(watchdog)
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            logger.error("%s", type(error).__name__, exc_info=error, extra=FILE_ONLY)
            raise
        watchdog.end_all_ranks(error)
    disconnect(watchdog)
    return status


def disconnect(watchdog: Watchdog) -> None:
    """Wait for all ranks and destroy the process group; without this, a rank can abort inside gloo."""
    if dist.is_initialized():
        with watchdog.activity("exiting"):
            dist.barrier()
        watchdog.stop()
        dist.destroy_process_group()


def _share_with_other_hosts(error: UserError, watchdog: Watchdog) -> UserError:
    """Exit together with the other hosts, whose launchers know nothing of this one. Collective."""
    try:
        connect(watchdog)
        raise_on_all_ranks(str(error))
    except SharedUserError as shared:
        return shared
    except Exception:
        # The other hosts cannot be reached, which matters less than the error that stops this rank.
        return error
    raise AssertionError


def _explain_failed_connection(reason: str) -> str:
    """Return a message for the user about processes that did not connect."""
    size, address, port = (os.environ[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if "EADDRINUSE" in reason:
        return (
            f"MASTER_PORT: port {port} of {socket.gethostname()} is in use, perhaps by another run; choose "
            f"another one, as in --master_port {free_port()} before launch/pretrain.py (deepspeed, torchrun)"
        )
    return (
        f"not all {size} processes have connected to {address}, port {port} ({reason}); start one on every "
        "host, and allow TCP between the hosts; DEEPSPEED_TIMEOUT sets how many minutes they wait"
    )


def _share_cores() -> None:
    """Divide the cores among the processes of this machine, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // ranks_on_this_host(default=1)))
