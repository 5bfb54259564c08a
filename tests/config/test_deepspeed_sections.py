"""The typed sections read a value as DeepSpeed's own classes do."""

import json
from pathlib import Path
from typing import Any

import pytest

from elc_bert.config.batch_plan import BatchPlan
from elc_bert.config.deepspeed import deepspeed_config
from elc_bert.config.deepspeed_sections import DeepSpeedSections
from elc_bert.config.reader import load_config
from elc_bert.utils.errors import UserError

PLAN = BatchPlan(micro_batch=4, accumulation=2, world_size=1)


def configuration(folder: Path, **sections: Any) -> Path:
    """Write a configuration file with the required keys and some sections."""
    path = folder / "run.json"
    data = {"train": "train", "dev": "dev", "tokenizer": "tokenizer.json"}
    training = {"output_dir": "run", "max_steps": 10}
    content = {"train_batch_size": 8, "elc_bert": {"data": data, "training": training}, **sections}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("value", [True, False, "true", "False", "no", 0, 1, "auto"])
@pytest.mark.parametrize("name", ["bf16", "fp16", "tensorboard"])
def test_switches_mean_what_they_mean_to_deepspeed(name: str, value: Any):
    from deepspeed.monitor.config import TensorBoardConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config

    classes = {"bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config, "tensorboard": TensorBoardConfig}
    sections = DeepSpeedSections.model_validate({name: {"enabled": value}})
    assert getattr(sections, name).enabled == classes[name](enabled=value).enabled


@pytest.mark.parametrize("value", [True, False, "true", "false", "no", 0, 1])
def test_autocast_means_what_it_means_to_deepspeed(value: Any, tmp_path: Path):
    from deepspeed.runtime.config import get_torch_autocast_enabled

    config = load_config(configuration(tmp_path, torch_autocast={"enabled": value}))
    expected = value in (True, "true", 1)
    assert config.precision == ("bf16 autocast" if expected else "fp32")
    assert get_torch_autocast_enabled(deepspeed_config(config, PLAN)) == expected


def test_autocast_must_be_on_or_off(tmp_path: Path):
    """DeepSpeed has no default for ``"auto"`` in this section, and would take it for true."""
    with pytest.raises(UserError, match=r"torch_autocast\.enabled.*auto"):
        load_config(configuration(tmp_path, torch_autocast={"enabled": "auto"}))


@pytest.mark.parametrize(
    "content",
    [
        {"stage": "2"},
        {"stage": 2.0, "reduce_bucket_size": "1000"},
        {"stage": 3, "overlap_comm": "False"},
        {"stage": 3, "overlap_comm": "auto", "stage3_max_live_parameters": "auto"},
        {"stage": 1, "offload_optimizer": {"device": "auto"}},
        {"stage": 1, "offload_optimizer": {"device": "cpu"}},
    ],
)
def test_zero_options_mean_what_they_mean_to_deepspeed(content: dict[str, Any]):
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    ours = DeepSpeedSections.model_validate({"zero_optimization": content}).zero_optimization
    theirs = DeepSpeedZeroConfig(**content)
    assert ours.stage == theirs.stage
    assert ours.reduce_bucket_size == theirs.reduce_bucket_size
    assert ours.stage3_max_live_parameters == theirs.max_live_parameters
    assert ours.overlaps_communication == theirs.overlap_comm
    offload = theirs.offload_optimizer
    assert ours.offload_optimizer.device == (offload.device if offload else "none")
