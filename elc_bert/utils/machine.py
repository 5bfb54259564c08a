"""What this machine has to offer."""

import contextlib
import ctypes
import os
import random
import resource
import socket
import sys
from pathlib import Path

#: Where implementations of MPI tell a process its rank.
MPI_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")


def started_by_mpi() -> bool:
    """Whether ``mpirun``, or ``srun`` in its place, started this process."""
    return any(name in os.environ for name in MPI_RANKS)


def available_cores() -> int:
    """Processor cores that this process may use; on a cluster often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that processes can still take: of the machine, or of the container if that has less."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:  # not on Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (line,) = (line for line in lines if line.startswith("MemAvailable:"))
    available = int(line.split()[1]) << 10
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit: no file, or "max" in it
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        available = min(available, max(0, limit - used))
    return available


def resident_bytes() -> int:
    """Memory that this process has now, shared pages included; 0 where there is no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """Most memory that this process has had at once, shared pages included."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            (line,) = (line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) << 10
    except OSError:
        # Not on Linux. There it would not do: a process begins with the figure of the one that started it.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10


def keep_freed_memory() -> None:
    """Have the C library keep the memory that is freed, for the next tensors (glibc; elsewhere no effect).

    By default it gives blocks back at once, and every tensor of a training step is mapped and cleared anew,
    page by page: a fifth of the time of a step on a CPU. Blocks of more than 32 MiB still go back.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        library.mallopt(m_trim_threshold, -1)
        library.mallopt(m_mmap_threshold, 32 << 20)  # the most that it takes


def forget_peak() -> None:
    """Give back what the C library keeps of freed memory; ``peak_resident_bytes`` begins anew (Linux)."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def free_port() -> int:
    """A TCP port that nobody listens on, for the processes of one run to meet at.

    It takes them seconds to come there. So it is none of those that systems give to whatever asks for any
    port (from 32768 on Linux, 49152 elsewhere), of which other runs may get the same one meanwhile.
    """
    draw = random.SystemRandom()
    for _ in range(1000):
        port = draw.randrange(10_000, 29_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port
    raise OSError("no free TCP port between 10000 and 29000")
