"""Where DeepSpeed puts each parameter: the one file that knows ZeRO's partition layout."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from elc_bert.optim.fragments import Fragment
from elc_bert.optim.lamb import Lamb, Partition
from elc_bert.utils.errors import UserError


@dataclass(frozen=True)
class _Content:
    """What a parameter of the optimizer is made of."""

    parameter: Tensor
    tensors: list[Tensor]
    """The model's parameters of which any rank holds a part."""
    fragments: list[Fragment]
    """The pieces on this rank."""
    offsets: list[int]
    """Of each piece, its first element's place in the tensor."""
    process_group: Any = None
    """Ranks that hold the other pieces; None if there are none."""


class Piece(NamedTuple):
    """A run of elements of one tensor of the model, within one parameter of the optimizer."""

    parameter: int
    """Number of the optimizer's parameter, as its ``state_dict`` counts them."""
    name: str
    """Of the model's tensor."""
    offset: int
    """First element within the tensor."""
    start: int
    """First element within the parameter."""
    length: int
    """Elements."""


def pieces_of_rank(engine: Any) -> list[tuple[Tensor, Piece]] | None:
    """The pieces of the model's tensors that this rank's optimizer holds, each with its flat parameter.

    None where DeepSpeed's layout is not known.
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


def refresh_working_weights(engine: Any) -> None:
    """Make the weights that the model computes with those of the optimizer's masters. Collective."""
    wrapper = engine.optimizer
    if hasattr(wrapper, "update_lp_params"):  # ZeRO 1 and 2
        wrapper.update_lp_params()
    elif hasattr(wrapper, "fp16_partitioned_groups_flat"):  # ZeRO 3
        flats = zip(
            wrapper.fp16_partitioned_groups_flat,
            wrapper.fp32_partitioned_groups_flat,
            wrapper.fp16_partitioned_groups,
            strict=True,
        )
        for low, full, tensors in flats:
            low.data.copy_(full.data)
            for tensor, part in zip(tensors, wrapper.unflatten(low, tensors), strict=True):
                tensor.data = part.data
        wrapper.checkpoint_event_epilogue()  # parameters that every rank keeps whole
    elif hasattr(wrapper, "fp32_groups"):  # 16 bits without ZeRO
        for lows, fulls in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True):
            for low, full in zip(lows, fulls, strict=True):
                low.data.copy_(full.data)


def shard_lamb(lamb: Lamb, engine: Any) -> None:
    """Tell ``lamb`` which tensors of the model the parameters that DeepSpeed gave it consist of. Collective.

    Args:
        lamb: the optimizer that was handed to ``deepspeed.initialize``.
        engine: what came of it.

    Raises:
        UserError: a layout in which LAMB would not be exact; on all ranks alike.
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
            # With offload the parameter is in the CPU's memory, where NCCL cannot reach it.
            device=engine.device,
        )
    lamb.shard(partitions)


def _contents(engine: Any) -> Iterator[_Content] | None:
    """What the optimizer's parameters consist of; None where the layout is not known."""
    optimizer, wrapper = engine.basic_optimizer, engine.optimizer
    if wrapper is optimizer:
        return _whole_tensors(optimizer, wrapper)
    layout = _LAYOUTS.get(type(wrapper).__name__)
    return layout(optimizer, wrapper) if layout is not None else None


def _whole_tensors(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """ZeRO 0: every rank has all. In 16 bits the optimizer holds fp32 copies in the order of the model's."""
    for number, group in enumerate(optimizer.param_groups):
        tensors = group["params"] if wrapper is optimizer else wrapper.fp16_groups[number]
        for parameter, tensor in zip(group["params"], tensors, strict=True):
            yield _Content(parameter, [tensor], [Fragment(0, 0, tensor.numel())], [0])


def _flat_partitions(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """ZeRO 1 and 2: a group's tensors end to end in one buffer, of which each rank has an equal share."""
    # The wrapper that sums bf16 gradients in fp32 has another name for the same thing.
    groups = wrapper.bit16_groups if hasattr(wrapper, "bit16_groups") else wrapper.bf16_groups
    for group, tensors in zip(optimizer.param_groups, groups, strict=True):
        (flat,) = group["params"]
        fragments, offsets = [], []
        for number, tensor in enumerate(tensors):
            # The mapping that DeepSpeed keeps for its checkpoints; None where this rank has no part.
            if tensor._hp_mapping is not None:
                address = tensor._hp_mapping.get_hp_fragment_address()
                fragments.append(Fragment(number, address.start, address.numel))
                offsets.append(tensor._hp_mapping.lp_fragment_address.start)
        yield _Content(flat, tensors, fragments, offsets, wrapper.dp_process_group)


def _sub_groups(optimizer: Optimizer, wrapper: Any) -> Iterator[_Content]:
    """ZeRO 3: each rank has an equal share of each tensor; those of a sub-group lie end to end."""
    for sub_group, tensors in enumerate(wrapper.fp16_groups):
        process_group = wrapper.sub_group_process_groups[sub_group]
        rank = dist.get_rank(process_group)
        fragments, offsets = [], []
        for number, tensor in enumerate(tensors):
            _, start, share = wrapper.grad_position[wrapper.get_param_id(tensor)]
            # The shares of the last ranks are filled up with padding, to the whole if need be.
            real = min(share, tensor.ds_numel - rank * share)
            if real > 0:
                fragments.append(Fragment(number, start, real))
                offsets.append(rank * share)
        flat = wrapper.fp32_partitioned_groups_flat[sub_group]
        yield _Content(flat, tensors, fragments, offsets, process_group)


#: By the class that DeepSpeed wraps around the optimizer; in fp32 at stage 0 there is none.
_LAYOUTS: dict[str, Callable[[Optimizer, Any], Iterator[_Content]]] = {
    "FP16_UnfusedOptimizer": _whole_tensors,
    "DeepSpeedZeroOptimizer": _flat_partitions,
    "BF16_Optimizer": _flat_partitions,
    "DeepSpeedZeroOptimizer_Stage3": _sub_groups,
}


def _check_complete(content: _Content, device: torch.device) -> None:
    """Every element of each tensor must lie in one fragment, or norms would be wrong."""
    held = torch.zeros(len(content.tensors), dtype=torch.int64)
    for fragment in content.fragments:
        held[fragment.tensor] += fragment.length
    expected = [whole_numel(tensor) for tensor in content.tensors]
    if content.process_group is not None:
        held = held.to(device)
        dist.all_reduce(held, group=content.process_group)
    if held.tolist() != expected:
        raise UserError(
            f"optimizer.type Lamb: this DeepSpeed cuts tensors in an unknown way ({held.sum()} of "
            f"{sum(expected)} elements found); use the pinned one, or zero_optimization.stage 0"
        )


def whole_numel(parameter: Tensor) -> int:
    """Elements of a parameter of the model; ZeRO 3 leaves an empty tensor in its place."""
    return getattr(parameter, "ds_numel", parameter.numel())


def whole_shape(parameter: Tensor) -> torch.Size:
    """Shape of a parameter of the model; ZeRO 3 leaves an empty tensor in its place."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextmanager
def whole(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Within this block the parameters can be read, at ZeRO 3 too. Collective."""
    from deepspeed.runtime.zero import GatheredParameters

    with GatheredParameters(list(parameters)):
        yield


def full_precision_weights(engine: Any) -> dict[str, Tensor]:
    """The model's parameters by name, float32 on the CPU, from DeepSpeed's masters. Collective.

    A tied parameter appears once, under the name that ``named_parameters`` gives it.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    # The wrapper of bf16 and fp16 without ZeRO keeps its masters in lists beside the model's tensors.
    masters = {}
    if not engine.zero_optimization():
        lists = zip(
            getattr(engine.optimizer, "fp16_groups", []),
            getattr(engine.optimizer, "fp32_groups", []),
            strict=True,
        )
        masters = {id(low): full for lows, fulls in lists for low, full in zip(lows, fulls, strict=True)}
    weights = {}
    for name, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        full = masters.get(id(parameter), parameter) if full is None else full
        weights[name] = full.detach().float().reshape(whole_shape(parameter)).cpu().contiguous()
    return weights
