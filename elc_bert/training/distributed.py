"""Joining the other processes of a run, agreeing with them, and leaving in order."""

import atexit
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from elc_bert.errors import UserError
from elc_bert.machine import MPI_RANKS, available_cores, free_port, keep_freed_memory, started_by_mpi
from elc_bert.training.srun import places_from_srun, tasks_of_srun
from elc_bert.training.statuses import DONE, FAILED

T = TypeVar("T")
#: The environment of a process that no launcher started; a free port lets several runs share a machine.
_ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}


class SharedUserError(UserError):
    """A mistake that all ranks know of, so that they can leave together."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def connect() -> World:
    """Join the processes that ``deepspeed``, ``torchrun``, ``mpirun`` or ``srun`` started, or run alone."""
    # DeepSpeed warns on every rank that there is no GPU; the table of the run says which devices it has.
    logging.disable(logging.WARNING)
    import deepspeed
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    logging.disable(logging.NOTSET)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed|deepspeed")
    # DeepSpeed compiles this CPU operation at start (it serves inference only), which takes a minute
    # and a C++ compiler. Saying that it is not compatible leaves it out.
    deepspeed.ops.__compatible_ops__[ShareMemCommBuilder.NAME] = False
    if "RANK" not in os.environ:
        os.environ.update(_places())
    accelerator = get_accelerator()
    on_cpu = accelerator.device_name() == "cpu"
    if not on_cpu:
        # Slurm may show a process no GPU but its own. DeepSpeed takes LOCAL_RANK for the index of the device.
        os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % accelerator.device_count())
    deepspeed.init_distributed(verbose=False)
    if on_cpu:
        _share_cores()
        keep_freed_memory()
        return World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    local_rank = int(os.environ["LOCAL_RANK"])
    accelerator.set_device(local_rank)
    device = torch.device(accelerator.device_name(local_rank))
    return World(dist.get_rank(), dist.get_world_size(), device)


def leave() -> None:
    """Shut the process group down; a rank that exits without doing so can abort inside gloo."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def agree(action: Callable[[], T]) -> T:
    """Run a step of the set-up on every rank; if one is refused, all raise the same ``SharedUserError``.

    Without this a rank that cannot read its files would leave the others waiting for it.
    """
    result, problem = None, None
    try:
        result = action()
    except UserError as error:
        problem = str(error)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for other in problems:
        if other is not None:
            raise SharedUserError(other)
    return result  # type: ignore[return-value]


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process: with the status it returns (None for 0), see ``training.statuses``,
    or 1 after a ``UserError`` printed in one line.

    Any other exception passes through.
    """
    status = status_of(command)
    # The interpreter is not taken down: threads of gloo outlive the process group where something still
    # refers to it, and one that meets a finalised interpreter aborts the process, about once in 20 exits
    # on a busy machine.
    wind_down()
    os._exit(status)


def wind_down() -> None:
    """What the end of the interpreter would do, for a process that ends without it."""
    atexit._run_exitfuncs()
    if "mpi4py.MPI" in sys.modules:
        from mpi4py import MPI

        MPI.Finalize()  # mpirun takes a process that ends without it for a crash
    sys.stdout.flush()
    sys.stderr.flush()


def status_of(command: Callable[[], int | None]) -> int:
    """Run a command, leave the other processes; returns its status, or 1 after a ``UserError`` in one line.

    Any other exception passes through.
    """
    try:
        status = command() or DONE
    except UserError as error:
        rank, alone_in_it = _rank_from_environment(), not isinstance(error, SharedUserError)
        if rank != 0 and not dist.is_initialized():
            # Rank 0 most likely says the same and ends, and then the launcher stops this rank. If not,
            # something is wrong on this machine only.
            time.sleep(30.0)
        if rank == 0 or alone_in_it:
            where = f" on rank {rank}" if rank else ""
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        if alone_in_it and dist.is_initialized():
            # The others wait in some collective; the launcher ends them, nothing here can.
            os._exit(FAILED)
        leave()
        return FAILED
    leave()
    return status


def _places() -> dict[str, str]:
    """What torch wants to find in the environment, where no launcher of its own kind has put it."""
    if tasks := tasks_of_srun():  # even if srun also speaks a protocol of MPI: this needs no mpi4py
        return places_from_srun() if tasks > 1 else _ALONE
    return _places_from_mpi() if started_by_mpi() else _ALONE


def _places_from_mpi() -> dict[str, str]:
    """What torch wants to find in the environment, which ``mpirun`` does not put there. Collective.

    DeepSpeed's own discovery needs the ``hostname`` command and uses one port for every run.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            f"this process was started by MPI, but mpi4py cannot be used: {error}; install mpi4py, or use "
            "deepspeed or torchrun"
        ) from None
    world = MPI.COMM_WORLD
    neighbours = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_machine = neighbours.Get_size() == world.Get_size()
    address = "127.0.0.1" if one_machine else _own_address()
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    meeting |= {name: os.environ[name] for name in meeting if name in os.environ}
    return {
        "RANK": str(world.Get_rank()),
        "LOCAL_RANK": str(neighbours.Get_rank()),
        "LOCAL_WORLD_SIZE": str(neighbours.Get_size()),
        "WORLD_SIZE": str(world.Get_size()),
        **world.bcast(meeting),
    }


def _own_address() -> str:
    """The address that this machine uses towards others; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a documentation address: only the route to it is looked up
        except OSError:
            return socket.gethostbyname(socket.gethostname())
        return probe.getsockname()[0]


def _rank_from_environment() -> int:
    if dist.is_initialized():
        return dist.get_rank()
    names = ("RANK", "SLURM_PROCID") if tasks_of_srun() else ("RANK", *MPI_RANKS)
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def _share_cores() -> None:
    """Divide the cores between the processes of this machine, unless the user has said how."""
    if "OMP_NUM_THREADS" not in os.environ:
        names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
        processes = next((int(os.environ[name]) for name in names if name in os.environ), 1)
        torch.set_num_threads(max(1, available_cores() // processes))
