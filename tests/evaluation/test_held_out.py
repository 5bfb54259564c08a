"""Combination of scores. Their values are tested in test_minimal_pairs.py and tests/report."""

import math

import pytest

from elc_bert.evaluation.held_out import Score, combine_scores


def test_parts_are_weighted_by_masked_tokens():
    both = combine_scores([Score(2.0, 0.5, 30), Score(6.0, 0.1, 10), Score(0.0, 0.0, 0)])
    assert both == Score(3.0, pytest.approx(0.4), 40)
    assert both.perplexity == pytest.approx(math.exp(3.0))


def test_perplexity_of_a_diverged_model():
    assert Score(1e4, 0.0, 1).perplexity == math.inf
    assert math.isnan(Score(math.nan, 0.0, 1).perplexity)
