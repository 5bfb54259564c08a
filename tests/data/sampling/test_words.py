"""Tests that the number of words is the number of strings between spaces."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.data.format.vocabulary import (
    CLS,
    MASK,
    PAR,
    SEP,
    SPECIAL_TOKENS,
    UNK,
    SpecialTokens,
    load_tokenizer,
)
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import TrainingSteps
from elc_bert.data.sampling.stream import SampleStream
from elc_bert.data.sampling.words import WordCounter

SPECIAL = {token: identity for identity, token in enumerate(SPECIAL_TOKENS)}
texts = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=12), min_size=1
).flatmap(lambda words: st.sampled_from([" ", "  "]).map(lambda gap: gap.join(words)))


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return load_tokenizer(tiny_tokenizer)


@given(text=texts)
@settings(max_examples=200, deadline=None)
def test_the_count_matches_str_split(text, tokenizer):
    # Hypothesis also tries the string constants of this project; special tokens are not words.
    assume(not any(token in text for token in SPECIAL_TOKENS))
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    if UNK in ids:  # a word of over 100 bytes
        return
    count = WordCounter(tokenizer.get_vocab())
    assert count(np.array([[CLS, *ids, SEP]])) == len(text.split())


def test_special_tokens_may_have_other_ids():
    special = SpecialTokens(unk=9, cls=8, sep=7, pad=6, mask=5, par=4, tab=None)
    names = {f"<{number}>": number for number in range(4, 10)}
    count = WordCounter({"Ġa": 0, "b": 1, "Ġc": 2, "[TAB]": 3, **names}, special)
    assert count(np.array([[8, 0, 1, 2, 9, 4, 5, 7, 6]])) == 3  # a, c and the unknown word
    assert count(np.array([[8, 3, 1, 7]])) == 0  # "[TAB]" is no special token here, but continues a word


def test_only_unknown_counts_among_special_tokens():
    count = WordCounter({**SPECIAL, "Ġa": 7, "b": 8, "Ġ": 9})
    assert count(np.array([[CLS, 7, 8, PAR, UNK, 7, SEP], [CLS, 9, 9, 8, 8, MASK, SEP]])) == 3 + 1


def test_vocabularies_with_a_continuation_prefix():
    count = WordCounter({**SPECIAL, "a": 7, "##b": 8})
    assert count(np.array([[CLS, 7, 8, 8, 7, SEP]])) == 2


def test_a_word_split_between_two_samples_is_counted_once():
    count = WordCounter({**SPECIAL, "Ġa": 7, "b": 8})
    assert count(np.array([[CLS, 7, 7, SEP], [CLS, 8, 7, SEP]])) == 3


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("world_size", [1, 4])
def test_a_step_counts_every_word_of_its_samples_in_any_layout(pack, world_size, tiny_dataset, tokenizer):
    schedule = LengthSchedule(max_steps=4, sequence_length=32, global_batch=64, long_after=1.0)
    masking = Masking(short_p=0.3)
    found = 0
    for rank in range(world_size):
        steps = TrainingSteps(
            [Portion(tiny_dataset)],
            schedule,
            5,
            masking,
            vocab_size=512,
            rank=rank,
            world_size=world_size,
            micro_batch_of=lambda _: 8,
            pack=pack,
            count_words=WordCounter(tokenizer.get_vocab()),
        )
        found += sum(micro.words for micro in steps[2])

    stream = SampleStream([Portion(tiny_dataset)], 32, 5, 0, masking, 512, "reference")
    batch = stream(np.arange(2 * 64, 3 * 64))
    texts = [
        tokenizer.decode(row[real].tolist())
        for row, real in zip(batch.tokens, batch.attention_mask, strict=True)
    ]
    assert found == sum(len(text.split()) for text in texts) > 64
