"""Numbers, booleans and paths of the configuration: what is no such value, or too large, is refused."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from elc_bert.config.model import ModelConfig
from elc_bert.config.optimizer import LambParams, ScheduleParams
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.config.section import LARGEST
from elc_bert.planner.parameters import count_parameters
from elc_bert.utils.errors import UserError
from tests.config.test_deepspeed_sections import configuration


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield the key of every value of the configuration with its types."""
    params = {"optimizer.params": LambParams, "scheduler.params": ScheduleParams}
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        annotation = params.get(key, field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from fields(annotation, f"{key}.")
        else:
            yield key, tuple(leaves(annotation))


def leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types in a union or list, without their limits."""
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for each in arguments[:1] if get_origin(annotation) is Annotated else arguments:
        yield from leaves(each)


FIELDS = dict(fields(RunConfig))
NUMBERS = [key for key, types in FIELDS.items() if {int, float}.intersection(types) and bool not in types]
BOOLEANS = [key for key, types in FIELDS.items() if bool in types]
PATHS = [key for key, types in FIELDS.items() if Path in types]


def message(folder: Path, *overrides: str) -> str:
    """Return the error for a configuration, without the name of the file; empty if it is valid."""
    file = configuration(folder)
    try:
        load_config(file, overrides)
    except UserError as error:
        return str(error).removeprefix(f"{file}: ")
    return ""


def test_the_walk_finds_every_kind_of_value():
    assert len(NUMBERS) >= 40
    assert {"gradient_clipping", "optimizer.params.lr", "elc_bert.training.hang_limit"} < set(NUMBERS)
    assert {"elc_bert.data.pack", "elc_bert.checkpoint.keep_best", "optimizer.params.fused"} < set(BOOLEANS)
    assert {"elc_bert.training.output_dir", "elc_bert.evaluation.minimal_pairs"} < set(PATHS)


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_is_finite_and_no_boolean(key, tmp_path):
    for value in ("Infinity", "-Infinity", "NaN", "1e999", "nan", "inf", "true", "True", "[true]", "{}"):
        assert message(tmp_path, f"{key}={value}").startswith(key), value


@pytest.mark.parametrize("key", [key for key in NUMBERS if int in FIELDS[key]])
def test_a_whole_number_has_an_upper_limit(key, tmp_path):
    """A run with huge values would fail late, or in a traceback, or not respond."""
    for value in ("1e30", str(10**400), str(2**63)):
        assert message(tmp_path, f"{key}={value}").startswith(key), value
    if not key.endswith("seed"):
        expected = f"{key} = {LARGEST + 1}: input should be less"
        assert message(tmp_path, f"{key}={LARGEST + 1}").startswith(expected)


@pytest.mark.parametrize("key", BOOLEANS)
def test_a_boolean_is_true_false_or_their_capitalized_words(key, tmp_path):
    for value in ("true", "false", "True", "False"):
        assert message(tmp_path, f"{key}={value}") == ""
    for value in ("1", "0", "yes", "no", "on", "TRUE", '"true"', "1.0", "[true]", "auto"):
        assert message(tmp_path, f"{key}={value}").startswith(f"{key}: must be true or false, not "), value


@pytest.mark.parametrize("key", PATHS)
def test_a_path_names_something(key, tmp_path):
    for value in ("", " ", '"\\u0000"'):
        assert message(tmp_path, f"{key}={value}") == f"{key}: must name a file or folder"
    assert message(tmp_path, f"{key}=~/runs").startswith(f'{key}: "~" has no special meaning')
    assert message(tmp_path, f"{key}=.") == ""


def test_words_are_booleans_in_a_file_too(tmp_path):
    config = load_config(configuration(tmp_path), ["elc_bert.data.pack=False", "optimizer.params.fused=True"])
    assert config.elc_bert.data.pack is False
    assert config.optimizer.params["fused"] is True


@pytest.mark.parametrize(
    ("override", "largest"),
    [
        ("elc_bert.model.hidden_size", 2**16),
        ("elc_bert.model.num_hidden_layers", 1024),
        ("elc_bert.model.intermediate_size", 2**20),
        ("elc_bert.model.vocab_size", 2**24),
        ("elc_bert.model.max_position_embeddings", 2**20),
        ("elc_bert.training.sequence_length", 2**20),
        ("elc_bert.data.workers", 1024),
        ("train_batch_size", LARGEST),
        ("elc_bert.training.max_steps", LARGEST),
    ],
)
def test_the_largest_value_of_a_size(override, largest, tmp_path):
    assert message(tmp_path, f"{override}={largest}", "elc_bert.model.num_attention_heads=1") == ""
    assert message(tmp_path, f"{override}={largest + 1}").startswith(
        f"{override} = {largest + 1}: input should be less than or equal to {largest}"
    )


def test_the_largest_model_is_counted_within_seconds():
    largest = ModelConfig(
        hidden_size=2**16,
        num_hidden_layers=1024,
        num_attention_heads=1024,
        intermediate_size=2**20,
        vocab_size=2**24,
    )
    start = time.monotonic()
    assert count_parameters(largest).total > 10**14
    assert time.monotonic() - start < 60


ADAMW = 'optimizer={"type": "AdamW", "params": {"lr": 0.01}}'


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([ADAMW, "optimizer.params.lr=Infinity"], "optimizer.params.lr: must be a finite number"),
        ([ADAMW, "optimizer.params.betas=[0.9,NaN]"], "optimizer.params.betas: must be a finite number"),
        ([ADAMW, "optimizer.params.lr=auto"], "optimizer.params.lr: only Hugging Face's Trainer can fill in"),
        (
            ['scheduler={"type": "WarmupLR", "params": {"warmup_max_lr": "auto"}}'],
            "scheduler.params.warmup_max_lr: only Hugging Face's Trainer can fill in",
        ),
        (
            [ADAMW, "optimizer.params.lr=auto", "optimizer.params.eps=auto"],
            "optimizer.params: lr, eps: only Hugging Face's Trainer can fill in",
        ),
        (
            [ADAMW, "optimizer.params.lr=NaN", "optimizer.params.eps=Infinity"],
            "optimizer.params: lr, eps: must be a finite number for each",
        ),
        (["gradient_clipping=auto"], 'gradient_clipping = "auto": input should be a valid number'),
    ],
)
def test_parameters_for_deepspeed_have_finite_numbers_and_no_auto(overrides, expected, tmp_path):
    assert message(tmp_path, *overrides).startswith(expected)


def test_auto_is_resolved_where_the_value_follows_from_others(tmp_path):
    batch = ["train_micro_batch_size_per_gpu=auto", "gradient_accumulation_steps=auto"]
    config = load_config(configuration(tmp_path), batch)
    assert (config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps) == (None, None)
    assert "auto" not in json.dumps({**config.model_dump(mode="json"), "elc_bert": None})
