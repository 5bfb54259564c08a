"""Environment that launchers give to a process: torchrun, DeepSpeed, mpirun and srun.

torch and DeepSpeed read RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT. ``set_environment`` fills
them in for launchers that use other names, and for a process that was started without a launcher.
"""

import contextlib
import os

import torch.distributed as dist

from elc_bert.distributed.collectives import SharedUserError
from elc_bert.distributed.network import address_towards, external_address, interface_of, is_loopback
from elc_bert.distributed.slurm import environment_from_srun, srun_tasks
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import MPI_RANKS, free_port, started_by_mpi

SINGLE_PROCESS = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
"""Environment without a launcher. Port 0 takes any free port, so that several runs can share a machine."""
_NO_ADDRESS = (
    "MASTER_ADDR: the address by which other hosts reach this host is unknown; set MASTER_ADDR to an address "
    "of the first host, and GLOO_SOCKET_IFNAME to the name of the network interface"
)


def set_environment() -> None:
    """Set the variables that torch and DeepSpeed read, unless the launcher has done so. Collective under MPI.

    Raises:
        UserError: MPI is unusable, or this host does not know by which address other hosts reach it.
    """
    if "RANK" not in os.environ:
        os.environ.update(_environment())
    if "GLOO_SOCKET_IFNAME" not in os.environ and (interface := _gloo_interface()):
        os.environ["GLOO_SOCKET_IFNAME"] = interface


def ranks_on_this_host(default: int) -> int:
    """Return the number of ranks that the launcher started on this host."""
    return _first_number("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", default=default)


def on_several_hosts() -> bool:
    """Return whether the launcher started ranks on more than one host."""
    ranks = _first_number("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", default=1)
    return ranks > ranks_on_this_host(default=ranks)


def current_rank() -> int:
    """Return the rank of this process, also before the process group exists."""
    if dist.is_initialized():
        return dist.get_rank()
    names = ("RANK", "SLURM_PROCID") if srun_tasks() else ("RANK", *MPI_RANKS)
    return _first_number(*names, default=0)


def _environment() -> dict[str, str]:
    # srun is checked first: it may also support MPI, but reading its own variables needs no mpi4py.
    if tasks := srun_tasks():
        return environment_from_srun() if tasks > 1 else SINGLE_PROCESS
    return _environment_from_mpi() if started_by_mpi() else SINGLE_PROCESS


def _environment_from_mpi() -> dict[str, str]:
    """Return the variables that ``mpirun`` does not set. Collective.

    DeepSpeed's own discovery (``deepspeed.comm.mpi_discovery``, 0.19.8) needs the ``hostname`` command and
    uses the same port for every run.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(
            f"this process was started by MPI, but mpi4py cannot be used: {error}; run: "
            "pip install 'elc-bert[mpi]', or use deepspeed or torchrun"
        ) from None
    world = MPI.COMM_WORLD
    on_host = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_host = on_host.Get_size() == world.Get_size()
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if one_host else external_address())
    port = os.environ.get("MASTER_PORT") or str(free_port())
    address, port = world.bcast((address, port))
    if address is None:
        raise SharedUserError(_NO_ADDRESS)
    return {
        "RANK": str(world.Get_rank()),
        "LOCAL_RANK": str(on_host.Get_rank()),
        "LOCAL_WORLD_SIZE": str(on_host.Get_size()),
        "WORLD_SIZE": str(world.Get_size()),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }


def _gloo_interface() -> str | None:
    """Return the network interface for gloo, or None to leave the choice to gloo.

    By itself gloo takes the interface of the address to which this host's name resolves, which is 127.0.1.1
    on Debian.
    """
    address = None
    with contextlib.suppress(OSError):  # the name may not be known yet: torch waits for it
        address = address_towards(os.environ["MASTER_ADDR"])
    if on_several_hosts() and (address is None or is_loopback(address)):
        address = external_address()
        if address is None:
            raise UserError(_NO_ADDRESS)
    return None if address is None else interface_of(address)


def _first_number(*names: str, default: int) -> int:
    """Return the value of the first of these variables that is set."""
    return next((int(os.environ[name]) for name in names if name in os.environ), default)
