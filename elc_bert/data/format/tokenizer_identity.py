"""Comparison of tokenizers by what they do: a copy of the file with other bytes is the same tokenizer."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from elc_bert.data.format.manifest import Manifest
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import sha256_of

ORIGIN_SHA256, ORIGIN_FINGERPRINT = "origin_sha256", "origin_fingerprint"
"""Keys of an export's ``tokenizer_config.json`` about the tokenizer file that was exported."""
PROBES = (
    "The cat sat on the mat, didn't it? We'll see: they've seen what I'm seeing!",
    " A blank before, a blank after ",
    "two  and   three blanks,\ta tab\tand\nnew\r\nlines\n\n",
    "In 1984, 3.50 euros bought 1,000 of ²³¹¼½¾, or ٣٤ of ③.",
    "café cafe\u0301 \ufb01n \u212b İstanbul STRASSE straße ÄÖÜ",
    "日本語 Русский ไทย العربية हिन्दी 한국어 ελληνικά",
    "😀 👍🏽 👨\u200d👩\u200d👧 e\u0301\u0302",
    "a_b-c/d\\e @x #y $z %w ^v &u *t (s) [r] {q} <p> «o» “n” ‘m’ …!!!???",
    "\u00a0no-break\u00a0blanks\u3000and\u2028separators\u0085",
    "antidisestablishmentarianism" * 12,
    "".join(
        f"a{chr(code)}b 1{chr(code)}2 {chr(code)} "
        for code in (*range(0x21, 0x7F), *range(0xA1, 0x250), *range(0x2010, 0x2028))
    ),
)
"""Texts whose subwords show how a tokenizer cuts text; none contains a special token."""


def tokenizer_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 checksum of the tokenizer file, in hexadecimal.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return sha256_of(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the tokenizer: {error.strerror}; give a tokenizer.json"
        ) from None


def tokenizer_fingerprint(path: str | os.PathLike[str]) -> str:
    """Return a checksum of everything that decides how a tokenizer encodes ordinary text, in hexadecimal.

    It covers the ids of all subwords, the model (such as merges), the normalizer, added tokens that are not
    special, and the subwords of ``PROBES``, which show the effect of the pre-tokenizer. Layout of the file,
    post-processor, decoder and the treatment of special tokens are left out: an export may change them.

    Args:
        path: Tokenizer file that ``load_tokenizer`` accepts.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(Path(path).read_text(encoding="utf-8-sig"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    content = json.loads(tokenizer.to_str())
    # ``load_tokenizer`` declares the seven special tokens if the file does not, and exports are made of that.
    special = {each["content"] for each in content["added_tokens"] if each["special"] or each["id"] < 7}
    facts = [
        sorted(tokenizer.get_vocab().items()),
        _model_settings(content["model"]),
        content["normalizer"],
        sorted(token["content"] for token in content["added_tokens"] if token["content"] not in special),
        [tokenizer.encode(text, add_special_tokens=False).ids for text in PROBES],
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def is_tokenizer_of(manifest: Manifest, path: str | os.PathLike[str]) -> bool:
    """Return whether a dataset was built with a tokenizer, or with one that encodes text in the same way.

    A dataset that does not record its tokenizer fits every tokenizer.

    Args:
        manifest: Manifest of the dataset.
        path: Tokenizer file that ``load_tokenizer`` accepts.
    """
    expected = manifest.tokenizer_sha256
    if expected is None or expected == tokenizer_sha256(path):
        return True
    if manifest.tokenizer_fingerprint is not None:
        return manifest.tokenizer_fingerprint == tokenizer_fingerprint(path)
    # The dataset is older than fingerprints. An export says which file its tokenizer was made from.
    return expected == origin_of(path)[ORIGIN_SHA256]


def origin_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return what an export records about the tokenizer file that it is made from.

    Args:
        path: The tokenizer file. If it is that of an earlier export, the origin of that export is returned,
            unless the tokenizer has been changed since.
    """
    fingerprint = tokenizer_fingerprint(path)
    try:
        settings = json.loads(Path(path).with_name("tokenizer_config.json").read_text(encoding="utf-8"))
        recorded = {key: settings[key] for key in (ORIGIN_SHA256, ORIGIN_FINGERPRINT)}
    except (OSError, ValueError, LookupError, TypeError):
        recorded = {}
    if recorded.get(ORIGIN_FINGERPRINT) == fingerprint:
        return recorded
    return {ORIGIN_SHA256: tokenizer_sha256(path), ORIGIN_FINGERPRINT: fingerprint}


def _model_settings(model: dict[str, Any]) -> dict[str, Any]:
    """Return the model without its vocabulary, in a form that does not depend on the library's version."""
    # Values that are null, false or empty are those that some versions leave out.
    settings = {name: value for name, value in model.items() if name not in ("vocab", "merges") and value}
    if isinstance(model["vocab"], list):  # a Unigram model, whose entries have scores
        settings["scores"] = model["vocab"]
    if "merges" in model:
        # Before tokenizers 0.20, a merge was one string.
        settings["merges"] = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    return settings
