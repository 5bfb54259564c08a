"""Sentences with a masked word, and predictions for it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elc_bert.config.schema import ModelConfig
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import MASK, PAR
from elc_bert.evaluation.fill_mask import Cloze, choose_clozes, fill_blank, sentence_with_blank, token_text
from elc_bert.model import ElcBertForMaskedLM


@pytest.fixture(scope="module")
def model() -> ElcBertForMaskedLM:
    torch.manual_seed(6)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    return ElcBertForMaskedLM(ModelConfig(vocab_size=512, **size)).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path):
    return TextTokenizer.load(tiny_tokenizer)


@pytest.fixture(scope="module")
def clozes(tiny_dataset: Path, tokenizer) -> list[Cloze]:
    return choose_clozes(IndexedDataset(tiny_dataset), tokenizer, 10, max_tokens=62)


def test_the_choice_is_deterministic(tiny_dataset: Path, tokenizer, clozes: list[Cloze]):
    again = choose_clozes(IndexedDataset(tiny_dataset), tokenizer, 10, max_tokens=62)
    assert [(c.ids.tolist(), c.position) for c in again] == [(c.ids.tolist(), c.position) for c in clozes]


def test_masked_words_are_whole_words_of_the_text(tiny_text: Path, tokenizer, clozes: list[Cloze]):
    text = " ".join(tiny_text.read_text(encoding="utf-8").split())
    assert len(clozes) >= 8
    for cloze in clozes:
        word = token_text(tokenizer, int(cloze.ids[cloze.position]))
        before, after = sentence_with_blank(tokenizer, cloze).split("____")
        assert f"{before}{word}{after}" in text
        assert len(word) >= 3
        assert word.isalpha()
        assert not before or before.endswith(" ")
        assert not after or after[0] in " .,"
        assert 8 <= len(f"{before}{word}{after}".split()) <= 25


def test_no_sentence_exceeds_max_tokens(tiny_dataset: Path, tokenizer):
    short = choose_clozes(IndexedDataset(tiny_dataset), tokenizer, 10, max_tokens=20)
    assert short
    assert max(len(cloze.ids) for cloze in short) <= 20
    assert choose_clozes(IndexedDataset(tiny_dataset), tokenizer, 10, max_tokens=2) == []


def test_predictions_have_the_largest_probabilities(
    model: ElcBertForMaskedLM, tokenizer, clozes: list[Cloze]
):
    everything = fill_blank(model, tokenizer, clozes[0], top_k=512)
    probabilities = [guess.probability for guess in everything]
    assert sum(probabilities) == pytest.approx(1.0, abs=1e-5)
    assert probabilities == sorted(probabilities, reverse=True)
    assert fill_blank(model, tokenizer, clozes[0], top_k=3) == everything[:3]
    assert fill_blank(model, tokenizer, clozes[0], top_k=10**9) == everything


def test_the_model_sees_the_mask_and_not_the_word(tokenizer, clozes: list[Cloze]):
    seen = []

    def model(input_ids, attention_mask, positions):
        seen.append((input_ids, attention_mask, positions))
        return torch.zeros(1, 512)

    cloze = clozes[0]
    original = cloze.ids.copy()
    fill_blank(model, tokenizer, cloze, top_k=3)
    ((input_ids, attention_mask, positions),) = seen
    assert input_ids.flatten()[positions].tolist() == [MASK]
    expected = np.concatenate([[1], original, [2]])
    expected[cloze.position + 1] = MASK
    assert input_ids.tolist() == [expected.tolist()]
    assert attention_mask.all()
    np.testing.assert_array_equal(cloze.ids, original)


def test_tokens_are_shown_as_text(tokenizer):
    plain = tokenizer.tokenizer
    ids = {token: plain.token_to_id(token) for token in ("Ġ", "a", ".", *tokenizer.encode("é").tokens)}
    assert token_text(tokenizer, ids["a"]) == "-a", "a token that continues a word begins with a hyphen"
    assert token_text(tokenizer, ids["."]) == "."
    # A single space and a single byte of a character are shown as they are spelled in the vocabulary.
    assert token_text(tokenizer, ids["Ġ"]) == "Ġ"
    assert token_text(tokenizer, ids["Ã"]) == "Ã"
    assert token_text(tokenizer, PAR) == "[PAR]"
    word = next(token for token in plain.get_vocab() if token[0] == "Ġ" and token[1:].isalpha())
    assert token_text(tokenizer, plain.token_to_id(word)) == word[1:]
