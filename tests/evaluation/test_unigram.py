"""The best loss and accuracy without context."""

import math

import numpy as np
import pytest

from elc_bert.data.format.vocabulary import SpecialTokens
from elc_bert.evaluation import unigram as module
from elc_bert.evaluation.unigram import unigram_baseline


def test_entropy_computed_by_hand():
    # Eight tokens with shares 1/2, 1/4, 1/8 and 1/8 have an entropy of 1.75 bits.
    result = unigram_baseline(np.array([10, 11, 10, 12, 10, 11, 13, 10], dtype=np.uint16))
    assert result.entropy == pytest.approx(1.75 * math.log(2))
    assert (result.top_token, result.top_share) == (10, 0.5)


def test_special_tokens_may_have_other_ids():
    special = SpecialTokens(unk=20, cls=21, sep=22, pad=23, mask=24, par=25, tab=26)
    text = np.array([1, 2, 1, 3, 1])
    assert unigram_baseline(text, special).top_share == 0.6
    with_special = np.array([21, 1, 2, 25, 1, 3, 20, 1, 22, 23, 24])
    assert unigram_baseline(with_special, special) == unigram_baseline(text, special)
    # [TAB] can be masked, so it counts.
    assert unigram_baseline(np.array([26, 26, 1]), special).top_token == 26


def test_special_tokens_are_ignored():
    text = np.array([7, 8, 8, 9])
    with_special_tokens = np.array([1, 7, 8, 5, 8, 5, 9, 5, 2, 3, 3, 3])
    assert unigram_baseline(with_special_tokens) == unigram_baseline(text)


def test_a_single_distinct_token_has_no_entropy():
    result = unigram_baseline(np.full(5, 20))
    assert result.entropy == 0.0
    assert result.top_share == 1.0


def test_entropy_is_the_lowest_loss_of_any_fixed_distribution():
    draw = np.random.default_rng(3)
    tokens = draw.zipf(1.5, 2000).clip(1, 80) + 5
    entropy = unigram_baseline(tokens).entropy
    counts = np.bincount(tokens, minlength=86)[6:]
    optimum = counts / counts.sum()
    for distribution in (draw.dirichlet(np.ones(80)), np.full(80, 1 / 80), 0.9 * optimum + 0.1 / 80):
        assert -(optimum * np.log(distribution)).sum() > entropy
    np.testing.assert_allclose(
        -(optimum[optimum > 0] * np.log(optimum[optimum > 0])).sum(), entropy, rtol=1e-12
    )


def test_counting_in_chunks_gives_the_same_result(monkeypatch: pytest.MonkeyPatch):
    tokens = np.random.default_rng(4).integers(0, 300, 1000).astype(np.uint16)
    expected = unigram_baseline(tokens)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 17)
    assert unigram_baseline(tokens) == expected
