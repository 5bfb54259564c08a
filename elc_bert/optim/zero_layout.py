"""Where DeepSpeed puts each parameter: the one file that knows ZeRO's partition layout."""

from typing import Any

import torch
import torch.distributed as dist

from elc_bert.errors import UserError
from elc_bert.optim.lamb import Lamb, Partition
from elc_bert.optim.passes import Fragment


def shard_lamb(lamb: Lamb, wrapper: Any, zero_stage: int) -> None:
    """Tell ``lamb`` what the flat partitions that DeepSpeed gave it consist of. Collective.

    Args:
        lamb: the optimizer that was handed to ``deepspeed.initialize``.
        wrapper: ``engine.optimizer`` after it.
        zero_stage: 0 leaves whole tensors, 1 and 2 flat partitions.

    Raises:
        UserError: a ZeRO layout in which LAMB would not be exact.
    """
    if zero_stage == 0:
        return
    # ZeRO 1/2 keep the model's tensors in bit16_groups, the fp32-accumulating ZeRO 1 in bf16_groups.
    tensor_groups = getattr(wrapper, "bit16_groups", None) or getattr(wrapper, "bf16_groups", None)
    if zero_stage > 2 or tensor_groups is None:
        raise UserError(
            f"optimizer.type Lamb is exact at ZeRO stages 0, 1 and 2, not with "
            f"{type(wrapper).__name__} at stage {zero_stage}: set zero_optimization.stage to 2 or less"
        )
    partitions = {}
    for group, tensors in zip(lamb.param_groups, tensor_groups, strict=True):
        (flat,) = group["params"]
        partition = Partition(
            names=tuple(str(i) for i in range(len(tensors))),
            fragments=tuple(_fragments(tensors)),
            process_group=wrapper.dp_process_group,
        )
        _check_complete(partition, sum(t.numel() for t in tensors), flat)
        partitions[flat] = partition
    lamb.shard(partitions)


def _fragments(tensors: list[Any]) -> list[Fragment]:
    """This rank's pieces, from the mapping that DeepSpeed keeps on every parameter for its checkpoints."""
    fragments = []
    for number, tensor in enumerate(tensors):
        mapping = tensor._hp_mapping
        if mapping is not None:
            address = mapping.get_hp_fragment_address()
            fragments.append(Fragment(tensor=number, start=address.start, length=address.numel))
    return fragments


def _check_complete(partition: Partition, expected: int, flat: torch.Tensor) -> None:
    """Every element of the group must lie in exactly one fragment, or norms would be wrong."""
    held = torch.tensor(sum(f.length for f in partition.fragments), device=flat.device)
    dist.all_reduce(held, group=partition.process_group)
    if held.item() != expected:
        raise UserError(
            f"optimizer.type Lamb: this DeepSpeed version lays out ZeRO partitions in an unknown way "
            f"({held.item()} of {expected} elements found): use the pinned version or ZeRO stage 0"
        )


def full_precision_weights(engine: Any) -> dict[str, torch.Tensor]:
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
        weights[name] = full.detach().float().reshape(parameter.shape).cpu().contiguous()
    return weights
