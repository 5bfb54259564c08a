"""Names of special tokens in a text are text."""

import json
import random
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from elc_bert.data.format.plain_text import read_as_text
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import CLS, SEP, SPECIAL_TOKENS, load_tokenizer
from tests.data.format.test_text_with_masks import PUBLISHED, random_texts


@pytest.fixture(params=["tiny", *PUBLISHED])
def path(request, shared, tiny_tokenizer):
    return tiny_tokenizer if request.param == "tiny" else shared / "tokenizers" / request.param


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_the_name_of_a_special_token_is_text(path, name):
    tokenizer = TextTokenizer.load(path).text
    for text in (f"a {name} a", name, f"a{name}{name}", f" {name} "):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert min(ids) >= len(SPECIAL_TOKENS)
        assert load_tokenizer(path).decode(ids).strip() == text.strip()


def test_other_text_has_the_same_subwords(path):
    plain, tokenizer = load_tokenizer(path), TextTokenizer.load(path).text
    texts = random_texts(random.randrange(sys.maxsize), 1000)
    for text in texts:
        expected, found = (each.encode(text, add_special_tokens=False) for each in (plain, tokenizer))
        assert found.ids == expected.ids, repr(text)
        assert found.offsets == expected.offsets, repr(text)
        assert found.word_ids == expected.word_ids, repr(text)
    fast = [each.ids for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    assert fast == [each.ids for each in plain.encode_batch_fast(texts, add_special_tokens=False)]


def test_the_post_processor_of_an_export_adds_nothing(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
            ),
        ]
    )
    text = read_as_text(tokenizer, SPECIAL_TOKENS)
    found, expected = (each.encode(" fi gor.", add_special_tokens=False) for each in (text, tokenizer))
    assert (found.ids, found.offsets) == (expected.ids, expected.offsets)
    assert min(found.ids) >= len(SPECIAL_TOKENS)


def test_text_is_encoded_by_the_faster_pre_tokenizer(tiny_tokenizer):
    steps = json.loads(load_tokenizer(tiny_tokenizer).to_str())["pre_tokenizer"]["pretokenizers"]
    found = json.loads(TextTokenizer.load(tiny_tokenizer).text.to_str())["pre_tokenizer"]["pretokenizers"]
    assert [each["type"] for each in steps][:2] == ["Metaspace", "ByteLevel"]
    assert found == [steps[1] | {"add_prefix_space": True}, *steps[2:]]


def test_other_added_tokens_remain(tiny_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer)
    tokenizer.add_tokens(["fi-gor"])
    text = read_as_text(tokenizer, SPECIAL_TOKENS)
    for each in ("a fi-gor a", "fi-gora.", "10 fi-gor"):
        assert text.encode(each).ids == tokenizer.encode(each, add_special_tokens=False).ids
    assert tokenizer.get_vocab_size() - 1 in text.encode("a fi-gor").ids


@pytest.mark.parametrize("kind", ["WordPiece", "WordLevel", "Bpe", "Unigram"])
def test_a_model_that_knows_the_name_as_a_word_does_not_use_it(kind):
    """Such a pre-tokenizer does not divide ``[MASK]``, so the model itself would find it."""
    options = {"unk_token": "[UNK]"} if kind != "Unigram" else {}
    tokenizer = Tokenizer(getattr(models, "BPE" if kind == "Bpe" else kind)(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    more = {"unk_token": "[UNK]"} if kind == "Unigram" else {}
    trainer = getattr(trainers, f"{kind}Trainer")(
        vocab_size=60, special_tokens=list(SPECIAL_TOKENS), show_progress=False, **more
    )
    tokenizer.train_from_iterator(["a cat sat"] * 20, trainer)
    before = tokenizer.to_str()
    for names in ([], SPECIAL_TOKENS):
        text = read_as_text(tokenizer, names)
        known = text.encode("a cat sat").ids
        assert known == tokenizer.encode("a cat sat").ids
        assert 4 not in text.encode("a [MASK] cat [PAR]").ids
        assert 5 not in text.encode("a [MASK] cat [PAR]").ids
        assert 4 in tokenizer.encode("a [MASK] cat").ids
    assert tokenizer.to_str() == before
