"""Whether a run has the memory that it will need, said before its first step, and where it ran out of it."""

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
CLEARLY = 1.25
"""How far the plan's need must exceed what is there for the run to be refused: the plan is no measurement."""
CLOSE = 0.8
"""Share of what is there from which on the table warns: allocators have holes."""
MEND = (
    "lower elc_bert.training.max_micro_batch_size, or train_micro_batch_size_per_gpu where it is set "
    "(--find-micro-batch finds what fits)"
)


def check_memory(config: RunConfig, kernels: Kernels, world: World) -> str:
    """Compare what the planner says that the run needs with what this rank's device has free.

    Of both sequence lengths: the longer comes late in a run.

    Returns:
        a line for the table of the run.

    Raises:
        UserError: it clearly does not fit.
    """
    on_cpu = world.device.type == "cpu"
    room = free_memory(world.device)
    plan = _plan(config, kernels, world, room)
    needed, host = plan.worst.memory.total, plan.worst.memory.host
    if needed > CLEARLY * room:
        (message,) = warnings(plan)
        raise UserError(f"{config.origin}{socket.gethostname()}, rank {world.rank}: {message}")
    if host > CLEARLY * (host_room := _share_of_host()) and not on_cpu:
        raise UserError(
            f"{config.origin}{socket.gethostname()}: the optimizer in the host's memory needs "
            f"{host / GIB:.2f} GiB for each device, of {host_room / GIB:.2f} GiB: leave "
            "zero_optimization.offload_optimizer out, or use more nodes"
        )
    tight = f"; close: if it runs out, {MEND}" if needed > CLOSE * room else ""
    return f"about {needed / GIB:.2f} of {room / GIB:.2f} GiB free per device{tight}"


def free_memory(device: torch.device) -> float:
    """Bytes that this process may have altogether on its device, what it has already included."""
    if device.type == "cpu":
        return resident_bytes() + _share_of_host()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device)


@contextlib.contextmanager
def telling_out_of_memory() -> Iterator[None]:
    """Within this block running out of memory is one line of this rank's, not a traceback.

    Raises:
        UserError: in place of what PyTorch or Python raises.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        first = str(error).partition("\n")[0]
        raise UserError(f"{socket.gethostname()}: out of memory ({first}): {MEND}") from None


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The allocator of CPUs, and CUDA and NCCL outside of PyTorch's own allocator, have no class for it.
    return any(words in str(error) for words in ("can't allocate memory", "out of memory"))


def _share_of_host() -> float:
    return available_memory() / ranks_on_this_host(default=1)


def _plan(config: RunConfig, kernels: Kernels, world: World, memory: float) -> Plan:
    # Of the device only the memory matters here, not the times.
    device = Device(world.device.type, 1.0, 1.0, memory, 1.0, is_cpu=world.device.type == "cpu")
    is_plain = type(kernels) is Kernels
    return make_plan(config, Machine(device, world.size, 1.0, 1.0, "plain" if is_plain else "fused"))
