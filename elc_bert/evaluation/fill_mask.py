"""Sentences with one masked word, and a model's predictions for it."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.model import ElcBertForMaskedLM

BLANK = "____"
"""Text shown in place of the masked word."""
SENTENCE_WORDS = range(8, 26)
"""Numbers of words that a sentence may have."""
WORD = re.compile(r" [^\W\d_]{3,14}")
"""A word that may be masked: only letters, long enough to be informative, short enough to print."""
AFTER_WORD = re.compile(r"[.,;:!?)]*")
"""Punctuation that may follow the word."""


@dataclass(frozen=True)
class Cloze:
    """A sentence and the position of the token to predict, which is a whole word."""

    ids: NDArray[np.int64]
    """Tokens of the sentence without ``[CLS]`` and ``[SEP]``, int64 ``[n]``."""
    position: int
    """Position of the token in ``ids``."""


@dataclass(frozen=True)
class Guess:
    """A predicted token."""

    text: str
    """The token as text; see ``token_text``."""
    probability: float
    """The model's probability of the token."""


def choose_clozes(
    dataset: IndexedDataset, tokenizer: TextTokenizer, count: int, max_tokens: int
) -> list[Cloze]:
    """Return sentences spread evenly over a dataset, always the same for the same dataset.

    The dataset is divided into ``count`` equal parts, and the first suitable sentence of each part is chosen.
    A suitable sentence has 8 to 25 words and contains a word that is a single token. There are fewer than
    ``count`` sentences if a part has none.

    Args:
        dataset: Dataset to choose from.
        tokenizer: The dataset's tokenizer.
        count: Number of parts.
        max_tokens: Maximum number of tokens in a sentence.
    """
    bounds = np.linspace(0, dataset.num_sentences, count + 1).astype(int)
    parts = (range(begin, end) for begin, end in itertools.pairwise(bounds))
    firsts = (next(_suitable(dataset, tokenizer, part, max_tokens), None) for part in parts)
    return [cloze for cloze in firsts if cloze is not None]


def fill_blank(model: ElcBertForMaskedLM, tokenizer: TextTokenizer, cloze: Cloze, top_k: int) -> list[Guess]:
    """Return the ``top_k`` most probable tokens for the masked position, most probable first.

    Args:
        model: Model in evaluation mode.
        tokenizer: The model's tokenizer.
        cloze: Sentence and position; the model does not see the token at this position.
        top_k: Number of tokens.
    """
    ids = cloze.ids.copy()
    special = tokenizer.special
    ids[cloze.position] = special.mask
    input_ids = torch.from_numpy(np.concatenate([[special.cls], ids, [special.sep]]))[None]
    with torch.no_grad():
        logits = model(
            input_ids, torch.ones_like(input_ids, dtype=torch.bool), torch.tensor([cloze.position + 1])
        )
    best = logits[0].float().softmax(dim=-1).topk(min(top_k, logits.shape[-1]))
    return [
        Guess(token_text(tokenizer, token), probability)
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def sentence_with_blank(tokenizer: TextTokenizer, cloze: Cloze) -> str:
    """Return the sentence as text, with a blank in place of the word."""
    ids = cloze.ids.tolist()
    before, after = tokenizer.decode(ids[: cloze.position]), tokenizer.decode(ids[cloze.position + 1 :])
    return f"{before} {BLANK}{after}".strip()


def token_text(tokenizer: TextTokenizer, token: int) -> str:
    """Return a token as text, with ``-`` in front if it continues a word.

    Special tokens and single bytes of a character are returned as they are spelled in the vocabulary.
    """
    text = tokenizer.decode([token])
    if not text.strip() or "\N{REPLACEMENT CHARACTER}" in text:
        return tokenizer.id_to_token(token)
    return text.strip() if text.startswith(" ") or not text[0].isalnum() else f"-{text}"


def _suitable(
    dataset: IndexedDataset, tokenizer: TextTokenizer, sentences: range, max_tokens: int
) -> Iterator[Cloze]:
    """Yield the suitable ones among some sentences, each with the suitable word nearest to its middle."""
    for sentence in sentences:
        (first,), (length,) = dataset.spans(sentence, sentence + 1)
        ids = dataset.tokens[first : first + length].astype(np.int64)
        if len(ids) > max_tokens:
            continue
        pieces = tokenizer.decode_batch([[token] for token in ids.tolist()])
        words, positions = _single_token_words(pieces)
        if words in SENTENCE_WORDS and positions:
            yield Cloze(ids, min(positions, key=lambda position: abs(position - len(ids) // 2)))


def _single_token_words(pieces: list[str]) -> tuple[int, list[int]]:
    """Return the number of words, and the positions of those that are one token except for punctuation."""
    starts = [position for position, piece in enumerate(pieces) if piece.startswith(" ")]
    ends = [*starts[1:], len(pieces)]
    whole = [
        start
        for start, end in zip(starts, ends, strict=True)
        if WORD.fullmatch(pieces[start]) and AFTER_WORD.fullmatch("".join(pieces[start + 1 : end]))
    ]
    return len(starts), whole
