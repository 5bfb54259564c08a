"""Masking, blends and held-out sets have the settings of the configuration."""

from fractions import Fraction
from pathlib import Path

import pytest

from elc_bert.config.reader import load_config
from elc_bert.config.schema import DataConfig
from elc_bert.data.format.vocabulary import SpecialTokens
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.from_config import (
    held_out_from_config,
    masking_from_config,
    portions_from_config,
)
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import HeldOut
from tests.config.test_held_out import TRAINING

PATHS = {"dev": "dev", "tokenizer": "tokenizer.json"}


def test_every_probability_has_its_own_key():
    data = DataConfig(
        train="a",
        **PATHS,
        mask_probability=0.31,
        random_probability=0.12,
        keep_probability=0.23,
        short_probability=0.44,
    )
    special = SpecialTokens(mask=9)
    assert masking_from_config(data, special) == Masking(
        mask_p=0.31, random_p=0.12, keep_p=0.23, short_p=0.44, special=special
    )


def test_held_out_samples_and_masks_depend_on_the_section_evaluation_only(configure, tmp_path):
    path = configure(tmp_path)

    def first(*overrides: str) -> dict[str, list]:
        held_out = held_out_from_config(load_config(path, overrides), micro_batch=16)
        return {name: value.tolist() for name, value in vars(held_out[0]).items() if hasattr(value, "tolist")}

    expected = first()
    assert first(*TRAINING) == expected
    masking = Masking(mask_p=0.15, random_p=0.1, keep_p=0.1)
    config = load_config(path).elc_bert
    by_hand = HeldOut(
        config.data.dev, 32, 16, 42, masking, vocab_size=512, rank=0, world_size=1, micro_batch=16
    )
    assert by_hand[0].input_ids.tolist() == expected["input_ids"]
    assert by_hand[0].targets.tolist() == expected["targets"]
    for change in ("seed=43", "mask_probability=0.3"):
        changed = first(f"elc_bert.evaluation.{change}")
        assert changed["input_ids"] != expected["input_ids"]
        # Another seed chooses other sequences; another share masks more of the same tokens.
        is_longer = len(changed["targets"]) > 1.5 * len(expected["targets"])
        assert is_longer == (change != "seed=43")


@pytest.mark.parametrize("key", ["weight", "epochs"])
def test_shares_are_the_decimal_numbers_of_the_file(key):
    data = DataConfig(train=[{"path": "a", key: 0.7}, {"path": "b", key: 3}], **PATHS)
    first, second = portions_from_config(data)
    other = {"weight": Fraction(1)} if key == "epochs" else {"epochs": None}
    assert first == Portion(Path("a"), **{key: Fraction(7, 10)}, **other)
    assert second == Portion(Path("b"), **{key: Fraction(3)}, **other)


def test_a_single_dataset_needs_no_share():
    assert portions_from_config(DataConfig(train="a", **PATHS)) == [Portion(Path("a"))]
