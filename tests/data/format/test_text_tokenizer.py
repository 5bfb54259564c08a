"""Text is text: no kind of tokenizer encodes the name of a special token in a text as a special token."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.data.format.vocabulary import SPECIAL_TOKENS, SpecialNames, load_tokenizer
from tests.support.angle_tokenizer import ANGLE_NAMES, with_angle_names

LETTERS = [*"abkmnps<>/[]ACDEKLMNPRSTUB", "\u2581", " "]
ANGLE_TOKENS = ["<s>", "</s>", "<pad>", "<mask>", "<unk>"]


def word_piece() -> Tokenizer:
    """A WordPiece whose words end at spaces only, so that ``<mask>`` is a word in the vocabulary."""
    vocabulary = [*ANGLE_TOKENS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    ids = {token: number for number, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def word_level() -> Tokenizer:
    ids = {token: number for number, token in enumerate([*ANGLE_TOKENS, "a", "b"])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def bpe() -> Tokenizer:
    """A BPE with merges that make ``<s>`` of its letters."""
    vocabulary = [*LETTERS, "<s", *ANGLE_TOKENS, "ab"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    merges = [("<", "s"), ("<s", ">"), ("a", "b")]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


def unigram() -> Tokenizer:
    """A Unigram model, whose special tokens are pieces like all others."""
    pieces = [(token, 0.0) for token in ANGLE_TOKENS] + [(letter, -5.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram([*pieces, ("ab", -4.0)], unk_id=4))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


KINDS = {"WordPiece": word_piece, "WordLevel": word_level, "BPE": bpe, "Unigram": unigram}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path) -> TextTokenizer:
    path = tmp_path / "tokenizer.json"
    KINDS[request.param]().save(str(path))
    return TextTokenizer.load(path, ANGLE_NAMES)


def test_names_of_special_tokens_are_text(kind):
    plain = kind.tokenizer
    for name in ANGLE_TOKENS:
        number = plain.token_to_id(name)
        for text in (name, f"a {name} b", f"a{name}b"):
            assert number in plain.encode(text, add_special_tokens=False).ids
            found = set(kind.encode(text).ids) & (kind.special.all - {kind.special.unk})
            assert not found, text


def test_other_text_has_the_same_ids(kind):
    for text in ("a b", "ab ba", "a  b", "", "pan", "sam ba"):
        assert kind.encode(text).ids == kind.tokenizer.encode(text, add_special_tokens=False).ids


def test_byte_level_tokenizers_spell_every_name(tiny_tokenizer, tmp_path):
    path = tmp_path / "angle.json"
    path.write_text(with_angle_names(tiny_tokenizer), encoding="utf-8")
    for tokenizer in (TextTokenizer.load(tiny_tokenizer), TextTokenizer.load(path, ANGLE_NAMES)):
        for name in (*SPECIAL_TOKENS, *ANGLE_TOKENS):
            text = f"a {name}, x{name}y"
            assert "".join(tokenizer.encode(text).tokens) == "Ġ" + text.replace(" ", "Ġ")


@settings(deadline=None)
@given(text=st.text())
def test_ordinary_text_has_the_same_ids_as_without_special_tokens(tiny_tokenizer, text):
    tokenizer = _cached(tiny_tokenizer)
    if not any(name in text for name in SPECIAL_TOKENS):
        assert tokenizer.encode(text).ids == tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    assert not set(tokenizer.encode(text).ids) & tokenizer.special.all


_CACHE: dict = {}


def _cached(path) -> TextTokenizer:
    return _CACHE.setdefault(path, TextTokenizer.load(path))


def test_special_tokens_of_other_roles_are_text_too(tiny_tokenizer, tmp_path):
    """Tokenizers of other projects have further special tokens, and tokens that are not special."""
    values = json.loads(tiny_tokenizer.read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    values["added_tokens"] += [
        {"id": 512, "content": "<|end|>", "special": True, **flags},
        {"id": 513, "content": "<|word|>", "special": False, **flags},
    ]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    tokenizer = TextTokenizer.load(path)
    assert tokenizer.tokenizer.get_vocab_size() == 514
    ids = tokenizer.encode("a <|end|> b <|word|> c").ids
    assert 512 not in ids
    assert ids.count(513) == 1


def test_offsets_and_words_are_those_of_the_text(tiny_tokenizer):
    encoding = TextTokenizer.load(tiny_tokenizer).encode("a [MASK] b")
    assert encoding.offsets[0][0] == 0
    assert encoding.offsets[-1] == (9, 10)
    # "Ġa", "Ġ[", "MASK", "]" and "Ġb"
    assert max(encoding.word_ids) == 4


def test_special_tokens_remain_special_for_decoding(tiny_tokenizer):
    tokenizer = TextTokenizer.load(tiny_tokenizer)
    a = tokenizer.encode("a").ids
    assert tokenizer.decode([*a, tokenizer.special.mask, *a]).split() == ["a", "a"]
    assert tokenizer.id_to_token(tokenizer.special.mask) == "[MASK]"
    assert tokenizer.decode_batch([a, [tokenizer.special.pad]]) == [tokenizer.decode(a), ""]


def test_the_tokenizer_that_is_wrapped_does_not_change(tiny_tokenizer):
    plain = load_tokenizer(tiny_tokenizer, SpecialNames())
    before = plain.to_str()
    TextTokenizer(plain)
    assert plain.to_str() == before
