"""Resources of this machine: cores, memory, ports."""

import contextlib
import ctypes
import os
import random
import resource
import socket
import sys
from pathlib import Path

MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
"""Environment variables in which MPI implementations pass a process its rank."""


def started_by_mpi() -> bool:
    """Return whether ``mpirun``, or ``srun`` in its place, started this process."""
    return any(name in os.environ for name in MPI_RANKS)


def available_cores() -> int:
    """Return the number of cores that this process may use, on a cluster often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Return the memory in bytes that is still free on the machine, or in the container if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not on Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    available = int(line.split()[1]) << 10
    group = Path("/sys/fs/cgroup")
    # Without a limit, the file is missing or contains "max".
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, max(0, limit - used))
    return available


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, including shared pages; 0 without ``/proc``."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """Return the peak resident memory of this process in bytes, including shared pages."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            (line,) = (line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    except OSError:
        # Not on Linux. On Linux ru_maxrss is not usable: a process inherits its parent's value.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next tensors (glibc; no effect elsewhere).

    By default glibc returns large blocks to the system at once, so that each tensor of a training step is
    mapped and zeroed page by page again: a fifth of the time of a step on a CPU. Blocks of more than 32 MiB
    are still returned.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        library.mallopt(m_trim_threshold, -1)
        library.mallopt(m_mmap_threshold, 32 << 20)  # the largest value that glibc accepts


def reset_peak_memory() -> None:
    """Release freed memory to the system and reset the value of ``peak_resident_bytes`` (Linux)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_port() -> int:
    """Return a free TCP port where the processes of a run can meet.

    It takes the processes seconds to bind the port. The port is therefore outside the ephemeral range (from
    32768 on Linux, from 49152 elsewhere), from which the system could give it to another program meanwhile.
    """
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.randrange(10_000, 29_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("no free TCP port between 10000 and 29000")
