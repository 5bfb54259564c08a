"""The definitions, compiled by ``torch.compile``."""

import copy
from dataclasses import dataclass

import torch

from elc_bert.kernels.reference import Kernels
from elc_bert.utils.errors import UserError

#: What has several passes over memory to fuse. The products with weights stay outside, and with them all
#: modules that hold weights: whatever hooks ZeRO puts on those, there is no graph for them to break.
METHODS = ("attention", "geglu_norm", "cross_entropy")


def compiled(kernels: Kernels) -> Kernels:
    """Kernels that compile what is left of the definitions in ``kernels``; fast paths stay what they are.

    Each method is compiled when it is first called, for any batch size and sequence length.
    """
    result = copy.copy(kernels)
    for name in left_plain(kernels):
        setattr(result, name, torch.compile(getattr(kernels, name), dynamic=True))
    return result


def left_plain(kernels: Kernels) -> list[str]:
    """The methods among ``METHODS`` for which there is no fast path."""
    return [name for name in METHODS if getattr(type(kernels), name) is getattr(Kernels, name)]


def check_compiler(device: torch.device) -> None:
    """Compile something small.

    Raises:
        UserError: there is no working compiler for this device.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=True)(torch.zeros(16, device=device))
    except Exception as error:  # whatever the compiler or its absence raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"elc_bert.training.compile: torch.compile does not work here ({reason[0]}); install a C++ "
            "compiler such as g++, or set it to false"
        ) from None


@dataclass(frozen=True)
class GraphCounts:
    """What ``torch.compile`` has done in this process so far."""

    graphs: int
    breaks: int
    """Places where a method fell apart into several graphs."""
    recompiles: int
    """Times that a method was compiled anew because its input was of a kind not seen before."""

    @classmethod
    def so_far(cls) -> "GraphCounts":
        from torch._dynamo.utils import counters, get_compilation_metrics

        ids = [metrics.compile_id or "" for metrics in get_compilation_metrics()]
        return cls(
            counters["stats"]["unique_graphs"],
            sum(counters["graph_break"].values()),
            sum(not each.endswith("/0") for each in ids),
        )

    def __str__(self) -> str:
        return f"{self.graphs} graphs, {self.breaks} graph breaks, {self.recompiles} recompiles"
