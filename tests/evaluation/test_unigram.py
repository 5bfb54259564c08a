"""What guessing without context can reach."""

import math

import numpy as np
import pytest

from elc_bert.evaluation import unigram as module
from elc_bert.evaluation.unigram import unigram


def test_entropy_of_a_text_worked_out_by_hand():
    # Of 8 tokens that count, shares 1/2, 1/4, 1/8 and 1/8: 1.75 bits.
    result = unigram(np.array([10, 11, 10, 12, 10, 11, 13, 10], dtype=np.uint16))
    assert result.entropy == pytest.approx(1.75 * math.log(2))
    assert (result.top_token, result.top_share) == (10, 0.5)


def test_special_tokens_do_not_count():
    text = np.array([7, 8, 8, 9])
    with_special_tokens = np.array([1, 7, 8, 5, 8, 5, 9, 5, 2, 3, 3, 3])
    assert unigram(with_special_tokens) == unigram(text)


def test_one_token_alone_leaves_nothing_to_guess():
    result = unigram(np.full(5, 20))
    assert result.entropy == 0.0
    assert result.top_share == 1.0


def test_it_is_the_lowest_loss_of_any_fixed_guess():
    draw = np.random.default_rng(3)
    tokens = draw.zipf(1.5, 2000).clip(1, 80) + 5
    entropy = unigram(tokens).entropy
    counts = np.bincount(tokens, minlength=86)[6:]
    own = counts / counts.sum()
    for guess in (draw.dirichlet(np.ones(80)), np.full(80, 1 / 80), 0.9 * own + 0.1 / 80):
        assert -(own * np.log(guess)).sum() > entropy
    np.testing.assert_allclose(-(own[own > 0] * np.log(own[own > 0])).sum(), entropy, rtol=1e-12)


def test_reading_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    tokens = np.random.default_rng(4).integers(0, 300, 1000).astype(np.uint16)
    expected = unigram(tokens)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 17)
    assert unigram(tokens) == expected
