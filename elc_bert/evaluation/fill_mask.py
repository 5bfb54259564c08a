"""Sentences with one word masked, and what a model would put there."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.vocabulary import CLS, MASK, SEP
from elc_bert.model import ElcBertForMaskedLM

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK = "____"
WORDS_OF_SENTENCE = range(8, 26)
WORD = re.compile(r" [^\W\d_]{3,14}")
"""A word to mask: letters only, neither too short to tell anything nor too long to print."""
AFTER_WORD = re.compile(r"[.,;:!?)]*")


@dataclass(frozen=True)
class Cloze:
    """A sentence and the place of the token that is to be guessed: one whole word."""

    ids: NDArray[np.int64]
    """Tokens of the sentence, without [CLS] and [SEP], int64 [n]."""
    place: int


@dataclass(frozen=True)
class Guess:
    """A token that could stand in the blank."""

    text: str
    probability: float


def choose_clozes(
    dataset: IndexedDataset, tokenizer: "Tokenizer", count: int, max_tokens: int
) -> list[Cloze]:
    """Sentences spread evenly over a dataset: of each of ``count`` equal parts the first one that is fit.

    The same for the same dataset. Fewer than ``count`` where a part has no fit sentence: one of 8 to 25
    words and at most ``max_tokens`` tokens, with a word that is one token.
    """
    bounds = np.linspace(0, len(dataset.lengths), count + 1).astype(int)
    parts = (range(begin, end) for begin, end in itertools.pairwise(bounds))
    firsts = (next(_clozes(dataset, tokenizer, part, max_tokens), None) for part in parts)
    return [cloze for cloze in firsts if cloze is not None]


def fill(model: ElcBertForMaskedLM, tokenizer: "Tokenizer", cloze: Cloze, guesses: int) -> list[Guess]:
    """The model's most probable tokens for the blank, the best first.

    Args:
        model: in evaluation mode.
    """
    ids = cloze.ids.copy()
    ids[cloze.place] = MASK
    input_ids = torch.from_numpy(np.concatenate([[CLS], ids, [SEP]]))[None]
    with torch.no_grad():
        logits = model(
            input_ids, torch.ones_like(input_ids, dtype=torch.bool), torch.tensor([cloze.place + 1])
        )
    best = logits[0].float().softmax(dim=-1).topk(guesses)
    return [
        Guess(token_text(tokenizer, token), probability)
        for token, probability in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def sentence_with_blank(tokenizer: "Tokenizer", cloze: Cloze) -> str:
    """The sentence as text, a blank in the place of the word."""
    ids = cloze.ids.tolist()
    before, after = tokenizer.decode(ids[: cloze.place]), tokenizer.decode(ids[cloze.place + 1 :])
    return f"{before} {BLANK}{after}".strip()


def token_text(tokenizer: "Tokenizer", token: int) -> str:
    """A token as text: a word or the beginning of one, ``-`` before what continues a word.

    Single bytes of a character and special tokens are shown under their names in the vocabulary.
    """
    text = tokenizer.decode([token])
    if not text.strip() or "\N{REPLACEMENT CHARACTER}" in text:
        return str(tokenizer.id_to_token(token))
    return text.strip() if text.startswith(" ") or not text[0].isalnum() else f"-{text}"


def _clozes(
    dataset: IndexedDataset, tokenizer: "Tokenizer", sentences: range, max_tokens: int
) -> Iterator[Cloze]:
    """The fit sentences among some, each with the word nearest to its middle masked."""
    for sentence in sentences:
        (first,), (length,) = dataset.spans(sentence, sentence + 1)
        ids = dataset.tokens[first : first + length].astype(np.int64)
        if len(ids) > max_tokens:
            continue
        pieces = tokenizer.decode_batch([[token] for token in ids.tolist()])
        words, places = _whole_words(pieces)
        if words in WORDS_OF_SENTENCE and places:
            yield Cloze(ids, min(places, key=lambda place: abs(place - len(ids) // 2)))


def _whole_words(pieces: list[str]) -> tuple[int, list[int]]:
    """The number of words between spaces, and the places of those that are one token and punctuation."""
    starts = [place for place, piece in enumerate(pieces) if piece.startswith(" ")]
    ends = [*starts[1:], len(pieces)]
    whole = [
        start
        for start, end in zip(starts, ends, strict=True)
        if WORD.fullmatch(pieces[start]) and AFTER_WORD.fullmatch("".join(pieces[start + 1 : end]))
    ]
    return len(starts), whole
