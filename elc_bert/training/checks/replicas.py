"""Making sure that all ranks still hold the same weights.

Nothing compares them otherwise: a fault of one device's memory or arithmetic makes the ranks drift apart
without an error, and what is saved is the weights of some rank.
"""

import socket
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

#: Numbers that are summed at once, so that their int64 copies stay in a processor's cache.
from elc_bert.distributed.collectives import SharedUserError, same_on_all_ranks
from elc_bert.distributed.world import World
from elc_bert.training.checks.agreement import ranks_in_words

#: Numbers that are summed at once, so that their int64 copies stay in a processor's cache.
AT_ONCE = 1 << 18
NAMED = 3
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_replicas(engine: Any, world: World, step: int) -> None:
    """Compare the weights that forward and backward use, to the last bit. Collective: one all-reduce.

    At ZeRO 3 these are the small tensors that every rank keeps whole; of the others there are no replicas.
    Moments and masters, which ranks have copies of without ZeRO only, are not compared: where they differ,
    the weights do from the next step on.

    Raises:
        UserError: on all ranks alike; names the ranks, their hosts and the tensors.
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
        f"step {step}: {_who_differs(list(held), hosts, all_sums)}; a device's memory or arithmetic is at "
        "fault: leave it out, and resume from a checkpoint written before"
    )


def checksum(tensor: Tensor) -> Tensor:
    """A number, int64 on the tensor's device, that any changed bit and any two exchanged numbers change.

    The sum of all bit patterns, each times another odd number, modulo 2^64: the same in whatever order it is
    added up.
    """
    patterns = tensor.contiguous().view(_INTEGERS[tensor.element_size()]).flatten()
    odd = torch.arange(1, 2 * min(len(patterns), AT_ONCE), 2, device=tensor.device)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for number, part in enumerate(patterns.split(AT_ONCE)):
        part = part.long()
        total += (part * odd[: len(part)]).sum() + 2 * AT_ONCE * number * part.sum()
    return total


def _who_differs(names: Sequence[str], hosts: Sequence[str], sums: Sequence[Sequence[int]]) -> str:
    """Ranks apart from the majority, if there is one, and the tensors that they differ in."""
    by_tensor = list(zip(*sums, strict=True))
    different = [name for name, values in zip(names, by_tensor, strict=True) if len(set(values)) > 1]
    more = len(different) - NAMED
    tensors = ", ".join(different[:NAMED]) + (f" and {more} more tensors" if more > 0 else "")
    whole = [tuple(each) for each in sums]
    (most, count), *_ = Counter(whole).most_common()
    if 2 * count <= len(whole):
        return f"{ranks_in_words(range(len(hosts)), hosts)} hold different weights in {tensors}"
    others = [rank for rank, each in enumerate(whole) if each != most]
    verb = "holds" if len(others) == 1 else "hold"
    return f"{ranks_in_words(others, hosts)} {verb} other weights than the majority in {tensors}"
