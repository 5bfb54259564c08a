"""Tokenizers whose special tokens have other names and other ids than those that this project trains."""

import json
from pathlib import Path

from elc_bert.data.format.vocabulary import SpecialNames

ANGLE_NAMES = SpecialNames(unk="<unk>", cls="<s>", sep="</s>", pad="<pad>", mask="<mask>", par=None, tab=None)
"""Names as in RoBERTa."""
RENAMED = {
    "[UNK]": "<unk>",
    "[CLS]": "<s>",
    "[SEP]": "</s>",
    "[PAD]": "<pad>",
    "[MASK]": "<mask>",
    "[PAR]": "<par>",
    "[TAB]": "<tab>",
}


def with_angle_names(tokenizer: Path) -> str:
    """Return the content of a tokenizer file in which special tokens have other names and the highest ids.

    The ids of all other tokens are lower by 7; the special tokens follow in the opposite order.
    """
    values = json.loads(tokenizer.read_text(encoding="utf-8"))
    vocabulary = values["model"]["vocab"]
    size, count = len(vocabulary), len(RENAMED)
    values["model"]["vocab"] = {
        RENAMED.get(token, token): size - 1 - number if token in RENAMED else number - count
        for token, number in vocabulary.items()
    }
    values["model"]["unk_token"] = RENAMED[values["model"]["unk_token"]]
    for token in values["added_tokens"]:
        token |= {"content": RENAMED[token["content"]], "id": size - 1 - token["id"]}
    values["added_tokens"].sort(key=lambda token: token["id"])
    return json.dumps(values)
