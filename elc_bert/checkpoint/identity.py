"""Identity of a run, and the layout on which the files that DeepSpeed writes for it depend."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elc_bert.config.length_schedule import length_schedule, steps_in_share
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError

PARTITION_KEYS = ("sub_group_size", "round_robin_gradients", "parameter_alignment")
"""Keys of ``zero_optimization`` that move tensors within DeepSpeed's buffers, which it does not detect."""


def run_identity(config: RunConfig, data: dict[str, Any]) -> dict[str, Any]:
    """Return everything in which a resumed run must agree with its checkpoint.

    Args:
        config: Configuration of the run.
        data: Identity of the datasets, which does not depend on where they are stored.
    """
    ours = config.elc_bert
    training = ours.training
    return {
        "model": ours.model.model_dump(mode="json"),
        "data": {
            **data,
            # Neither the packing of samples into rows nor the number of data workers changes the loss.
            # The ids of special tokens are in ``data``, not their names.
            **ours.data.model_dump(
                mode="json", exclude={"train", "dev", "tokenizer", "special_tokens", "pack", "workers"}
            ),
        },
        "seed": training.seed,
        "schedule": {
            "train_batch_size": config.train_batch_size,
            "max_steps": training.max_steps,
            "sequence_length": training.sequence_length,
            "long_after": training.long_after,
            # The choice of kernels does not change the step.
            "optimizer": config.optimizer.model_dump(mode="json", exclude={"params": {"fused"}}),
            "scheduler": config.scheduler.model_dump(mode="json"),
            "first_steps": _first_steps(config),
        },
    }


def _first_steps(config: RunConfig) -> dict[str, int]:
    """Return the index of the first step after the warmup, and of the first step with long sequences."""
    share = config.scheduler.params.get("warmup_proportion") if config.scheduler.is_ours else None
    warmup = {} if share is None else {"peak": steps_in_share(config.elc_bert.training.max_steps, share)}
    return {**warmup, "long": length_schedule(config).switch_step}


def check_identity(path: Path, recorded: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Check that a checkpoint belongs to a run.

    Args:
        path: Directory of the checkpoint.
        recorded: Identity in the checkpoint.
        identity: Identity of the run.

    Returns:
        Steps of the schedule that have moved because a version that recorded no ``first_steps`` wrote the
        checkpoint.

    Raises:
        UserError: The checkpoint belongs to another run.
    """
    before, now = (without_tokenizer_file(each) for each in (with_first_steps(recorded), identity))
    changes = differences(before, now)
    is_old = "first_steps" not in recorded["schedule"]
    moved = [change for change in changes if is_old and change.startswith("schedule.first_steps.")]
    if others := [change for change in changes if change not in moved]:
        raise UserError(
            f"{path}: is a checkpoint of another run: {'; '.join(others)}; use the settings of that run, or "
            "start a new run in another elc_bert.training.output_dir"
        )
    return moved


def with_first_steps(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the identity in a checkpoint with ``first_steps``, which earlier versions did not record.

    Earlier versions rounded the shares of the run, where this one and the reference cut them.
    """
    schedule = identity["schedule"]
    if "first_steps" in schedule:
        return identity
    share = schedule["scheduler"]["params"].get("warmup_proportion")
    warmup = {} if share is None else {"peak": round(schedule["max_steps"] * share)}
    steps = {**warmup, "long": round(schedule["max_steps"] * schedule["long_after"])}
    return {**identity, "schedule": {**schedule, "first_steps": steps}}


def without_tokenizer_file(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an identity without the checksum of the tokenizer file, which early versions recorded.

    The checksums of the tokens say the same, and a copy of the file with other bytes does not change a run.
    """
    data = {name: value for name, value in identity["data"].items() if name != "tokenizer"}
    return {**identity, "data": data}


def check_order_is_recorded(path: Path, record: Mapping[str, Any]) -> None:
    """Check that a checkpoint records correctly which elements of which tensors its files hold.

    Earlier versions, which did not record ``first_steps`` either, recorded another order than that of the
    files if DeepSpeed had reordered tensors without aligning them.

    Raises:
        UserError: The record may be wrong, so that only a run of the same layout can load the files.
    """
    layout, is_old = record["layout"], "first_steps" not in record["identity"]["schedule"]
    is_reordered = layout.get("round_robin_gradients") and not layout.get("parameter_alignment")
    if is_old and is_reordered and layout["zero_stage"] in (1, 2):
        raise UserError(
            f"{path}: an earlier version recorded a wrong order of tensors with "
            "zero_optimization.round_robin_gradients; resume with the devices, ZeRO stage and precision of "
            "the checkpoint"
        )


def layout_of(config: RunConfig, devices: int) -> dict[str, Any]:
    """Return the settings on which DeepSpeed's own files depend, such as the ZeRO stage."""
    stage = config.zero_stage
    zero = config.deepspeed.zero_optimization
    return {
        "zero_stage": stage,
        "precision": config.precision,
        "devices": devices if stage > 0 else "any",
        **{key: getattr(zero, key) for key in PARTITION_KEYS},
        "grad_accum_dtype": config.deepspeed.data_types.grad_accum_dtype,
    }


def differences(before: Any, after: Any, key: str = "") -> list[str]:
    """Return the leaves in which two JSON values differ, as ``key.path: before -> after``."""
    if isinstance(before, dict) and isinstance(after, dict):
        found = []
        for name in [*before, *(name for name in after if name not in before)]:
            found += differences(before.get(name), after.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if before == after else [f"{key}: {json.dumps(before)} -> {json.dumps(after)}"]
