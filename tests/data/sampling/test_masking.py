import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.data.format.vocabulary import CLS, MASK, PAD, PAR, SEP, TAB, USUAL_TOKENS, SpecialTokens
from elc_bert.data.sampling.masking import (
    BLOCK,
    Masking,
    binomial_thresholds,
    mask_spans,
    mask_spans_reference,
    replacement_ids,
)
from elc_bert.data.sampling.random import BITS, CounterRandom
from elc_bert.utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/span_masking_statistics.json").read_text())
VOCABULARY = 6144


def samples_of(count, width, seed=0):
    """Return random tokens between [CLS] and [SEP], and the generator of their masks."""
    tokens = np.random.default_rng(seed).integers(TAB, VOCABULARY, (count, width), np.int32)
    tokens[:, 0], tokens[:, -1] = CLS, SEP
    return (
        tokens,
        np.full(count, width),
        CounterRandom(seed, np.zeros(count, dtype=np.int64), np.arange(count)),
    )


def ratio(numerator, denominator):
    """Return the ratio of two sums over independent samples, and its standard error.

    Values within a sample may be correlated, so this is the usual linearization for cluster samples.
    """
    value = numerator.sum() / denominator.sum()
    return value, (numerator - value * denominator).std() / denominator.mean() / len(numerator) ** 0.5


def statistics(tokens, inputs, predicted):
    """Return all statistics of the golden file with standard errors, by the names in that file."""
    masked = predicted[:, 1:-1]
    count = len(masked)
    share = masked.mean(axis=1)
    spread = (share - share.mean()) ** 2
    ones = np.ones(count)
    found = {
        "mean_masked_fraction": ratio(share, ones),
        "std_masked_fraction": (share.std(), spread.std() / (2 * share.std()) / count**0.5),
        "share_with_nothing_masked": ratio((share == 0).astype(float), ones),
        "p_first_word_masked": ratio(masked[:, 0].astype(float), ones),
        "p_last_word_masked": ratio(masked[:, -1].astype(float), ones),
    }
    inner = inputs[:, 1:-1]
    is_mask, is_same = inner == MASK, inner == tokens[:, 1:-1]
    for name, kind in (("mask_token", is_mask), ("unchanged", is_same), ("random", ~is_mask & ~is_same)):
        found[f"share_{name}"] = ratio((kind & masked).sum(axis=1), masked.sum(axis=1))
    edges = np.diff(np.pad(masked, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    (rows, begins), (_, ends) = np.nonzero(edges == 1), np.nonzero(edges == -1)
    runs = np.bincount(rows, minlength=count)
    for length in range(1, 16):
        right = ends - begins >= 15 if length == 15 else ends - begins == length
        found[f"run {length}"] = ratio(np.bincount(rows[right], minlength=count), runs)
    return found


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda g: f"T={g['sequence_length']}, p={g['mask_p']}")
def test_shares_and_means_match_the_reference(golden):
    count = golden["samples"]
    tokens, lengths, random = samples_of(count, golden["sequence_length"], seed=11)
    inputs, predicted = mask_spans(tokens, lengths, VOCABULARY, Masking(mask_p=golden["mask_p"]), random)
    expected = {name: value for name, value in golden.items() if isinstance(value, float)}
    expected |= {f"run {length}": share for length, share in golden["masked_run_length_share"].items()}
    found = statistics(tokens, inputs, predicted)
    for name in expected.keys() & found.keys():
        value, error = found[name]
        # The golden figures are from as many samples, and rounded to the digits printed.
        tolerance = 3 * (2 * max(error, 1 / count) ** 2) ** 0.5 + 5e-5
        assert abs(value - expected[name]) < tolerance, (name, value, expected[name], error)


ROWS = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=20), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 2**64 - 1), shares=st.tuples(*[st.floats(0, 1)] * 3), data=st.data())
def test_a_batch_matches_the_reference_implementation(rows, seed, shares, data):
    width = data.draw(st.integers(max(map(len, rows)), 24))
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), width), PAD, dtype=np.int32)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    mask_p, random_p, keep_share = shares
    masking = Masking(mask_p=mask_p, random_p=random_p, keep_p=keep_share * (1 - random_p))
    random = CounterRandom(seed, np.arange(len(rows)), np.arange(len(rows)))
    for fast, plain in zip(
        mask_spans(tokens, lengths, 50, masking, random),
        mask_spans_reference(tokens, lengths, 50, masking, random),
        strict=True,
    ):
        assert np.array_equal(fast, plain)


OTHER = SpecialTokens(unk=30, cls=2, sep=11, pad=49, mask=0, par=17, tab=5)
"""Special tokens with ids all over a vocabulary of 50."""


@settings(max_examples=60, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 2**64 - 1), random_p=st.floats(0, 1))
def test_a_batch_with_other_special_tokens_matches_the_reference_implementation(rows, seed, random_p):
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), 24), OTHER.pad, dtype=np.int32)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    masking = Masking(mask_p=0.6, random_p=random_p, keep_p=(1 - random_p) / 3, special=OTHER)
    random = CounterRandom(seed, np.arange(len(rows)), np.arange(len(rows)))
    inputs, predicted = mask_spans(tokens, lengths, 50, masking, random)
    plain_inputs, plain_predicted = mask_spans_reference(tokens, lengths, 50, masking, random)
    assert np.array_equal(inputs, plain_inputs)
    assert np.array_equal(predicted, plain_predicted)
    assert not np.isin(tokens[predicted], [30, 2, 11, 49, 0, 17]).any()


def test_other_special_tokens_mask_the_same_positions():
    """Only names and ids differ: the masks are those of the same text with the usual special tokens."""
    tokens, lengths, random = samples_of(300, 64)
    tokens[:, 5:9], tokens[:, 20] = PAR, TAB
    shift = np.arange(VOCABULARY)[::-1].astype(np.int32)  # id i becomes VOCABULARY - 1 - i
    special = SpecialTokens(*(VOCABULARY - 1 - number for number in range(7)))
    for random_p in (0.0, 0.3):
        masking = Masking(mask_p=0.4, random_p=random_p)
        other = Masking(mask_p=0.4, random_p=random_p, special=special)
        inputs, predicted = mask_spans(tokens, lengths, VOCABULARY, masking, random)
        shifted_inputs, shifted = mask_spans(shift[tokens], lengths, VOCABULARY, other, random)
        assert np.array_equal(predicted, shifted)
        is_mask = inputs == MASK
        assert np.array_equal(shifted_inputs == special.mask, is_mask)
        assert predicted[tokens == TAB].any()
        if random_p == 0:
            assert np.array_equal(shift[inputs], shifted_inputs)


def test_replacements_are_all_tokens_but_five():
    tokens, lengths, random = samples_of(300, 128)
    tokens = np.where(tokens < TAB, OTHER.cls, 1 + tokens % 2 * 2).astype(np.int32)
    masking = Masking(mask_p=0.9, random_p=1, keep_p=0, special=OTHER)
    inputs, masked = mask_spans(tokens, lengths, 50, masking, random)
    assert set(inputs[masked].tolist()) == set(range(50)) - {30, 2, 11, 49, 0}
    assert replacement_ids(OTHER, 50).tolist() == sorted(set(range(50)) - {30, 2, 11, 49, 0})
    assert replacement_ids(USUAL_TOKENS, 9).tolist() == [5, 6, 7, 8]


def test_special_tokens_are_never_masked_and_unpredicted_tokens_stay():
    tokens, lengths, random = samples_of(500, 64)
    tokens[:, 5:9] = PAR
    inputs, masked = mask_spans(tokens, lengths, VOCABULARY, Masking(mask_p=0.5), random)
    assert inputs.dtype == tokens.dtype
    assert np.array_equal(inputs[~masked], tokens[~masked])
    assert not masked[tokens < TAB].any()


@pytest.mark.parametrize(
    ("masking", "kind"),
    [
        (Masking(random_p=0, keep_p=0), "mask"),
        (Masking(random_p=1, keep_p=0), "random"),
        (Masking(random_p=0, keep_p=1), "keep"),
    ],
)
def test_a_probability_of_one_applies_to_every_span(masking, kind):
    tokens, lengths, random = samples_of(300, 128)
    inputs, masked = mask_spans(tokens, lengths, 40, masking, random)
    seen = inputs[masked]
    if kind == "mask":
        assert (seen == MASK).all()
    elif kind == "random":
        assert np.unique(seen).tolist() == list(range(PAR, 40))
    else:
        assert np.array_equal(inputs, tokens)


def test_nothing_and_everything_can_be_masked():
    tokens, lengths, random = samples_of(50, 32)
    none = mask_spans(tokens, lengths, VOCABULARY, Masking(mask_p=0), random)[1]
    assert not none.any()
    every = mask_spans(tokens, lengths, VOCABULARY, Masking(mask_p=1), random)[1]
    # 100 tries leave out hardly anything of 30 words.
    assert every[:, 1:-1].mean() > 0.99


@pytest.mark.parametrize("width", [20, 70, 300])
def test_long_samples_match_the_reference_implementation(width):
    """Cover samples of several blocks, and samples that need more spans than are drawn at first."""
    tokens, lengths, random = samples_of(12, width, seed=7)
    lengths[6:] = width // 2
    tokens[6:, width // 2 :] = PAD
    for mask_p in (0.15, 0.9):
        masking = Masking(mask_p=mask_p)
        fast = mask_spans(tokens, lengths, VOCABULARY, masking, random)
        plain = mask_spans_reference(tokens, lengths, VOCABULARY, masking, random)
        assert all(np.array_equal(a, b) for a, b in zip(fast, plain, strict=True))


@settings(max_examples=30, deadline=None)
@given(probability=st.integers(0, 1024).map(lambda k: k / 1024))
def test_the_binomial_table_matches_exact_arithmetic(probability):
    p = Fraction(probability)
    thresholds = binomial_thresholds(probability)
    assert [len(row) for row in thresholds] == list(range(BLOCK + 1))
    for n in (1, 2, 7, BLOCK):
        at_most = list(itertools.accumulate(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n)))
        for threshold, exact in zip(thresholds[n].tolist(), at_most, strict=True):
            assert abs(threshold - exact * 2**BITS) <= 2 * n
        assert sorted(thresholds[n].tolist()) == thresholds[n].tolist()


def test_invalid_probabilities_are_user_errors():
    with pytest.raises(UserError, match=r"mask_p is 1\.5"):
        Masking(mask_p=1.5)
    with pytest.raises(UserError, match=r"random_p \+ keep_p"):
        Masking(random_p=0.6, keep_p=0.6)
