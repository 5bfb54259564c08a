"""Tokenization of text in which ``[MASK]`` and other special tokens are written."""

import json
import random
import sys

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Split, Whitespace

from elc_bert.data.format.text_with_masks import accept_special_tokens
from elc_bert.data.format.vocabulary import CLS, MASK, SEP, SPECIAL_TOKENS, load_tokenizer

PUBLISHED = ("tokenizer.json", "tokenizer_small_104.json", "tokenizer_small_68.json")


@pytest.fixture(scope="module")
def plain(tiny_tokenizer) -> Tokenizer:
    """The tiny tokenizer as earlier versions of this project have treated the text around special tokens."""
    tokenizer = load_tokenizer(tiny_tokenizer)
    steps = json.loads(tokenizer.to_str())["pre_tokenizer"]["pretokenizers"]
    split = Split(Regex(steps[-1]["pattern"]["Regex"]), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([ByteLevel(add_prefix_space=True), split])
    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        token["lstrip"] = False
    return Tokenizer.from_str(json.dumps(content))


def spelled(tokenizer: Tokenizer, text: str) -> str:
    """Return the tokens of a text as the vocabulary spells them, with special tokens in angle brackets."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    names = [tokenizer.id_to_token(token) for token in encoding.ids]
    return "".join(f"<{name}>" if name in SPECIAL_TOKENS else name for name in names)


def test_a_mask_in_a_text_stands_for_a_word(plain):
    whole = plain.encode("Baden fi gor, fi.", add_special_tokens=False)
    (gor,) = (i for i, token in enumerate(whole.tokens) if whole.offsets[i] == (9, 12) or token == "Ġgor")
    ids = [*whole.ids[:gor], MASK, *whole.ids[gor + 1 :]]

    accepting = accept_special_tokens(plain)

    assert accepting.encode("Baden fi [MASK], fi.", add_special_tokens=False).ids == ids
    # The plain tokenizer has a lone space before the mask and a space in the token after it.
    assert plain.encode("Baden fi [MASK], fi.", add_special_tokens=False).ids != ids


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("[MASK] a.", "<[MASK]>Ġa."),
        ("a [MASK]", "Ġa<[MASK]>"),
        ("a[MASK]a", "Ġa<[MASK]>a"),
        ("a [MASK] [MASK][MASK] a", "Ġa<[MASK]><[MASK]><[MASK]>Ġa"),
        ("a  \t\n [MASK].", "Ġa<[MASK]>."),
        (" [MASK] a", "<[MASK]>Ġa"),
        ("[CLS] a [SEP] 10 [SEP]", "<[CLS]>Ġa<[SEP]>Ġ10<[SEP]>"),
        ("a. [PAR] a", "Ġa.<[PAR]>Ġa"),
        ("a [mask] a", "ĠaĠ[mask]Ġa"),
    ],
)
def test_no_space_is_added_or_lost_next_to_special_tokens(plain, text, tokens):
    assert spelled(accept_special_tokens(plain), text) == tokens


def test_newly_trained_tokenizers_accept_special_tokens(plain, tiny_tokenizer):
    accepting = accept_special_tokens(plain)
    assert json.loads(tiny_tokenizer.read_text(encoding="utf-8")) == json.loads(accepting.to_str())
    assert accept_special_tokens(accepting).to_str() == accepting.to_str()


def test_the_given_tokenizer_is_not_changed(plain):
    before = plain.to_str()
    accept_special_tokens(plain)
    assert plain.to_str() == before


def random_texts(seed: int, count: int) -> list[str]:
    """Return texts of random words, digits, punctuation, blanks and characters of all planes."""
    print(f"seed {seed}")
    draw = random.Random(seed)
    pieces = ["baden", "Fi", "gor", "'s", "1987", "²½", ".", ", ", " ", "  ", "\t", "\n", "\u00a0", "\u3000"]

    def piece() -> str:
        if draw.random() < 0.7:
            return draw.choice(pieces)
        code = draw.choice(
            (draw.randrange(32, 0x250), draw.randrange(32, 0xD800), draw.randrange(0xE000, 0x11000))
        )
        return chr(code)

    return ["", " ", "a", *("".join(piece() for _ in range(draw.randint(1, 30))) for _ in range(count))]


def assert_same_encoding(plain: Tokenizer, texts: list[str]) -> None:
    accepting = accept_special_tokens(plain)
    for text, expected, found in zip(
        texts, plain.encode_batch(texts), accepting.encode_batch(texts), strict=True
    ):
        assert found.ids == expected.ids, repr(text)
        assert found.offsets == expected.offsets, repr(text)
    fast = [each.ids for each in accepting.encode_batch_fast(texts)]
    assert fast == [each.ids for each in plain.encode_batch_fast(texts)]
    words = [text.split() for text in texts if text.split()]
    for each in words:
        assert (
            accepting.encode(each, is_pretokenized=True).ids == plain.encode(each, is_pretokenized=True).ids
        )


def test_ordinary_text_is_tokenized_as_before(plain):
    assert_same_encoding(plain, random_texts(random.randrange(sys.maxsize), 2000))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers_accept_special_tokens(shared, name):
    plain = load_tokenizer(shared / "tokenizers" / name)
    assert_same_encoding(plain, random_texts(random.randrange(sys.maxsize), 500))
    text, masked = "The cat sat on the mat.", "[CLS] The cat sat on the [MASK]. [SEP]"
    ids = plain.encode(text, add_special_tokens=False).ids
    mat = plain.token_to_id("Ġmat") or plain.token_to_id("Ġm")
    at = ids.index(mat)
    found = accept_special_tokens(plain).encode(masked, add_special_tokens=False).ids
    assert found[: at + 2] == [CLS, *ids[:at], MASK]
    assert found[at + 1 :] == [MASK, plain.token_to_id("."), SEP]


@pytest.mark.parametrize("pre_tokenizer", [None, Whitespace(), ByteLevel(add_prefix_space=False)])
def test_pre_tokenizers_without_prefix_space_stay(plain, pre_tokenizer):
    content = json.loads(plain.to_str())
    if pre_tokenizer is None:
        content["pre_tokenizer"] = None
    else:
        content["pre_tokenizer"] = json.loads(pre_tokenizer.__getstate__())
    found = json.loads(accept_special_tokens(Tokenizer.from_str(json.dumps(content))).to_str())
    assert found["pre_tokenizer"] == content["pre_tokenizer"]
    assert all(token["lstrip"] for token in found["added_tokens"])


def test_a_single_byte_level_step_is_adapted(plain):
    tokenizer = Tokenizer.from_str(plain.to_str())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    assert_same_encoding(tokenizer, random_texts(random.randrange(sys.maxsize), 200))
    assert spelled(accept_special_tokens(tokenizer), "a [MASK].") == "Ġa<[MASK]>."


def test_other_added_tokens_keep_their_spaces(plain):
    tokenizer = Tokenizer.from_str(plain.to_str())
    tokenizer.add_tokens(["fi-gor"])
    assert spelled(accept_special_tokens(tokenizer), "a fi-gor [MASK]") == "ĠaĠfi-gor<[MASK]>"
