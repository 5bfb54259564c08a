"""Check that all ranks still hold the same weights.

Nothing else compares them: a fault of one device's memory or arithmetic makes the ranks drift apart without
an error, and a checkpoint then holds the weights of some rank.
"""

import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.distributed.collectives import SharedUserError, same_on_all_ranks
from elc_bert.distributed.world import World
from elc_bert.engine.protocol import Engine
from elc_bert.training.checks.agreement import ranks_with_hosts

BLOCK_SIZE = 1 << 18
"""Number of elements that are summed together, so that their int64 copies stay in a processor's cache."""
MAX_NAMED = 3
"""Number of tensors that a message names."""
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(engine: Engine, world: World, step: int) -> None:
    """Compare the weights that forward and backward use, bit by bit. Collective: one all-reduce.

    At ZeRO 3 only the small tensors that every rank keeps whole have replicas. Moments and master weights,
    which are replicated at ZeRO stage 0 only, are not compared: if they differ, the weights differ from the
    next step on.

    Raises:
        UserError: Weights differ; the message names ranks, hosts and tensors. Raised on all ranks.
    """
    held = {name: tensor for name, tensor in engine.module.named_parameters() if tensor.numel()}
    if not held:
        return
    sums = torch.stack([checksum(tensor.detach()) for tensor in held.values()])
    if same_on_all_ranks(sums):
        return
    found: list[Any] = [None] * world.size
    dist.all_gather_object(found, (socket.gethostname(), sums.tolist()))
    hosts, all_sums = zip(*found, strict=True)
    raise SharedUserError(
        f"step {step}: {_describe_difference(list(held), hosts, all_sums)}; a device's memory or arithmetic "
        "is faulty: leave that device out, and resume from a checkpoint written before"
    )


def checksum(tensor: Tensor) -> Tensor:
    """Return a checksum that any changed bit and any two swapped values change, int64, on the device.

    It is the sum of all bit patterns, each times another odd number, modulo 2^64, and therefore the same in
    any order of summation.
    """
    patterns = tensor.contiguous().view(_INTEGERS[tensor.element_size()]).flatten()
    odd = torch.arange(1, 2 * min(len(patterns), BLOCK_SIZE), 2, device=tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, block in enumerate(torch.split(patterns, BLOCK_SIZE)):
        block = block.long()
        total += (block * odd[: len(block)]).sum() + 2 * BLOCK_SIZE * number * block.sum()
    return total


def _describe_difference(names: Sequence[str], hosts: Sequence[str], sums: Sequence[Sequence[int]]) -> str:
    """Name the ranks that differ from the majority, if there is one, and the tensors in which they differ."""
    by_tensor = list(zip(*sums, strict=True))
    different = [name for name, values in zip(names, by_tensor, strict=True) if len(set(values)) > 1]
    more = len(different) - MAX_NAMED
    tensors = ", ".join(different[:MAX_NAMED]) + (f" and {more} more tensors" if more > 0 else "")
    by_rank = [tuple(each) for each in sums]
    (most, count), *_ = Counter(by_rank).most_common()
    if 2 * count <= len(by_rank):
        return f"{ranks_with_hosts(range(len(hosts)), hosts)} hold different weights in {tensors}"
    others = [rank for rank, each in enumerate(by_rank) if each != most]
    verb = "holds" if len(others) == 1 else "hold"
    return f"{ranks_with_hosts(others, hosts)} {verb} other weights than the majority in {tensors}"
