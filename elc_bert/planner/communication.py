"""What devices send each other in one optimizer step."""

from dataclasses import dataclass

from elc_bert.planner.parameters import Parameters
from elc_bert.planner.states import Layout

SCALARS = 2 * 8
"""Bytes: number of masked tokens (int64), and the gradient's norm or overflow flag."""


@dataclass(frozen=True)
class Collective:
    """One kind of exchange in a step."""

    operation: str
    """all-reduce, reduce-scatter or all-gather."""
    what: str
    bytes: int
    """Of the whole tensor, over all times it is done in a step."""
    devices: int

    @property
    def sent_per_device(self) -> float:
        """Bytes that each device sends when they stand in a ring, which is the least possible."""
        parts = (self.devices - 1) / self.devices
        return self.bytes * parts * (2 if self.operation == "all-reduce" else 1)


def collectives(layout: Layout, parameters: Parameters, accumulation: int, lamb: bool) -> list[Collective]:
    """All of one step; none on a single device.

    Args:
        layout: of the run.
        parameters: N.
        accumulation: micro-batches of a step. ZeRO 2 and 3 exchange gradients after each of them.
        lamb: the optimizer is Lamb, which needs norms of whole tensors.
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
