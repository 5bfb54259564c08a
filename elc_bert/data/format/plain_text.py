"""Tokenization in which text is text: the names of special tokens in it are encoded like any other words."""

import json
from typing import TYPE_CHECKING, Any

from elc_bert.data.format.text_with_masks import without_prefix_step

if TYPE_CHECKING:
    from collections.abc import Collection

    from tokenizers import Tokenizer


def read_as_text(tokenizer: "Tokenizer", names: "Collection[str]") -> "Tokenizer":
    """Return a copy of a tokenizer that encodes no text as a special token.

    Only the tools put special tokens into a dataset. In the copy, special tokens have names that no text
    contains, and other tokens keep their ids. Text without special tokens has the same ids as before.

    Args:
        tokenizer: A tokenizer. It is not changed.
        names: Names of special tokens, in addition to those that the tokenizer declares as special.
    """
    from tokenizers import Tokenizer

    content = json.loads(tokenizer.to_str())
    added = content["added_tokens"]
    special = {token["content"] for token in added if token["special"]} | set(names)
    # Removing the tokens would change the ids of others.
    renamed = {name: f"\0\U0010fffe{number}\0" for number, name in enumerate(sorted(special))}
    for token in added:
        if token["content"] in renamed:
            token |= {"content": renamed[token["content"]], "lstrip": False, "rstrip": False}
            token |= {"single_word": False, "normalized": False}
    _rename(content["model"], renamed)
    if all(token["content"] in renamed.values() for token in added):
        # No token divides the text, so a space in front of each piece is a space in front of the text.
        content["pre_tokenizer"] = without_prefix_step(content["pre_tokenizer"])
    return Tokenizer.from_str(json.dumps(content))


def _rename(model: dict[str, Any], renamed: dict[str, str]) -> None:
    """Rename some tokens of a model: WordPiece, WordLevel, BPE or Unigram."""
    if isinstance(model["vocab"], dict):
        model["vocab"] = {renamed.get(token, token): number for token, number in model["vocab"].items()}
    else:
        model["vocab"] = [[renamed.get(token, token), score] for token, score in model["vocab"]]
    if model.get("unk_token") in renamed:
        model["unk_token"] = renamed[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _names_in(pair, renamed)]


def _names_in(pair: str | list[str], renamed: dict[str, str]) -> bool:
    """Return True if a merge of BPE needs or produces one of the renamed tokens."""
    first, second = pair.split(" ") if isinstance(pair, str) else pair
    return first in renamed or second in renamed or first + second in renamed
