"""Tokenization of text in which special tokens are written, such as ``the [MASK] sat``."""

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_PREFIX_STEP = {"type": "Metaspace", "replacement": " ", "prepend_scheme": "first", "split": False}


def accept_special_tokens(tokenizer: "Tokenizer") -> "Tokenizer":
    """Return a copy of a tokenizer that tokenizes the text around a special token as if a word stood there.

    A byte-level tokenizer writes the space before a word into the word's token. The library splits a text
    at its special tokens and passes each piece to the pre-tokenizer. The space in front of ``[MASK]`` thus
    becomes a token of its own, and with ``add_prefix_space`` a full stop after ``[MASK]`` gets a space in
    front. Neither occurs in the text that a model was trained on. In the copy, special tokens include the
    whitespace in front of them (``lstrip``), and a space is added only in front of the whole text. The ids
    of text without special tokens stay the same.

    Args:
        tokenizer: A tokenizer. It is not changed.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    for token in content["added_tokens"]:
        if token["special"]:
            token["lstrip"] = True
    content["pre_tokenizer"] = _with_one_prefix_space(content["pre_tokenizer"])
    return Tokenizer.from_str(json.dumps(content))


def _with_one_prefix_space(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the description of a pre-tokenizer that puts a space only in front of the whole text.

    A pre-tokenizer that does not start with ``ByteLevel(add_prefix_space=True)`` is returned unchanged.
    """
    if pre_tokenizer is None:
        return None
    is_sequence = pre_tokenizer["type"] == "Sequence"
    steps = pre_tokenizer["pretokenizers"] if is_sequence else [pre_tokenizer]
    if not steps or steps[0]["type"] != "ByteLevel" or not steps[0]["add_prefix_space"]:
        return pre_tokenizer
    # ByteLevel cannot distinguish the first piece of a text from later ones, but Metaspace can. It replaces
    # spaces by spaces here, so the prefix is all that it adds.
    first = {**steps[0], "add_prefix_space": False}
    return {"type": "Sequence", "pretokenizers": [_PREFIX_STEP, first, *steps[1:]]}


def without_prefix_step(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the description of a pre-tokenizer in which ``ByteLevel`` adds the space in front of a text.

    This is faster, and the same for a text that no special token divides. Pre-tokenizers that
    ``accept_special_tokens`` has not adapted are returned unchanged.
    """
    match pre_tokenizer:
        case {
            "type": "Sequence",
            "pretokenizers": [prefix, {"type": "ByteLevel", "add_prefix_space": False} as first, *steps],
        } if prefix == _PREFIX_STEP:
            return {"type": "Sequence", "pretokenizers": [first | {"add_prefix_space": True}, *steps]}
    return pre_tokenizer
