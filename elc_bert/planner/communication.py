"""Communication between devices in one optimizer step."""

from dataclasses import dataclass

from elc_bert.planner.parameters import Parameters
from elc_bert.planner.states import Layout

SCALARS = 2 * 8
"""Bytes of the number of masked tokens (int64) and of the gradient's norm or overflow flag."""


@dataclass(frozen=True)
class Collective:
    """One kind of collective operation in a step."""

    operation: str
    """``all-reduce``, ``reduce-scatter`` or ``all-gather``."""
    what: str
    """Name of the communicated tensors."""
    bytes: int
    """Bytes of the whole tensors, summed over all operations of a step."""
    devices: int
    """Number of devices that take part."""

    @property
    def sent_per_device(self) -> float:
        """Bytes that each device sends in a ring, which is the least possible."""
        parts = (self.devices - 1) / self.devices
        return self.bytes * parts * (2 if self.operation == "all-reduce" else 1)


def collectives(layout: Layout, parameters: Parameters, accumulation: int, lamb: bool) -> list[Collective]:
    """Return the collective operations of one step; none on a single device.

    Args:
        layout: Partitioning of the training state.
        parameters: Numbers of parameters.
        accumulation: Number of micro-batches per step. ZeRO 2 and 3 reduce gradients after each of them.
        lamb: True if the optimizer is Lamb, which needs norms of whole tensors.
    """
    if layout.devices == 1:
        return []
    gradients, weights = layout.wire_bytes * parameters.total, layout.weight_bytes * parameters.total
    times = 1 if layout.stage < 2 else accumulation
    found = [
        ("reduce-scatter" if layout.stage == 3 else "all-reduce", "gradients", times * gradients),
        # ZeRO 3 gathers weights for the forward and for the backward pass of each micro-batch.
        ("all-gather", "weights", {0: 0, 3: 2 * times * weights}.get(layout.stage, weights)),
        ("all-reduce", "LAMB's norms", 8 * parameters.decaying_tensors if lamb and layout.stage else 0),
        ("all-reduce", "counts and norms", SCALARS),
    ]
    return [Collective(*each, layout.devices) for each in found if each[2]]
