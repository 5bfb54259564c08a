"""Pseudo-log-likelihoods compared with their definition, one masked token at a time."""

import json

import numpy as np
import pytest
import torch

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import CLS, MASK, SEP, SPECIAL_TOKENS
from elc_bert.evaluation.minimal_pairs import Sentence
from elc_bert.evaluation.pseudo_likelihood import check_words, encode, masked_copies, score_sentences
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError
from tests.hub.test_export import random_model
from tests.support.angle_tokenizer import ANGLE_NAMES, with_angle_names


@pytest.fixture(scope="module")
def model() -> ElcBertForMaskedLM:
    return random_model("zero")


@pytest.fixture
def tokenizer(tiny_tokenizer) -> TextTokenizer:
    return TextTokenizer.load(tiny_tokenizer)


def sentences(tiny_text) -> list[str]:
    lines = [line for line in tiny_text.read_text().splitlines() if line]
    return [line[: 20 + 7 * number] for number, line in enumerate(lines[:12])]


def one_at_a_time(model, encoded, method) -> float:
    """Compute the score by the definition, with one forward pass per token."""
    total = 0.0
    for copy, position in zip(masked_copies(encoded, method), encoded.scored, strict=True):
        ids = torch.from_numpy(copy)[None]
        with torch.no_grad():
            logits = model(ids, torch.ones_like(ids, dtype=torch.bool), torch.tensor([position]))
        total += torch.log_softmax(logits[0], dim=-1)[encoded.ids[position]].item()
    return total


@pytest.mark.parametrize("method", ["plain", "within-word"])
@pytest.mark.parametrize("max_batch_tokens", [1, 300, 8192])
def test_batches_give_the_scores_of_one_sentence_at_a_time(
    max_batch_tokens, method, model, tokenizer, tiny_text
):
    encoded = [encode(tokenizer, Sentence(text)) for text in sentences(tiny_text)]
    encoded.append(encoded[3])
    done: list[int] = []

    scores = score_sentences(model, encoded, method, max_batch_tokens, done.append)

    expected = [one_at_a_time(model, each, method) for each in encoded]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    assert scores[-1] == scores[3]
    assert sum(done) == len(encoded)


def test_tokens_masked_together(tokenizer):
    sentence = encode(tokenizer, Sentence("Zyxqv zyxqv."))
    first_word = np.flatnonzero(sentence.words == 0)
    assert len(first_word) > 2, "the invented word must have several subwords"

    for copy, position in zip(masked_copies(sentence, "plain"), sentence.scored, strict=True):
        assert np.flatnonzero(copy == MASK).tolist() == [position]
    for copy, position in zip(masked_copies(sentence, "within-word"), sentence.scored, strict=True):
        word = np.flatnonzero(sentence.words == sentence.words[position])
        assert np.flatnonzero(copy == MASK).tolist() == [each for each in word if each >= position]


def test_the_context_is_not_scored(model, tokenizer):
    whole = encode(tokenizer, Sentence("Baden fi gor. Tu baden."))
    target = encode(tokenizer, Sentence("Baden fi gor. Tu baden.", len("Baden fi gor.")))
    assert np.array_equal(target.ids, whole.ids)
    assert tokenizer.decode(target.ids[target.scored].tolist()).strip() == "Tu baden."
    (score,) = score_sentences(model, [target], "plain")
    assert abs(score - one_at_a_time(model, target, "plain")) <= 1e-4


def test_special_tokens_written_in_a_sentence_are_text(tokenizer):
    sentence = encode(tokenizer, Sentence("a [MASK] b [PAD]"))
    assert (sentence.ids[0], sentence.ids[-1]) == (CLS, SEP)
    assert sentence.ids[1:-1].min() >= len(SPECIAL_TOKENS)
    assert tokenizer.decode(sentence.ids[1:-1].tolist()) == " a [MASK] b [PAD]"


def test_sentences_get_the_special_tokens_of_their_vocabulary(tiny_tokenizer, tmp_path):
    path = tmp_path / "angle.json"
    path.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    sentence = encode(TextTokenizer.load(path, ANGLE_NAMES), Sentence("Zyxqv zyxqv."))
    usual = encode(TextTokenizer.load(tiny_tokenizer), Sentence("Zyxqv zyxqv."))
    assert (sentence.ids[0], sentence.ids[-1], sentence.mask) == (510, 509, 507)
    assert (sentence.ids[1:-1] + 7).tolist() == usual.ids[1:-1].tolist()
    copies = masked_copies(sentence, "plain")
    assert ((copies == 507).sum(axis=1) == 1).all()


def test_words_need_a_tokenizer_that_divides_text_into_words(tiny_tokenizer, tmp_path):
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    values["pre_tokenizer"] = None
    (tmp_path / "whole.json").write_text(json.dumps(values), encoding="utf-8")
    whole = TextTokenizer.load(tmp_path / "whole.json")
    check_words(TextTokenizer.load(tiny_tokenizer), "within-word")
    check_words(whole, "plain")
    with pytest.raises(UserError, match="--method plain"):
        check_words(whole, "within-word")
