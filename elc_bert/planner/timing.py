"""Time of a step, as far as arithmetic and communication determine it."""

from collections.abc import Sequence
from dataclasses import dataclass

from elc_bert.config.schema import RunConfig
from elc_bert.model import flops_per_token
from elc_bert.planner.communication import Collective
from elc_bert.planner.devices import Device

ASSUMED_MFU = 0.4
"""Fraction of the device's peak that training reaches, unless the user gives another."""


@dataclass(frozen=True)
class StepTime:
    """Time of one step, in seconds."""

    compute: float
    """Seconds of arithmetic."""
    communication: float
    """Seconds of communication."""
    overlapped: bool
    """True if communication overlaps with arithmetic; otherwise it follows it."""
    tokens: int
    """Number of tokens per step, over all devices."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        parts = (self.compute, self.communication)
        return max(parts) if self.overlapped else sum(parts)

    @property
    def tokens_per_second(self) -> float:
        """Throughput over all devices."""
        return self.tokens / self.seconds


def step_time(
    config: RunConfig,
    sequence_length: int,
    tokens: int,
    devices: int,
    device: Device,
    mfu: float,
    gigabytes_per_second: float,
    exchanged: Sequence[Collective],
    overlapped: bool,
) -> StepTime:
    """Estimate the time of a step of ``tokens`` tokens, none of which is padding.

    The MFU refers to the model's arithmetic alone. Activation checkpointing repeats the forward pass of the
    layers, which adds a third to the time of the arithmetic.
    """
    ours = config.elc_bert
    operations = flops_per_token(ours.model, sequence_length, ours.data.mask_probability) * tokens
    if ours.training.activation_checkpointing:
        operations *= 4 / 3
    return StepTime(
        compute=operations / (devices * device.tflops(config.precision) * 1e12 * mfu),
        communication=sum(each.sent_per_device for each in exchanged) / (gigabytes_per_second * 1e9),
        overlapped=overlapped,
        tokens=tokens,
    )
