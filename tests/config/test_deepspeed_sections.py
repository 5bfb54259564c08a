"""The typed sections read a value as DeepSpeed's own classes do."""

import json
from pathlib import Path
from typing import Any

import pytest

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed import deepspeed_config
from elc_bert.config.reader import load_config

PLAN = BatchPlan(micro_batch=4, accumulation=2, world_size=1)


def configuration(folder: Path, **sections: Any) -> Path:
    """Write a configuration file with the required keys and some sections."""
    path = folder / "run.json"
    data = {"train": "train", "dev": "dev", "tokenizer": "tokenizer.json"}
    training = {"output_dir": "run", "max_steps": 10}
    content = {"train_batch_size": 8, "elc_bert": {"data": data, "training": training}, **sections}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("value", "expected"), [(True, True), (False, False), ("True", True), ("False", False)]
)
@pytest.mark.parametrize("name", ["bf16", "fp16", "tensorboard", "torch_autocast"])
def test_a_switch_means_the_same_to_this_project_and_to_deepspeed(
    name: str, value: Any, expected: bool, tmp_path: Path
):
    from deepspeed.monitor.config import get_monitor_config
    from deepspeed.runtime.config import get_torch_autocast_enabled
    from deepspeed.runtime.precision_config import get_bfloat16_config, get_float16_config

    config = load_config(configuration(tmp_path, **{name: {"enabled": value}}))
    readers = {
        "bf16": lambda content: get_bfloat16_config(content).enabled,
        "fp16": lambda content: get_float16_config(content).enabled,
        "torch_autocast": get_torch_autocast_enabled,
        "tensorboard": lambda content: get_monitor_config(content).tensorboard.enabled,
    }
    assert getattr(config.deepspeed, name).enabled is expected
    content = deepspeed_config(config, PLAN) if name != "tensorboard" else config.deepspeed_extras
    assert readers[name](content) is expected
    precisions = {"bf16": "bf16", "fp16": "fp16", "torch_autocast": "bf16 autocast"}
    assert config.precision == (precisions.get(name, "fp32") if expected else "fp32")
    saved = json.loads(config.model_dump_json())
    assert saved[name] == {"enabled": expected}


@pytest.mark.parametrize(
    "content",
    [
        {"stage": "2"},
        {"stage": 2.0, "reduce_bucket_size": "1000"},
        {"stage": 3, "overlap_comm": "False"},
        {"stage": 3, "overlap_comm": "auto", "stage3_max_live_parameters": "auto"},
        {"stage": 3, "reduce_bucket_size": "auto", "offload_optimizer": {"device": "cpu", "ratio": "auto"}},
        {"stage": 1, "offload_optimizer": {"device": "cpu"}},
        {"stage": 3, "max_live_parameters": 1234},
    ],
)
def test_zero_options_mean_what_they_mean_to_deepspeed(content: dict[str, Any], tmp_path: Path):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    config = load_config(configuration(tmp_path, zero_optimization=content))
    ours, theirs = config.deepspeed.zero_optimization, DeepSpeedZeroConfig(**content)
    assert "auto" not in json.dumps(config.deepspeed_extras)
    assert DeepSpeedZeroConfig(**deepspeed_config(config, PLAN)["zero_optimization"]) == theirs
    assert ours.stage == theirs.stage
    assert ours.reduce_bucket_size == theirs.reduce_bucket_size
    assert ours.stage3_max_live_parameters == theirs.max_live_parameters
    assert ours.overlaps_communication == theirs.overlap_comm
    offload = theirs.offload_optimizer
    assert ours.offload_optimizer.device == (offload.device if offload else "none")
