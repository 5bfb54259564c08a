"""The configurations that come with the project."""

from pathlib import Path

import pytest
import torch

from elc_bert.config.batch_plan import plan_phases
from elc_bert.config.deepspeed import check_deepspeed_sections
from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def load(name: str, *overrides: str) -> RunConfig:
    return load_config(DS_CONFIGS / f"{name}.json", overrides)


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_configuration_is_valid_and_survives_being_saved(path, tmp_path):
    config = load_config(path)
    check_deepspeed_sections(config)
    saved = tmp_path / "config.json"
    saved.write_text(config.model_dump_json(), encoding="utf-8")
    assert load_config(saved).model_dump() == config.model_dump()


@pytest.mark.parametrize(
    ("name", "batch", "learning_rate", "decay", "parameters"),
    [("strict", 32768, 0.01, 0.1, 98), ("strict_small", 8192, 0.005, 0.4, 24)],
)
def test_the_strict_configurations_equal_the_published_recipe(name, batch, learning_rate, decay, parameters):
    config = load(name)
    ours = config.elc_bert
    assert (ours.training.max_steps, ours.training.sequence_length) == (15_625, 128)
    assert ours.training.long_after == 0.9
    assert config.train_batch_size == batch
    assert config.optimizer.is_lamb
    assert config.optimizer.params == {
        "lr": learning_rate,
        "betas": (0.9, 0.98),
        "eps": 1e-6,
        "weight_decay": decay,
        "fused": None,
    }
    assert config.scheduler.type == "Cosine"
    assert config.scheduler.params == {"warmup_proportion": 0.016, "min_factor": 0.1}
    assert config.gradient_clipping == 2.0
    assert (config.precision, config.zero_stage) == ("bf16", 1)
    assert config.deepspeed_extras["data_types"] == {"grad_accum_dtype": "fp32"}
    assert ours.data.mask_probability == 0.15
    assert (ours.data.random_probability, ours.data.keep_probability) == (0.1, 0.1)
    assert ours.data.short_probability == 0.1
    with torch.device("meta"):
        model = ElcBertForMaskedLM(ours.model)
    assert round(model.num_parameters() / 1e6) == parameters


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16, 128])
def test_the_batch_of_strict_can_be_divided_among_devices(devices):
    config = load("strict")
    training = config.elc_bert.training
    schedule = LengthSchedule(
        training.max_steps, training.sequence_length, config.train_batch_size, training.long_after
    )
    plans = plan_phases(config, schedule, devices)
    assert [plan.global_batch for plan in plans.values()] == [32_768, 8_192]
    assert [plan.world_size for plan in plans.values()] == [devices] * 2
    # A micro-batch has the same number of tokens before and after the switch to longer sequences.
    assert [plan.micro_batch for plan in plans.values()] == [256, 64]
    assert [(p.first_step, p.sequence_length) for p in schedule.phases] == [(0, 128), (14_062, 512)]


def test_a_batch_that_is_divisible_only_before_sequences_become_longer_is_refused():
    config = load("strict")
    schedule = LengthSchedule(100, 128, config.train_batch_size, 0.9)
    with pytest.raises(UserError, match=r"^train_batch_size / 4 after .*long_after: 8192 sequences .* 16384"):
        plan_phases(config, schedule, 16_384)


def test_the_configuration_is_frozen():
    config = load("demo")
    with pytest.raises(ValueError, match="frozen"):
        config.elc_bert.training.max_steps = 1


def test_every_field_has_a_docstring():
    """The page ``docs/configuration.md`` is generated from the docstrings of the fields."""
    missing = []

    def visit(model) -> None:
        for name, field in model.model_fields.items():
            if hasattr(field.annotation, "model_fields"):
                visit(field.annotation)
            elif not field.description and name not in ("type", "params"):
                missing.append(f"{model.__name__}.{name}")

    visit(RunConfig)
    assert missing == []


def test_demo_needs_no_accelerator():
    config = load("demo")
    assert (config.precision, config.zero_stage) == ("fp32", 0)
