"""Compilation of the plain definitions with ``torch.compile``."""

import copy
from dataclasses import dataclass

import torch

from elc_bert.kernels.reference import Kernels
from elc_bert.utils.errors import UserError

METHODS = ("attention", "geglu_norm", "cross_entropy")
"""Methods worth compiling, because they consist of several memory-bound operations that can be fused.

Products with weights are not compiled, nor are the modules that hold weights, so that the hooks that ZeRO
puts on those modules cannot break a graph.
"""


def compile_kernels(kernels: Kernels) -> Kernels:
    """Return a copy of ``kernels`` in which methods without a fast path are compiled.

    Each method is compiled at its first call, for any batch size and sequence length.
    """
    result = copy.copy(kernels)
    for name in methods_without_fast_path(kernels):
        setattr(result, name, torch.compile(getattr(kernels, name), dynamic=True))
    return result


def methods_without_fast_path(kernels: Kernels) -> list[str]:
    """Return the names in ``METHODS`` that ``kernels`` does not override."""
    return [name for name in METHODS if getattr(type(kernels), name) is getattr(Kernels, name)]


def check_compiler(device: torch.device) -> None:
    """Compile a small function to check that ``torch.compile`` works.

    Raises:
        UserError: There is no working compiler for this device.
    """
    try:
        torch.compile(lambda x: x.sin() + 1, dynamic=True)(torch.zeros(16, device=device))
    except Exception as error:  # Compilers, and their absence, raise errors of many types.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"elc_bert.training.compile: torch.compile does not work here ({reason[0]}); install a C++ "
            "compiler such as g++, or set the key to false"
        ) from None


@dataclass(frozen=True)
class GraphCounts:
    """Statistics of ``torch.compile`` in this process."""

    graphs: int
    """Number of compiled graphs."""
    breaks: int
    """Number of graph breaks, which split a method into several graphs."""
    recompiles: int
    """Number of times that a method was compiled again because a guard failed."""

    @classmethod
    def so_far(cls) -> "GraphCounts":
        """Return the counts since the process started."""
        from torch._dynamo.utils import counters, get_compilation_metrics

        ids = [metrics.compile_id or "" for metrics in get_compilation_metrics()]
        return cls(
            counters["stats"]["unique_graphs"],
            sum(counters["graph_break"].values()),
            sum(not each.endswith("/0") for each in ids),
        )

    def __str__(self) -> str:
        return f"{self.graphs} graphs, {self.breaks} graph breaks, {self.recompiles} recompiles"
