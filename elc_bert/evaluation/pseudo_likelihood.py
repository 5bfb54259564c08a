"""How probable a masked language model finds a sentence.

The pseudo-log-likelihood is the sum of ``log p(token | all others)``, each token masked in turn (Salazar et
al. 2020, ACL). Within a word of several subwords that is too easy, since the rest of the word gives each of
them away: the within-word variant masks also the subwords to the right in the same word (Kauf & Ivanova
2023, ACL).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import CLS, MASK, SEP
from elc_bert.evaluation.minimal_pairs import Sentence
from elc_bert.model import ElcBertForMaskedLM

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Method = Literal["within-word", "plain"]
TOKENS_AT_ONCE = 8192
"""Of a batch, [CLS] and [SEP] included."""


@dataclass(frozen=True)
class Encoded:
    """A sentence as tokens."""

    ids: NDArray[np.int64]
    """[CLS], the sentence, [SEP]; int64 [T]."""
    words: NDArray[np.int64]
    """Number of the word that each token belongs to, int64 [T]; of [CLS] and [SEP] -1."""
    scored: NDArray[np.int64]
    """Places of the tokens that are scored, int64 [n]."""


def encode(tokenizer: "Tokenizer", sentence: Sentence) -> Encoded:
    """A sentence as the model sees it."""
    encoding = tokenizer.encode(sentence.text, add_special_tokens=False)
    words = [-1 if word is None else word for word in encoding.word_ids]
    ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
    return Encoded(
        np.array([CLS, *encoding.ids, SEP], dtype=np.int64),
        np.array([-1, *words, -1], dtype=np.int64),
        np.flatnonzero(ends > sentence.scored_from) + 1,
    )


def masked_copies(sentence: Encoded, method: Method) -> NDArray[np.int64]:
    """A copy for each scored token, with it masked, int64 [n, T]."""
    copies = np.repeat(sentence.ids[None], len(sentence.scored), axis=0)
    places = np.arange(len(sentence.ids))
    hidden = places == sentence.scored[:, None]
    if method == "within-word":
        same_word = sentence.words == sentence.words[sentence.scored][:, None]
        hidden |= same_word & (places > sentence.scored[:, None]) & (sentence.words >= 0)
    copies[hidden] = MASK
    return copies


@torch.no_grad()
def score_sentences(
    model: ElcBertForMaskedLM,
    sentences: Sequence[Encoded],
    method: Method = "within-word",
    tokens_at_once: int = TOKENS_AT_ONCE,
    advance: Callable[[int], object] = lambda sentences: None,
) -> NDArray[np.float64]:
    """Pseudo-log-likelihoods in nats, float64 [sentences].

    Args:
        model: in evaluation mode, float32.
        sentences: to be scored; equal ones are scored once.
        method: what is masked along with a token.
        tokens_at_once: of a batch; a batch has sentences of one length, so there is no padding.
        advance: told how many sentences are done.
    """
    device = model.encoder.embedding.word.weight.device
    alike: dict[tuple[bytes, bytes], list[int]] = {}
    for number, sentence in enumerate(sentences):
        alike.setdefault((sentence.ids.tobytes(), sentence.scored.tobytes()), []).append(number)
    groups: dict[int, list[list[int]]] = {}
    for numbers in alike.values():
        groups.setdefault(len(sentences[numbers[0]].ids), []).append(numbers)
    scores = np.zeros(len(sentences))
    for length, members in sorted(groups.items()):
        rows_at_once = max(1, tokens_at_once // length)
        first = 0
        while first < len(members):
            # As many whole sentences as fit, and one at least.
            last, rows = first, 0
            while last < len(members) and (
                last == first or rows + len(sentences[members[last][0]].scored) <= rows_at_once
            ):
                rows += len(sentences[members[last][0]].scored)
                last += 1
            batch = [sentences[numbers[0]] for numbers in members[first:last]]
            copies = np.concatenate([masked_copies(sentence, method) for sentence in batch])
            places = np.concatenate([sentence.scored for sentence in batch])
            targets = np.concatenate([sentence.ids[sentence.scored] for sentence in batch])
            logs = _log_probabilities(model, copies, places, targets, rows_at_once, device)
            begin = 0
            for numbers, sentence in zip(members[first:last], batch, strict=True):
                scores[numbers] = logs[begin : begin + len(sentence.scored)].sum()
                begin += len(sentence.scored)
            advance(sum(len(numbers) for numbers in members[first:last]))
            first = last
    return scores


def _log_probabilities(
    model: ElcBertForMaskedLM,
    copies: NDArray[np.int64],
    places: NDArray[np.int64],
    targets: NDArray[np.int64],
    rows_at_once: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """``log p(target)`` at one place of each row, float64 [rows]; rows are taken a few at a time."""
    logs = []
    for begin in range(0, len(copies), rows_at_once):
        part = slice(begin, begin + rows_at_once)
        ids = torch.from_numpy(copies[part]).to(device)
        rows, length = ids.shape
        positions = torch.arange(rows, device=device) * length + torch.from_numpy(places[part]).to(device)
        logits = model(ids, torch.ones_like(ids, dtype=torch.bool), positions).float()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        wanted = torch.from_numpy(targets[part]).to(device)
        logs.append(log_probabilities.gather(1, wanted[:, None])[:, 0].double().cpu().numpy())
    return np.concatenate(logs) if logs else np.zeros(0)
