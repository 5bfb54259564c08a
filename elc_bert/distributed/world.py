"""Joining the other processes of a run, agreeing with them, and leaving in order."""

import atexit
import contextlib
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist

from elc_bert.distributed.exit_status import DONE, FAILED
from elc_bert.distributed.network import address_outwards, address_towards, interface_of, is_loopback
from elc_bert.distributed.slurm import places_from_srun, tasks_of_srun
from elc_bert.distributed.watchdog.diagnosis import Limits
from elc_bert.distributed.watchdog.watchdog import Watch
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import MPI_RANKS, available_cores, free_port, keep_freed_memory, started_by_mpi

T = TypeVar("T")
#: The environment of a process that no launcher started; a free port lets several runs share a machine.
_ALONE = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
_NO_ADDRESS = (
    "MASTER_ADDR: this host cannot tell by which address other hosts reach it; set MASTER_ADDR to an address "
    "of the first host, and GLOO_SOCKET_IFNAME to the name of the network interface"
)
#: Of this process, from the first ``connect`` on.
_watch = Watch()


class SharedUserError(UserError):
    """A mistake that all ranks know of, so that they can leave together."""


@dataclass(frozen=True)
class World:
    """This process among all processes of the run."""

    rank: int
    size: int
    device: torch.device
    watch: Watch = field(default_factory=Watch)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def connect(limits: Limits | None = None) -> World:
    """Join the processes that ``deepspeed``, ``torchrun``, ``mpirun`` or ``srun`` started, or run alone.

    Args:
        limits: of the watch that ends all ranks if one dies or hangs; by default a hang is waited for.

    Raises:
        UserError: not all processes have come, or they do not reach each other.
    """
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
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _interface_towards_others()):
        os.environ["GLOO_SOCKET_IFNAME"] = interface
    accelerator = get_accelerator()
    local_rank = int(os.environ["LOCAL_RANK"])
    on_cpu = accelerator.device_name() == "cpu"
    # Slurm may show a process no GPU but its own. DeepSpeed takes LOCAL_RANK for the index of the device.
    index = 0 if on_cpu else local_rank % accelerator.device_count()
    os.environ["LOCAL_RANK"] = str(local_rank if on_cpu else index)
    try:
        deepspeed.init_distributed(verbose=False)
    except dist.DistError as error:
        raise UserError(_why_not_met(str(error).splitlines()[0])) from None
    if on_cpu:
        _share_cores()
        keep_freed_memory()
        device = torch.device("cpu")
    else:
        accelerator.set_device(index)
        device = torch.device(accelerator.device_name(index))
    world = World(dist.get_rank(), dist.get_world_size(), device, _watch)
    if world.size > 1:
        _watch.start(world.rank, local_rank, world.size, limits or Limits())
        outlast_the_watch()
    return world


def _why_not_met(reason: str) -> str:
    """In the user's words why the processes do not come together."""
    size, address, port = (os.environ[name] for name in ("WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    if "EADDRINUSE" in reason:
        return (
            f"MASTER_PORT: port {port} of {socket.gethostname()} is in use, perhaps by another run; choose "
            f"another one, as in --master_port {free_port()} before launch/pretrain.py (deepspeed, torchrun)"
        )
    return (
        f"not all {size} processes have come to {address}, port {port} ({reason}); start one on every host, "
        "and allow TCP between the hosts; DEEPSPEED_TIMEOUT is how many minutes they wait"
    )


def outlast_the_watch() -> None:
    """Have collectives of all process groups wait longer than the watch does, whose message is clearer."""
    limits = _watch.limits
    wait = timedelta(seconds=limits.hang + 2 * limits.silence) if limits.hang else timedelta(days=365)
    for group in dist.distributed_c10d._world.pg_map:
        dist.distributed_c10d._set_pg_timeout(wait, group)


def leave() -> None:
    """Shut the process group down; a rank that exits without doing so can abort inside gloo."""
    if dist.is_initialized():
        with _watch.during("leaving"):
            dist.barrier()
        _watch.stop()
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
    _watch.progress()
    _stop_on(problem)
    return result  # type: ignore[return-value]


def _stop_on(problem: str | None) -> None:
    """Raise the same ``SharedUserError`` on all ranks if any has a problem. Collective."""
    answers: list[tuple[str | None, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(answers, (problem, socket.gethostname()))
    sound_hosts = {host for told, host in answers if told is None}
    for told, host in answers:
        if told is not None:
            # A file, say, that only some hosts have.
            raise SharedUserError(told if sound_hosts <= {host} else f"{told} (on host {host})")


def from_main(action: Callable[[], T]) -> T:
    """What rank 0 finds, on all ranks: they may see a shared file system at different times. Collective.

    Args:
        action: its result must be picklable.

    Raises:
        UserError: on all ranks, if rank 0 raises it.
    """
    result = agree(lambda: action() if dist.get_rank() == 0 else None)
    found = [result]
    dist.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def run_command(command: Callable[[], int | None]) -> NoReturn:
    """Run a command and end the process: with the status it returns (None for 0), see ``training.statuses``,
    or 1 after a ``UserError`` printed in one line.

    Any other exception ends all ranks, with its traceback; on a process alone it passes through.
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

    Any other exception ends all ranks, with its traceback; on a process alone it passes through.
    """
    try:
        status = command() or DONE
    except UserError as error:
        if not dist.is_initialized() and _on_several_hosts():
            error = _tell_the_other_hosts(error)
        rank, alone_in_it = _rank_from_environment(), not isinstance(error, SharedUserError)
        if rank != 0 and not dist.is_initialized():
            # Rank 0 most likely says the same and ends, and then the launcher stops this rank. If not,
            # something is wrong on this machine only.
            time.sleep(30.0)
        if rank == 0 or alone_in_it:
            where = f" on rank {rank}" if rank else ""
            print(f"error{where}: {error}", file=sys.stderr, flush=True)
        if alone_in_it and dist.is_initialized():
            _watch.end_all()  # the others wait in some collective
        leave()
        return FAILED
    except (Exception, KeyboardInterrupt) as error:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            raise
        _watch.end_all(error)
    leave()
    return status


def _tell_the_other_hosts(error: UserError) -> UserError:
    """Leave together with the other hosts, whose launchers know nothing of this one. Collective."""
    try:
        connect()
        _stop_on(str(error))
    except SharedUserError as shared:
        return shared
    except Exception:
        # They cannot be reached, which matters less than why this rank stops.
        return error
    raise AssertionError


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
    meeting = {"MASTER_ADDR": os.environ.get("MASTER_ADDR"), "MASTER_PORT": os.environ.get("MASTER_PORT")}
    meeting["MASTER_ADDR"] = meeting["MASTER_ADDR"] or ("127.0.0.1" if one_machine else address_outwards())
    meeting["MASTER_PORT"] = meeting["MASTER_PORT"] or str(free_port())
    meeting = world.bcast(meeting)
    if meeting["MASTER_ADDR"] is None:
        raise SharedUserError(_NO_ADDRESS)
    return {
        "RANK": str(world.Get_rank()),
        "LOCAL_RANK": str(neighbours.Get_rank()),
        "LOCAL_WORLD_SIZE": str(neighbours.Get_size()),
        "WORLD_SIZE": str(world.Get_size()),
        **meeting,
    }


def _interface_towards_others() -> str | None:
    """The network interface for gloo.

    By itself it takes that of the address which the host's own name resolves to, on Debian 127.0.1.1.
    """
    address = None
    with contextlib.suppress(OSError):  # torch waits for a host that is not yet known
        address = address_towards(os.environ["MASTER_ADDR"])
    if _on_several_hosts() and (address is None or is_loopback(address)):
        address = address_outwards()
        if address is None:
            raise UserError(_NO_ADDRESS)
    return None if address is None else interface_of(address)


def ranks_here(default: int) -> int:
    """Number of ranks that the launcher started on this host."""
    return _number("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", default=default)


def _on_several_hosts() -> bool:
    ranks = _number("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", default=1)
    return ranks > ranks_here(default=ranks)


def _rank_from_environment() -> int:
    if dist.is_initialized():
        return dist.get_rank()
    names = ("RANK", "SLURM_PROCID") if tasks_of_srun() else ("RANK", *MPI_RANKS)
    return _number(*names, default=0)


def _number(*names: str, default: int) -> int:
    """The first of these variables that the launcher has set."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def _share_cores() -> None:
    """Divide the cores between the processes of this machine, unless the user has said how."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, available_cores() // ranks_here(default=1)))
