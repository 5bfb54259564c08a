"""How long a step takes, as far as arithmetic and links decide it."""

from collections.abc import Sequence
from dataclasses import dataclass

from elc_bert.config.schema import RunConfig
from elc_bert.model import flops_per_token
from elc_bert.planner.communication import Collective
from elc_bert.planner.devices import Device

ASSUMED_MFU = 0.4
"""Share of the device's peak that training reaches, if the user does not know better."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step."""

    compute: float
    communication: float
    overlapped: bool
    """Whether the devices exchange while they compute; otherwise after it."""
    tokens: int
    """Of a step, over all devices."""

    @property
    def seconds(self) -> float:
        parts = (self.compute, self.communication)
        return max(parts) if self.overlapped else sum(parts)

    @property
    def tokens_per_second(self) -> float:
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
    """Time of a step of so many tokens, all of them counted as real.

    MFU is of the model's arithmetic alone; what activation checkpointing computes again, the layers' forward
    pass, a third of forward and backward, takes time besides.
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
