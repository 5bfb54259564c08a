"""Layout of DeepSpeed's ZeRO partitions: which elements of which tensors a rank's optimizer holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from elc_bert.engine.protocol import Engine
from elc_bert.engine.weights import full_numel
from elc_bert.optim.fragments import Fragment
from elc_bert.optim.lamb import Lamb, Partition
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class _Content:
    """Content of one parameter of the optimizer."""

    parameter: Tensor
    """The optimizer's parameter: a flat buffer under ZeRO, else one whole tensor."""
    tensors: list[Tensor]
    """Parameters of the model that have a part in this parameter on any rank."""
    fragments: list[Fragment]
    """Fragments of these tensors on this rank."""
    offsets: list[int]
    """Offset of each fragment's first element within its tensor."""
    process_group: Any = None
    """Ranks that hold the other fragments; None if this rank holds the whole tensors."""


class Piece(NamedTuple):
    """Consecutive elements of one tensor of the model, within one parameter of the optimizer."""

    parameter: int
    """Index of the optimizer's parameter, as in the ``state_dict`` of the optimizer."""
    name: str
    """Name of the model's tensor."""
    offset: int
    """Offset of the first element within the tensor."""
    start: int
    """Offset of the first element within the optimizer's parameter."""
    length: int
    """Number of elements."""


def pieces_of_rank(engine: Engine) -> list[tuple[Tensor, Piece]] | None:
    """Return the pieces of the model's tensors that this rank's optimizer holds.

    Returns:
        Pairs of the optimizer's parameter and a piece in it; None if DeepSpeed's layout is unknown.
    """
    contents = _contents(engine)
    if contents is None:
        return None
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    return [
        (
            content.parameter,
            Piece(
                number, names[id(content.tensors[fragment.tensor])], offset, fragment.start, fragment.length
            ),
        )
        for number, content in enumerate(contents)
        for fragment, offset in zip(content.fragments, content.offsets, strict=True)
    ]


def shard_lamb(lamb: Lamb, engine: Engine) -> None:
    """Give LAMB the layout of its parameters, so that its trust ratios are those of tensors. Collective.

    Args:
        lamb: Optimizer that was passed to ``deepspeed.initialize``.
        engine: Engine that ``deepspeed.initialize`` returned.

    Raises:
        UserError: LAMB would not be exact in this layout. Raised on all ranks.
    """
    contents = _contents(engine)
    if contents is None:
        raise UserError(
            f"optimizer.type Lamb: would not be exact in {type(engine.optimizer).__name__}, whose layout is "
            "not known; use the pinned DeepSpeed, or other keys in zero_optimization"
        )
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    partitions = {}
    for content in contents:
        _check_complete(content, engine.device)
        partitions[content.parameter] = Partition(
            names=tuple(names[id(tensor)] for tensor in content.tensors),
            fragments=tuple(content.fragments),
            process_group=content.process_group,
            # With CPU offload the parameter is in host memory, where NCCL cannot reach it.
            device=engine.device,
        )
    lamb.shard(partitions)


def _contents(engine: Engine) -> Iterator[_Content] | None:
    """Return the contents of the optimizer's parameters; None if the layout is unknown."""
    optimizer, wrapper = engine.basic_optimizer, engine.optimizer
    if wrapper is optimizer:
        return _whole_tensors(optimizer, wrapper)
    layout = _LAYOUTS.get(type(wrapper).__name__)
    return layout(optimizer, wrapper) if layout is not None else None


def _whole_tensors(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """Yield the contents at ZeRO stage 0, where every rank holds all tensors.

    In bf16 and fp16 the optimizer holds fp32 copies, in the order of the model's tensors.
    """
    for number, group in enumerate(optimizer.param_groups):
        tensors = group["params"] if wrapper is optimizer else wrapper.fp16_groups[number]
        for parameter, tensor in zip(group["params"], tensors, strict=True):
            yield _Content(parameter, [tensor], [Fragment(0, 0, tensor.numel())], [0])


def _flat_partitions(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """Yield the contents at ZeRO 1 and 2: equal parts of one contiguous buffer per parameter group.

    DeepSpeed (0.19.8) keeps a mapping for its checkpoints, ``_hp_mapping``. With ``round_robin_gradients``,
    without padding between parameters, it is wrong: it follows the order of the parameters, which is not that
    of the buffer (``_link_all_hp_params``). The list of offsets is right in all cases. Check again when
    DeepSpeed is updated.
    """
    for number, group in enumerate(optimizer.param_groups):
        (flat,) = group["params"]
        tensors, size = wrapper.round_robin_bit16_groups[number], wrapper.partition_size[number]
        begin = dist.get_rank(wrapper.real_dp_process_group[number]) * size
        fragments, offsets = [], []
        for tensor, offset in enumerate(wrapper.round_robin_bit16_offsets[number]):
            first = max(offset, begin)
            length = min(offset + tensors[tensor].numel(), begin + size) - first
            if length > 0:
                fragments.append(Fragment(tensor, first - begin, length))
                offsets.append(first - offset)
        yield _Content(flat, tensors, fragments, offsets, wrapper.dp_process_group)


def _bf16_partitions(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """Yield the contents at ZeRO 1 if gradients are summed in fp32: as above, without reordering."""
    for group, tensors in zip(optimizer.param_groups, wrapper.bf16_groups, strict=True):
        (flat,) = group["params"]
        fragments, offsets = [], []
        for number, tensor in enumerate(tensors):
            # The mapping that DeepSpeed keeps for its checkpoints; None if this rank holds no part.
            if tensor._hp_mapping is not None:
                address = tensor._hp_mapping.get_hp_fragment_address()
                fragments.append(Fragment(number, address.start, address.numel))
                offsets.append(tensor._hp_mapping.lp_fragment_address.start)
        yield _Content(flat, tensors, fragments, offsets, wrapper.dp_process_group)


def _sub_groups(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """Yield the contents at ZeRO 3: an equal share of every tensor, contiguous per sub-group."""
    for sub_group, tensors in enumerate(wrapper.fp16_groups):
        process_group = wrapper.sub_group_process_groups[sub_group]
        rank = dist.get_rank(process_group)
        fragments, offsets = [], []
        for number, tensor in enumerate(tensors):
            _, start, share = wrapper.grad_position[wrapper.get_param_id(tensor)]
            # The shares of the last ranks end with padding; some consist of padding only.
            real = min(share, tensor.ds_numel - rank * share)
            if real > 0:
                fragments.append(Fragment(number, start, real))
                offsets.append(rank * share)
        flat = wrapper.fp32_partitioned_groups_flat[sub_group]
        yield _Content(flat, tensors, fragments, offsets, process_group)


_LAYOUTS: dict[str, Callable[[Optimizer, Any], Iterator[_Content]]] = {
    "FP16_UnfusedOptimizer": _whole_tensors,
    "DeepSpeedZeroOptimizer": _flat_partitions,
    "BF16_Optimizer": _bf16_partitions,
    "DeepSpeedZeroOptimizer_Stage3": _sub_groups,
}
"""Layouts by the class that DeepSpeed (0.19.8) wraps around the optimizer.

In fp32 at ZeRO stage 0 there is no wrapper. Check the layouts again when DeepSpeed is updated.
"""


def _check_complete(content: _Content, device: torch.device) -> None:
    """Check that every element of each tensor lies in exactly one fragment; else norms would be wrong."""
    held = torch.zeros(len(content.tensors), dtype=torch.int64)
    for fragment in content.fragments:
        held[fragment.tensor] += fragment.length
    expected = [full_numel(tensor) for tensor in content.tensors]
    if content.process_group is not None:
        held = held.to(device)
        dist.all_reduce(held, group=content.process_group)
    if held.tolist() != expected:
        raise UserError(
            f"optimizer.type Lamb: this DeepSpeed partitions tensors in an unknown way ({held.sum()} of "
            f"{sum(expected)} elements found); use the pinned DeepSpeed, or zero_optimization.stage 0"
        )
