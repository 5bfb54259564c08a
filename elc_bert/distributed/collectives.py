"""Collectives by which the ranks of a run agree: on errors, on what rank 0 has found, on equal values."""

import socket
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from elc_bert.distributed.world import World
from elc_bert.utils.errors import UserError, describe_os_error

T = TypeVar("T")
P = ParamSpec("P")


class SharedUserError(UserError):
    """A user error that has been raised on all ranks, so that they can exit together."""


def agree(world: World, action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an action on every rank; if any rank raises a UserError, raise it on all of them. Collective.

    Without this, a rank that cannot read its files would leave the others waiting for it. An error of the
    file system counts as one, too.

    Args:
        world: Processes of the run.
        action: Action of this rank. It may raise UserError, or OSError with the name of a file.
        *args: Arguments of the action.
        **kwargs: Keyword arguments of the action.

    Returns:
        Result of the action on this rank.

    Raises:
        SharedUserError: The action failed on some rank.
    """
    result: list[T] = []
    problem = None
    try:
        result.append(action(*args, **kwargs))
    except UserError as error:
        problem = str(error)
    except OSError as error:
        if error.filename is None:
            raise
        problem = describe_os_error(error)
    world.watchdog.progress()
    raise_on_all_ranks(problem)
    return result[0]


def raise_on_all_ranks(problem: str | None) -> None:
    """Raise the same error on all ranks if any rank has a problem. Collective.

    Args:
        problem: Message of this rank, or None if nothing is wrong here.

    Raises:
        SharedUserError: Some rank has a problem. If only some hosts have it, the message names the host.
    """
    answers: list[tuple[str | None, str]] = [(None, "")] * dist.get_world_size()
    dist.all_gather_object(answers, (problem, socket.gethostname()))
    healthy_hosts = {host for message, host in answers if message is None}
    for message, host in answers:
        if message is not None:
            # A file, for example, may be missing on some hosts only.
            raise SharedUserError(message if healthy_hosts <= {host} else f"{message} (on host {host})")


def from_main(world: World, action: Callable[[], T]) -> T:
    """Run an action on rank 0 and return its result on all ranks. Collective.

    Ranks may see changes of a shared file system at different times, so only rank 0 looks at it.

    Args:
        world: Processes of the run.
        action: Action whose result is picklable.

    Raises:
        SharedUserError: The action raised a UserError on rank 0.
    """
    result = agree(world, lambda: [action()] if world.is_main else None)
    found = [result]
    dist.broadcast_object_list(found, src=0)
    assert found[0] is not None
    return found[0][0]


def same_on_all_ranks(values: Tensor) -> bool:
    """Return whether an int64 tensor is the same on every rank. Collective; waits for the device."""
    # The maximum of -x - 1 gives the minimum of x, without overflow and in the same all-reduce.
    largest = torch.stack([values, ~values])
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return torch.equal(largest[0], ~largest[1])


def max_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Return the element-wise maximum of ``values`` over all ranks. Collective."""
    largest = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return [float(value) for value in largest.tolist()]
