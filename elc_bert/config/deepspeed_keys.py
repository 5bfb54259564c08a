"""Keys of DeepSpeed's sections: which ones exist, the type of each, and which ones change nothing here.

DeepSpeed ignores most keys that it does not know, and it accepts keys of features that this project does not
use. Both are errors here. The tables follow DeepSpeed 0.19.8; a test compares them with its classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Number = Literal["integer", "positive integer", "exponent", "number", "positive number"]
Type = Number | Literal["switch", "text", "list", "any"] | tuple[str, ...]
"""Type of a key; a tuple lists the texts that it can be."""


@dataclass(frozen=True)
class NoEffect:
    """A key that changes nothing in this project, or that this project does not support."""

    advice: str
    """Reason, and what to do instead."""
    accepted: tuple[Any, ...] = (False, None)
    """Values that describe what happens anyway."""


Keys = Mapping[str, "Type | NoEffect | Keys"]

_REMOVED = NoEffect("has been removed from DeepSpeed; remove it here", ())
_DATA = NoEffect("has no effect: this project reads its data itself, see elc_bert.data; remove it")
_UNSUPPORTED = NoEffect("is not supported by this project; remove it")
_NOT_PRINTED = NoEffect("has no effect: DeepSpeed's own log is not shown; remove it")
_CHECKPOINT = NoEffect(
    "has no effect: this project writes and loads checkpoints itself, see elc_bert.checkpoint; remove it"
)
_NOT_THIS_NAME = "is an old name; write {} instead"

ZERO: Keys = {
    "stage": "integer",
    "contiguous_gradients": "switch",
    "reduce_scatter": "switch",
    "reduce_bucket_size": "positive integer",
    "use_multi_rank_bucket_allreduce": "switch",
    "allgather_partitions": NoEffect("has no effect in DeepSpeed; remove it", (True, None)),
    "allgather_bucket_size": "integer",
    "overlap_comm": "switch",
    "compute_grad_norm": "switch",
    "load_from_fp32_weights": NoEffect("would resume from rounded weights; remove it", (True, None)),
    "elastic_checkpoint": _CHECKPOINT,
    "offload_param": {
        "device": "text",
        "nvme_path": "text",
        "buffer_count": "integer",
        "buffer_size": "integer",
        "max_in_cpu": "integer",
        "pin_memory": "switch",
    },
    "offload_optimizer": {
        "device": "text",
        "nvme_path": "text",
        "buffer_count": "integer",
        "pin_memory": "switch",
        "pipeline_read": "switch",
        "pipeline_write": "switch",
        "fast_init": "switch",
        "ratio": "number",
        "super_offload": "switch",
        "cpuadam_cores_perc": "number",
    },
    "zenflow": {
        "topk_ratio": "positive number",
        "select_strategy": "text",
        "select_interval": "any",
        "update_interval": "any",
        "overlap_step": "switch",
        "offload": "switch",
        "auto_ratio": "number",
        "full_warm_up_rounds": "integer",
        "pt_reserved_cores_perc": "number",
        "steps_per_epoch": NoEffect("is computed by DeepSpeed; remove it", (None,)),
    },
    "sub_group_size": "integer",
    "cpu_offload": NoEffect(_NOT_THIS_NAME.format("offload_optimizer"), (None,)),
    "cpu_offload_param": NoEffect(_NOT_THIS_NAME.format("offload_param"), (None,)),
    "cpu_offload_use_pin_memory": NoEffect(_NOT_THIS_NAME.format("pin_memory of offload_optimizer"), (None,)),
    "stage3_prefetch_bucket_size": "integer",
    "stage3_param_persistence_threshold": "integer",
    "stage3_model_persistence_threshold": "integer",
    "stage3_max_live_parameters": "integer",
    "stage3_max_reuse_distance": "integer",
    "stage3_gather_16bit_weights_on_model_save": _CHECKPOINT,
    "stage3_gather_fp16_weights_on_model_save": _CHECKPOINT,
    "stage3_module_granularity_threshold": "integer",
    "stage3_use_all_reduce_for_fetch_params": "switch",
    "stage3_allgather_sequential": "switch",
    "ignore_unused_parameters": "switch",
    "legacy_stage1": _REMOVED,
    "round_robin_gradients": "switch",
    "parameter_alignment": "switch",
    "zero_hpz_partition_size": "integer",
    "zero_quantized_weights": "switch",
    "zero_quantized_nontrainable_weights": "switch",
    "zero_quantized_gradients": "switch",
    "memory_efficient_linear": "switch",
    "pipeline_loading_checkpoint": _CHECKPOINT,
    "override_module_apply": "switch",
    "log_trace_cache_warnings": "switch",
    "enable_sanity_checks": "switch",
    "save_muon_momentum_buffer_in_memory": "switch",
    "leaf_module": {"classes": "list", "names": "list", "name_suffixes": "list"},
}
"""Keys of ``zero_optimization``, by the names that DeepSpeed documents."""

KEYS: Keys = {
    "bf16": {
        "enabled": "switch",
        "immediate_grad_update": "switch",
        "check_grad_overflow": "switch",
        "bf16_master_weights_and_grads": "switch",
        "bf16_optimizer_states": "switch",
    },
    "fp16": {
        "enabled": "switch",
        "auto_cast": NoEffect("has no effect: the model's inputs are integers; remove it"),
        "loss_scale": "number",
        "initial_scale_power": "exponent",
        "loss_scale_window": "positive integer",
        "hysteresis": "positive integer",
        "consecutive_hysteresis": "switch",
        "min_loss_scale": "positive integer",
        "fp16_master_weights_and_grads": "switch",
    },
    "torch_autocast": {"enabled": "switch", "dtype": "text", "lower_precision_safe_modules": "list"},
    "data_types": {"grad_accum_dtype": "text"},
    "zero_optimization": ZERO,
    "tensorboard": {"enabled": "switch", "output_path": "text", "job_name": "text"},
    "wandb": {"enabled": "switch", "group": "text", "team": "text", "project": "text"},
    "csv_monitor": {"enabled": "switch", "output_path": "text", "job_name": "text"},
    "comet": {
        "enabled": "switch",
        "samples_log_interval": "positive integer",
        "project": "text",
        "workspace": "text",
        "api_key": "text",
        "experiment_name": "text",
        "experiment_key": "text",
        "online": "switch",
        "mode": "text",
    },
    "aio": {
        "block_size": "positive integer",
        "queue_depth": "positive integer",
        "intra_op_parallelism": "positive integer",
        "single_submit": "switch",
        "overlap_events": "switch",
        "use_gds": "switch",
    },
    "timers": {"throughput": {"enabled": "switch", "synchronized": "switch"}},
    "checkpoint": {
        "tag_validation": ("Ignore", "Warn", "Fail"),
        "checkpoint_serialization": _CHECKPOINT,
        "writer": _CHECKPOINT,
        "load_universal": _CHECKPOINT,
        "use_node_local_storage": _CHECKPOINT,
        "parallel_write": _CHECKPOINT,
    },
    "communication_data_type": ("fp32", "bf16", "fp16"),
    "prescale_gradients": "switch",
    "gradient_predivide_factor": "positive number",
    "activation_checkpointing": NoEffect(
        "has no effect on this project's model; set elc_bert.training.activation_checkpointing instead"
    ),
    "compile": NoEffect("has no effect on this project's model; set elc_bert.training.compile instead"),
    "steps_per_print": NoEffect(
        "has no effect: this project prints its own log; set elc_bert.training.log_every instead", (None,)
    ),
    "wall_clock_breakdown": _NOT_PRINTED,
    "memory_breakdown": _NOT_PRINTED,
    "dump_state": _NOT_PRINTED,
    "comms_logger": _NOT_PRINTED,
    "flops_profiler": NoEffect(
        "is not supported: this project counts operations itself (train/mfu); remove it"
    ),
    "zero_allow_untested_optimizer": NoEffect("is always true in this project; remove it", (True, None)),
    "zero_force_ds_cpu_optimizer": NoEffect("is always false in this project; remove it"),
    "gradient_allreduce_op": NoEffect("is always mean in this project; remove it", ("mean", None)),
    "managed_gradient_accumulation": NoEffect("is always true in this project; remove it", (True, None)),
    "dataloader_drop_last": _DATA,
    "data_efficiency": _DATA,
    "disable_allgather": NoEffect("has no effect in DeepSpeed; remove it"),
    "fp32_allreduce": NoEffect("has no effect in DeepSpeed; set communication_data_type to fp32 instead"),
    "load_universal": _CHECKPOINT,
    "use_node_local_storage": _CHECKPOINT,
    "datastates_ckpt": _CHECKPOINT,
    "bfloat16": NoEffect(_NOT_THIS_NAME.format("bf16"), ()),
    **dict.fromkeys(
        ("autotuning", "disable_python_gc", "expert_parallel", "hybrid_engine", "log_level", "pipeline",
         "seq_parallel_communication_data_type", "sequence_parallel_size", "tensor_parallel",
         "use_data_before_expert_parallelism", "vocabulary_size", "weight_quantization"),
        _UNSUPPORTED,
    ),
    **dict.fromkeys(
        ("amp", "compression_training", "curriculum_learning", "elasticity", "eigenvalue",
         "graph_harvesting", "nebula", "progressive_layer_drop", "quantize_training", "sparse_attention",
         "sparse_gradients"),
        _REMOVED,
    ),
}  # fmt: skip
"""Top-level keys of DeepSpeed. Those that ``RunConfig`` has as fields are not among them."""
