"""Check, before the first step, that a run has enough memory; explanation of an out-of-memory error."""

import contextlib
import socket
from collections.abc import Iterator

import torch

from elc_bert.config.schema import RunConfig
from elc_bert.distributed.launchers import ranks_on_this_host
from elc_bert.distributed.world import World
from elc_bert.kernels import Kernels
from elc_bert.planner.devices import Device
from elc_bert.planner.plan import Machine, Plan, make_plan, warnings
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import available_memory, resident_bytes

GIB = 2**30
REFUSED_ABOVE = 1.25
"""Planned memory, relative to free memory, above which a run is refused. A plan is no measurement."""
WARNED_ABOVE = 0.8
"""Planned memory, relative to free memory, above which the table warns: allocators fragment memory."""
ADVICE = (
    "lower elc_bert.training.max_micro_batch_size, or train_micro_batch_size_per_gpu if it is set "
    "(--find-micro-batch finds the largest that fits)"
)


def check_memory(config: RunConfig, kernels: Kernels, world: World) -> str:
    """Compare the memory that the planner expects with the free memory of this rank's device.

    Both sequence lengths are checked: the longer one comes late in a run.

    Returns:
        A line for the table of the run.

    Raises:
        UserError: The run clearly does not fit.
    """
    on_cpu = world.device.type == "cpu"
    free = free_memory(world.device)
    plan = _plan(config, kernels, world, free)
    needed, host = plan.worst.memory.total, plan.worst.memory.host
    if needed > REFUSED_ABOVE * free:
        (message,) = warnings(plan)
        raise UserError(f"{config.origin}{socket.gethostname()}, rank {world.rank}: {message}")
    if host > REFUSED_ABOVE * (host_free := _share_of_host_memory()) and not on_cpu:
        raise UserError(
            f"{config.origin}{socket.gethostname()}: the optimizer in host memory needs "
            f"{host / GIB:.2f} GiB for each device, of {host_free / GIB:.2f} GiB; leave out "
            "zero_optimization.offload_optimizer, or use more nodes"
        )
    tight = f"; close to the limit: if memory runs out, {ADVICE}" if needed > WARNED_ABOVE * free else ""
    return f"about {needed / GIB:.2f} of {free / GIB:.2f} GiB free per device{tight}"


def free_memory(device: torch.device) -> float:
    """Return the bytes that this process can have on its device, including what it already has."""
    if device.type == "cpu":
        return resident_bytes() + _share_of_host_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


@contextlib.contextmanager
def explaining_out_of_memory() -> Iterator[None]:
    """Replace the traceback of an out-of-memory error within this block by one line of this rank.

    Raises:
        UserError: Memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        raise UserError(f"{socket.gethostname()}: out of memory ({first}); {ADVICE}") from None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The CPU allocator, and CUDA and NCCL outside of PyTorch's own allocator, raise no special class.
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _share_of_host_memory() -> float:
    return available_memory() / ranks_on_this_host(default=1)


def _plan(config: RunConfig, kernels: Kernels, world: World, memory: float) -> Plan:
    # Only the memory of the device matters here, not the times.
    device = Device(world.device.type, 1.0, 1.0, memory, 1.0, is_cpu=world.device.type == "cpu")
    is_plain = type(kernels) is Kernels
    return make_plan(config, Machine(device, world.size, 1.0, 1.0, "plain" if is_plain else "fused"))
