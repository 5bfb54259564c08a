"""The tables of DeepSpeed's keys: complete, and without keys that DeepSpeed does not have."""

import inspect
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from elc_bert.config.deepspeed_keys import KEYS, NoEffect
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.utils.errors import UserError
from tests.config.test_deepspeed_sections import configuration


def nested(model: type[BaseModel]) -> dict[str, Any]:
    """Return the keys of one of DeepSpeed's classes, by the names that it documents; null marks a boolean."""
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        types = (field.annotation, *get_args(field.annotation))
        sections = [each for each in types if inspect.isclass(each) and issubclass(each, BaseModel)]
        found[field.alias or name] = nested(sections[0]) if sections else None if bool in types else {}
    return found


def flat(keys: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key with its kind."""
    for name, kind in keys.items():
        if isinstance(kind, Mapping) and kind:
            yield from flat(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def test_every_key_of_deepspeeds_classes_is_in_the_tables():
    from deepspeed.monitor.config import CometConfig, CSVConfig, TensorBoardConfig, WandbConfig
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    classes = {
        "bf16": DeepSpeedBF16Config,
        "fp16": DeepSpeedFP16Config,
        "zero_optimization": DeepSpeedZeroConfig,
        "tensorboard": TensorBoardConfig,
        "wandb": WandbConfig,
        "csv_monitor": CSVConfig,
        "comet": CometConfig,
    }
    theirs = {name: nested(section) for name, section in classes.items()}
    theirs["timers"] = {"throughput": nested(DeepSpeedThroughputTimerConfig)}
    ours = dict(flat({name: KEYS[name] for name in theirs}))
    assert ours.keys() == dict(flat(theirs)).keys()
    booleans = {name for name, kind in flat(theirs) if kind is None}
    assert {name for name, kind in ours.items() if kind == "switch"} == {
        name for name in booleans if not isinstance(ours[name], NoEffect)
    }


def test_every_section_that_deepspeed_reads_without_a_class_is_in_the_tables():
    from deepspeed.runtime.config import _REMOVED_TOP_LEVEL_CONFIG_KEYS
    from deepspeed.runtime.model_checkpointing import constants as checkpoint
    from deepspeed.runtime.swap_tensor.aio_config import AIO_DEFAULT_DICT

    assert set(KEYS["aio"]) == set(AIO_DEFAULT_DICT)
    assert {name for name, kind in KEYS.items() if kind == KEYS["amp"]} == set(_REMOVED_TOP_LEVEL_CONFIG_KEYS)
    assert {checkpoint.CHECKPOINT_TAG_VALIDATION, checkpoint.CHECKPOINT_WRITER} < set(KEYS["checkpoint"])


def test_every_top_level_key_that_deepspeed_reads_is_in_the_tables():
    """``DeepSpeedConfig`` is given a dictionary that notes the keys that it is asked for."""
    import deepspeed.runtime.config as module

    class Asked(dict):
        def get(self, key, default=None):
            asked.add(key)
            return super().get(key, default)

        def keys(self):
            return All()

        def __contains__(self, key):
            asked.add(key)
            return super().__contains__(key)

        def __iter__(self):
            return iter(())

    class All:
        def __contains__(self, key):
            asked.add(key)
            return False

        def __iter__(self):
            return iter(())

    asked: set[str] = set()
    config = object.__new__(module.DeepSpeedConfig)
    config._initialize_params(Asked())
    known = set(KEYS) | set(RunConfig.model_fields)
    assert len(asked) > 40
    assert asked - known == set()


def refused(folder: Path, key: str, value: Any) -> str:
    *parents, last = key.split(".")
    content: Any = {last: value}
    for parent in reversed(parents):
        content = {parent: content}
    with pytest.raises(UserError) as error:
        load_config(configuration(folder, **content))
    return str(error.value).removeprefix(f"{folder / 'run.json'}: ")


@pytest.mark.parametrize("key", [name for name, kind in flat(KEYS) if not isinstance(kind, NoEffect)])
def test_a_misspelt_key_is_refused_with_the_right_one(key, tmp_path):
    """The last letter of every key of every section is doubled."""
    name = key.rpartition(".")[2]
    message = refused(tmp_path, key + key[-1], 1)
    assert message.startswith(f"unknown key {key}{key[-1]}; did you mean "), message
    assert message.endswith(f"{name}?"), message


@pytest.mark.parametrize("key", [name for name, kind in flat(KEYS) if isinstance(kind, NoEffect)])
def test_a_key_without_an_effect_is_refused_unless_it_says_what_happens_anyway(key, tmp_path):
    kind = dict(flat(KEYS))[key]
    for value in (True, False, 7, "text"):
        if not any(value is accepted for accepted in kind.accepted):
            assert refused(tmp_path, key, value) == f"{key}: {kind.advice}"
    for value in kind.accepted:
        section, _, name = key.partition(".")
        if name.count(".") == 0:
            load_config(configuration(tmp_path, **{section: {name: value} if name else value}))


def test_sections_that_are_switched_off_are_accepted(tmp_path):
    off = {"enabled": False, "profile_step": 1}
    load_config(configuration(tmp_path, flops_profiler=off, comms_logger=off, data_efficiency=off))
    load_config(
        configuration(tmp_path, activation_checkpointing={"partition_activations": False, "profile": None})
    )
    assert refused(tmp_path, "activation_checkpointing.number_checkpoints", 4).endswith(
        "set elc_bert.training.activation_checkpointing instead"
    )
    assert refused(tmp_path, "comms_logger", {"enabled": True}).startswith("comms_logger: has no effect")


def test_a_key_of_this_project_in_a_section_of_deepspeed_is_recognized(tmp_path):
    assert refused(tmp_path, "checkpoint.every", 5) == (
        "unknown key checkpoint.every; did you mean elc_bert.checkpoint.every?"
    )


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("zero_optimization.overlap_comm", [True, "True", "False", None, "auto"], [1, 0, "yes", "true", 1.0]),
        ("zero_optimization.stage", [0, 3, "2", 2.0], [True, 4, -1, "two", "auto", 1.5]),
        ("zero_optimization.reduce_bucket_size", [1, 5e8, "1000", "auto"], [0, -1, 1.5, True, "big", 2**63]),
        ("zero_optimization.sub_group_size", [0, 1e9, 2**63 - 1], [-1, 2**64, float("inf"), float("nan")]),
        ("zero_optimization.offload_optimizer.device", ["none", "cpu"], ["auto", 1, "gpu"]),
        ("zero_optimization.leaf_module.names", [["a"], "a"], [1, {}]),
        ("fp16.initial_scale_power", [0, 64], [65, -1, 10**9]),
        ("fp16.loss_scale", [0, 128.5], [-1, float("inf"), True, "auto"]),
        ("gradient_predivide_factor", [0.5, 2], [0, -1, float("nan"), True]),
        ("communication_data_type", ["fp32", "bf16", "fp16"], ["fp33", 32, "auto"]),
        ("checkpoint.tag_validation", ["Warn", "FAIL", "ignore"], ["no", True]),
        ("bf16.enabled", [True, False, "True", "False"], ["auto", "on", "TRUE", "true", 1, 0, []]),
        ("tensorboard.job_name", ["name"], [1, "auto", True]),
        ("data_types.grad_accum_dtype", ["fp32", None], [32, "auto", True]),
    ],
)  # fmt: skip
def test_values_of_each_type(key, good, bad, tmp_path):
    *parents, last = key.split(".")
    for value in good:
        content: Any = {last: value}
        for parent in reversed(parents):
            content = {parent: content}
        load_config(configuration(tmp_path, **content))
    for value in bad:
        assert refused(tmp_path, key, value).startswith(f"{key} = {json.dumps(value)}: "), value


def test_a_section_must_be_one(tmp_path):
    assert refused(tmp_path, "zero_optimization.offload_param", "cpu") == (
        "zero_optimization.offload_param: must be a section, not 'cpu'"
    )
    assert refused(tmp_path, "timers", True) == "timers: must be a section, not True"


def test_the_configuration_of_a_run_of_an_earlier_version_can_be_read(tmp_path):
    """Reports and evaluations read it; keys without an effect had none, and "auto" meant the default."""
    old = configuration(
        tmp_path,
        bf16={"enabled": "auto"},
        zero_optimization={"stage": 2, "overlap_comm": "auto", "cpu_offload": False},
        activation_checkpointing={"partition_activations": True},
        steps_per_print=2000,
        checkpoint={"every": 5},
    )
    with pytest.raises(UserError):
        load_config(old)
    config = load_config(old, of_finished_run=True)
    assert (config.precision, config.zero_stage) == ("fp32", 2)
    assert not config.deepspeed.zero_optimization.overlaps_communication
