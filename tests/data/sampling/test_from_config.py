"""Masking, blends and held-out sets have the settings of the configuration."""

from fractions import Fraction
from pathlib import Path

import pytest

from elc_bert.config.schema import DataConfig
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.from_config import masking_from_config, portions_from_config
from elc_bert.data.sampling.masking import Masking

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
    assert masking_from_config(data) == Masking(mask_p=0.31, random_p=0.12, keep_p=0.23, short_p=0.44)


@pytest.mark.parametrize("key", ["weight", "epochs"])
def test_shares_are_the_decimal_numbers_of_the_file(key):
    data = DataConfig(train=[{"path": "a", key: 0.7}, {"path": "b", key: 3}], **PATHS)
    first, second = portions_from_config(data)
    other = {"weight": Fraction(1)} if key == "epochs" else {"epochs": None}
    assert first == Portion(Path("a"), **{key: Fraction(7, 10)}, **other)
    assert second == Portion(Path("b"), **{key: Fraction(3)}, **other)


def test_a_single_dataset_needs_no_share():
    assert portions_from_config(DataConfig(train="a", **PATHS)) == [Portion(Path("a"))]
