"""Text and masks of held-out evaluations do not depend on how a run trains."""

import json
from typing import Any

import pytest

from elc_bert.config.held_out import HeldOutSettings, describe_masks, held_out_step
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from tests.support.launching import write_config

TRAINING = (
    "elc_bert.training.seed=7",
    "elc_bert.data.mask_probability=0.3",
    "elc_bert.data.random_probability=0.0",
    "elc_bert.data.keep_probability=0.25",
    "elc_bert.data.short_probability=0.5",
)
"""Settings of training that once decided the held-out masks."""


@pytest.fixture
def load(tmp_path):
    """Function that loads a configuration with overrides."""
    path = write_config(tmp_path, tmp_path / "data", tmp_path / "tokenizer.json")
    return lambda *overrides: load_config(path, overrides)


def early(config: RunConfig) -> dict[str, Any]:
    """Return a configuration as versions without settings of their own saved it."""
    content = json.loads(config.model_dump_json())
    for key in ("seed", "mask_probability"):
        del content["elc_bert"]["evaluation"][key]
    return content


def test_one_default_holds_for_all_runs(load):
    expected = HeldOutSettings(42, 0.15, 32, 16, "reference", 0.1, 0.1)
    for config in (load(), load(*TRAINING)):
        assert HeldOutSettings.of_run(config) == expected
        assert HeldOutSettings.of_record(json.loads(config.model_dump_json())) == expected
    model_without_run = HeldOutSettings()
    assert (model_without_run.seed, model_without_run.mask_probability) == (42, 0.15)


def test_the_section_evaluation_decides(load):
    config = load("elc_bert.evaluation.seed=5", "elc_bert.evaluation.mask_probability=0.4")
    expected = HeldOutSettings(5, 0.4, 32, 16, "reference")
    assert HeldOutSettings.of_run(config) == expected
    assert HeldOutSettings.of_record(config.model_dump(mode="json")) == expected


def test_early_versions_used_the_masks_of_training(load):
    expected = HeldOutSettings(7, 0.3, 32, 16, "reference", 0.0, 0.25)
    assert HeldOutSettings.of_record(early(load(*TRAINING))) == expected
    assert HeldOutSettings.of_record(early(load())) == HeldOutSettings.of_run(load())


def test_descriptions_name_masks_and_text(load):
    assert describe_masks(load().model_dump(mode="json")) == (
        "masks of 15 % of the tokens, seed 42, on at most 16 sequences of 32 tokens (reference segments)"
    )
    assert describe_masks(early(load(*TRAINING, "elc_bert.evaluation.sequences=null"))) == (
        "masks of 30 % of the tokens (0 random, 0.25 unchanged), seed 7, on all sequences of 32 tokens "
        "(reference segments)"
    )
    assert describe_masks({"elc_bert": {}}) == "masks unknown"


def test_a_resumed_run_of_an_early_version_says_how_to_continue_its_curve(load):
    assert held_out_step(early(load()), load()) == "", "nothing changes at the default settings"
    before = load("elc_bert.training.seed=7", "elc_bert.data.mask_probability=0.2")
    message = held_out_step(early(before), before)
    assert (
        "up to the checkpoint, the held-out loss was measured with masks of 20 % of the tokens, seed 7"
        in message
    )
    assert "from now on with masks of 15 % of the tokens, seed 42" in message
    advice = ("elc_bert.evaluation.seed=7", "elc_bert.evaluation.mask_probability=0.2")
    assert message.endswith(f"to avoid that, set {advice[0]} and {advice[1]}")
    followed = load("elc_bert.training.seed=7", "elc_bert.data.mask_probability=0.2", *advice)
    assert held_out_step(early(before), followed) == ""
    assert "to avoid that" not in held_out_step(early(load(*TRAINING)), load(*TRAINING))
    more = held_out_step(load().model_dump(mode="json"), load("elc_bert.evaluation.sequences=17"))
    assert more.endswith("its curve may have a step"), "another number of sequences was asked for"
    assert held_out_step({}, load()) == ""


@pytest.mark.parametrize("override", ["mask_probability=0", "mask_probability=1", "seed=-1", "seed=0.5"])
def test_values_out_of_range_are_refused(load, override):
    with pytest.raises(ValueError, match=f"elc_bert.evaluation.{override.split('=')[0]} = "):
        load(f"elc_bert.evaluation.{override}")
