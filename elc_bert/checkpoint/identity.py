"""Who a run is, and what DeepSpeed's files of it depend on."""

import json
from typing import Any

from elc_bert.config.schema import RunConfig

#: Keys of ``zero_optimization`` that move tensors within DeepSpeed's buffers, which it does not notice.
CUTTING_KEYS = ("sub_group_size", "round_robin_gradients", "parameter_alignment")


def run_identity(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """What makes two runs the same run; a resumed run must agree in all of it.

    Args:
        config: the run.
        data: what identifies the data, wherever they lie.
    """
    ours = config.elc_bert
    training = ours.training
    return {
        "model": ours.model.model_dump(mode="json"),
        "data": {
            **data,
            # Not how the samples are laid out: any layout gives the same loss.
            **ours.data.model_dump(mode="json", exclude={"train", "dev", "tokenizer", "pack", "workers"}),
        },
        "seed": training.seed,
        "schedule": {
            "train_batch_size": config.train_batch_size,
            "max_steps": training.max_steps,
            "sequence_length": training.sequence_length,
            "long_after": training.long_after,
            # Not by which kernels the step is taken.
            "optimizer": config.optimizer.model_dump(mode="json", exclude={"params": {"fused"}}),
            "scheduler": config.scheduler.model_dump(mode="json"),
        },
    }


def layout_of(config: RunConfig, devices: int) -> dict[str, Any]:
    """What DeepSpeed's own files depend on: partitions are per device."""
    stage = config.zero_stage
    extras = config.deepspeed_extras
    zero, types = extras.get("zero_optimization") or {}, extras.get("data_types") or {}
    return {
        "zero_stage": stage,
        "precision": config.precision,
        "devices": devices if stage > 0 else "any",
        **{key: zero.get(key) for key in CUTTING_KEYS},
        "grad_accum_dtype": types.get("grad_accum_dtype"),
    }


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Leaves in which two JSON values differ, as ``key.path: before -> after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in [*before, *(name for name in after if name not in before)]:
            found += differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if before == after else [f"{key}: {json.dumps(before)} -> {json.dumps(after)}"]
