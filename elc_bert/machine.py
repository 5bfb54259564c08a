"""What this machine has to offer."""

import os
import socket

#: Where implementations of MPI tell a process its rank.
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def started_by_mpi() -> bool:
    """Whether ``mpirun``, or ``srun`` in its place, started this process."""
    return any(name in os.environ for name in MPI_RANKS)


def available_cores() -> int:
    """Processor cores that this process may use; on a cluster often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_port() -> int:
    """A TCP port that nobody listens on, for the processes of one run to meet at."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
