"""Memory of weights, gradients and optimizer state in DeepSpeed for each ZeRO stage and precision.

The formulas follow the source of the pinned DeepSpeed (runtime/engine.py, bf16_optimizer.py,
fp16/unfused_optimizer.py, zero/stage_1_and_2.py, zero/stage3.py).
"""

from dataclasses import dataclass
from typing import Literal

from elc_bert.config.schema import RunConfig
from elc_bert.planner.parameters import Parameters
from elc_bert.utils.errors import UserError

When = Literal["always", "gradients", "backward", "reduction", "step"]
"""Time at which memory is in use. ``gradients``: it grows during the first backward pass and stays in use
until the step is taken. ``backward``: the backward passes. ``reduction``: the reduction over devices after
them. ``step``: the optimizer's step."""
ALLREDUCE_ELEMENTS = 500_000_000
"""Number of gradient elements in one all-reduce without ZeRO (``MEMORY_OPT_ALLREDUCE_SIZE``)."""
BYTES = {"fp32": 4, "bf16 autocast": 4, "bf16": 2, "fp16": 2, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Piece:
    """Part of the memory of one device, or of the host's memory for that device."""

    name: str
    bytes: float
    when: When = "always"
    on_host: bool = False


@dataclass(frozen=True)
class Layout:
    """Layout of a run's training state over its devices."""

    stage: int
    devices: int
    weight_bytes: int
    """Bytes of a weight in forward and backward pass."""
    sum_bytes: int
    """Bytes of an element of the gradients summed over micro-batches."""
    wire_bytes: int
    """Bytes of an element of the gradients sent between devices."""
    autocast: bool
    offloads_optimizer: bool
    reduce_bucket: int
    """Number of gradient elements reduced at once."""
    max_live: int
    """Largest number of parameters that ZeRO 3 keeps gathered."""
    overlaps: bool
    """True if gradients are reduced while the backward pass continues."""

    @property
    def sums_bf16_in_fp32(self) -> bool:
        """True if DeepSpeed uses its ``BF16_Optimizer``, which keeps a full set of fp32 gradients."""
        return (
            self.stage == 1 and (self.weight_bytes, self.sum_bytes) == (2, 4) and not self.offloads_optimizer
        )


def layout_of(config: RunConfig, devices: int) -> Layout:
    """Return the layout of the training state that follows from the configuration.

    Raises:
        UserError: A value is one that the planner cannot use, or that DeepSpeed would refuse.
    """
    zero = config.deepspeed.zero_optimization
    weights = BYTES[config.precision]
    return Layout(
        stage=config.zero_stage,
        devices=devices,
        weight_bytes=weights,
        sum_bytes=_bytes_of(
            config, "data_types.grad_accum_dtype", config.deepspeed.data_types.grad_accum_dtype, weights
        ),
        wire_bytes=_bytes_of(
            config,
            "communication_data_type",
            config.deepspeed.communication_data_type,
            # Under autocast ZeRO sends gradients of linear layers in bf16.
            2 if config.precision == "bf16 autocast" and config.zero_stage else weights,
        ),
        autocast=config.precision == "bf16 autocast",
        offloads_optimizer=config.offloads_optimizer,
        reduce_bucket=int(zero.reduce_bucket_size),
        max_live=int(zero.stage3_max_live_parameters),
        overlaps=zero.overlaps_communication,
    )


def _bytes_of(config: RunConfig, key: str, name: str | None, default: int) -> int:
    if name is None:
        return default
    if name not in BYTES:
        raise UserError(f"{config.origin}{key} = {name!r}: choose fp32, bf16 or fp16")
    return BYTES[name]


def pieces(layout: Layout, parameters: Parameters, on_cpu: bool, plain_lamb: bool = False) -> list[Piece]:
    """Return all memory except activations.

    Args:
        layout: Layout of the training state.
        parameters: Numbers of parameters.
        on_cpu: True on a CPU, where only the used part of a buffer takes memory.
        plain_lamb: True if LAMB uses plain PyTorch, which keeps the whole update.
    """
    n, share = parameters.total, parameters.total / layout.devices
    kinds = {0: _without_zero, 1: _partitioned, 2: _partitioned, 3: _zero_3}
    found = (_bf16_summed_in_fp32 if layout.sums_bf16_in_fp32 else kinds[layout.stage])(
        layout, parameters, share, on_cpu
    )
    if layout.autocast:
        found.append(Piece("weights in bf16 (autocast)", 2 * n, "backward"))
    if plain_lamb:
        found.append(Piece("LAMB's update (not fused)", 4 * share, "step", layout.offloads_optimizer))
    return found


def _without_zero(layout: Layout, parameters: Parameters, share: float, on_cpu: bool) -> list[Piece]:
    n, w = parameters.total, layout.weight_bytes
    found = [
        Piece("weights", w * n),
        Piece("gradients", w * n, "gradients"),
        Piece("moments", 8 * n),
        # All gradients of a bucket are copied to a contiguous buffer, also on a single device.
        Piece("flat copy of the gradients", w * min(n, ALLREDUCE_ELEMENTS), "reduction"),
    ]
    if w < 4:
        found += [Piece("master weights", 4 * n), Piece("fp32 gradients", 4 * n, "step")]
    return found


def _bf16_summed_in_fp32(layout: Layout, parameters: Parameters, share: float, on_cpu: bool) -> list[Piece]:
    n = parameters.total
    first, second = parameters.groups
    # The two groups are sent as they are if the first fills a bucket, otherwise as a copy of both.
    copied = 0 if first > ALLREDUCE_ELEMENTS else 4 * n
    sent = layout.wire_bytes * (max(first, second) if first > ALLREDUCE_ELEMENTS else n)
    return [
        Piece("weights", 2 * n),
        Piece("gradients", 2 * n, "gradients"),
        Piece("accumulated gradients (fp32)", 4 * n),
        Piece("master weights", 4 * share),
        Piece("moments", 8 * share),
        Piece("flat copy of the gradients", copied + (sent if layout.wire_bytes != 4 else 0), "reduction"),
    ]


def _partitioned(layout: Layout, parameters: Parameters, share: float, on_cpu: bool) -> list[Piece]:
    """Return the memory at ZeRO 1 and 2: flat weights, of which each device updates a partition."""
    n, w, host = parameters.total, layout.weight_bytes, layout.offloads_optimizer
    keeps_all = layout.stage == 1
    sums_apart = layout.sum_bytes != w
    # ZeRO 1 sends the sums, ZeRO 2 the gradients of each micro-batch.
    sent = layout.sum_bytes if keeps_all else w
    buffers = (2 if layout.overlaps else 1) * sent
    used = min(n, layout.reduce_bucket)
    found = [
        Piece("weights", w * n),
        Piece("master weights", 4 * share, on_host=host),
        Piece("moments", 8 * share, on_host=host),
        # The copy has been freed when the partition is copied out of the result.
        Piece(
            "copy of a bucket, then gradient partition",
            max(layout.wire_bytes * used, 0 if host or sums_apart else w * share),
            "reduction",
        ),
    ]
    if keeps_all:
        found.append(Piece("gradients", layout.sum_bytes * n, "gradients"))
        if not on_cpu:
            found.append(Piece("reduction bucket", buffers * layout.reduce_bucket, "backward"))
    elif on_cpu:
        found.append(Piece("gradients in the reduction bucket", buffers * used, "gradients"))
    else:
        found.append(Piece("reduction bucket", buffers * layout.reduce_bucket, "backward"))
    if host:
        found += [
            Piece("gradient partition", 4 * share, on_host=True),
            Piece("weight partition", w * share, on_host=True),
            Piece("buffer to copy one gradient", w * parameters.largest),
        ]
    elif sums_apart:
        found.append(Piece("accumulated gradient partition", layout.sum_bytes * share, "gradients"))
    else:
        found.append(Piece("gradient partition and its flat fp32 copy", (w + 4) * share, "step"))
    return found


def _zero_3(layout: Layout, parameters: Parameters, share: float, on_cpu: bool) -> list[Piece]:
    n, w, host = parameters.total, layout.weight_bytes, layout.offloads_optimizer
    bucket = min(n, layout.reduce_bucket) if on_cpu else layout.reduce_bucket
    return [
        Piece("weights", w * share),
        Piece("small tensors, kept whole", w * parameters.small),
        Piece("gathered weights", w * min(n, layout.max_live), "backward"),
        Piece("master weights", 4 * share, on_host=host),
        Piece("moments", 8 * share, on_host=host),
        Piece("accumulated gradient partition", layout.sum_bytes * share, on_host=host),
        Piece("reduction bucket", layout.wire_bytes * bucket),
        Piece("copy of a bucket", layout.wire_bytes * min(n, layout.reduce_bucket), "backward"),
        Piece("fp32 gradient partition", 4 * share, "step", host),
    ]
