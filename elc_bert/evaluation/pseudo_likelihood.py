"""Pseudo-log-likelihood of sentences under a masked language model.

The pseudo-log-likelihood is the sum of ``log p(token | all other tokens)`` with each token masked in turn
(Salazar et al. 2020, ACL). It overestimates words of several subwords, whose remaining subwords give the
masked one away. The within-word variant therefore also masks the subwords to its right in the same word (Kauf
& Ivanova 2023, ACL).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from elc_bert.data.format.text_tokenizer import TextTokenizer
from elc_bert.evaluation.minimal_pairs import Sentence
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.utils.errors import UserError

Method = Literal["within-word", "plain"]
"""Masking method: ``within-word`` masks a token together with the subwords to its right in the same word,
``plain`` masks the token alone."""
MAX_BATCH_TOKENS = 8192
"""Maximum number of tokens in a batch, including ``[CLS]`` and ``[SEP]``."""


@dataclass(frozen=True)
class Encoded:
    """A sentence as tokens."""

    ids: NDArray[np.int64]
    """Token ids of ``[CLS]``, the sentence and ``[SEP]``, int64 ``[T]``."""
    words: NDArray[np.int64]
    """Index of the word that each token belongs to, int64 ``[T]``; -1 for ``[CLS]`` and ``[SEP]``."""
    scored: NDArray[np.int64]
    """Positions of the tokens that are scored, int64 ``[n]``."""
    mask: int
    """Id of ``[MASK]``."""


def encode(tokenizer: TextTokenizer, sentence: Sentence) -> Encoded:
    """Tokenize a sentence, in which names of special tokens are text, and add ``[CLS]`` and ``[SEP]``."""
    special, encoding = tokenizer.special, tokenizer.encode(sentence.text)
    words = [-1 if word is None else word for word in encoding.word_ids]
    ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
    return Encoded(
        np.array([special.cls, *encoding.ids, special.sep], dtype=np.int64),
        np.array([-1, *words, -1], dtype=np.int64),
        np.flatnonzero(ends > sentence.scored_from) + 1,
        special.mask,
    )


def check_words(tokenizer: TextTokenizer, method: Method) -> None:
    """Check that a tokenizer divides text into words, as the method ``within-word`` requires.

    Raises:
        UserError: It does not, so that a whole sentence would count as one word.
    """
    if method == "within-word" and len(set(tokenizer.encode("one two").word_ids)) < 2:
        raise UserError(
            "--method within-word: this tokenizer does not divide text into words (it has no pre-tokenizer "
            "that splits at spaces); score minimal pairs with --method plain"
        )


def masked_copies(sentence: Encoded, method: Method) -> NDArray[np.int64]:
    """Return one copy of the sentence per scored token, with that token masked, int64 ``[n, T]``."""
    copies = np.repeat(sentence.ids[None], len(sentence.scored), axis=0)
    positions = np.arange(len(sentence.ids))
    is_masked = positions == sentence.scored[:, None]
    if method == "within-word":
        same_word = sentence.words == sentence.words[sentence.scored][:, None]
        is_masked |= same_word & (positions > sentence.scored[:, None]) & (sentence.words >= 0)
    copies[is_masked] = sentence.mask
    return copies


@torch.no_grad()
def score_sentences(
    model: ElcBertForMaskedLM,
    sentences: Sequence[Encoded],
    method: Method = "within-word",
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    advance: Callable[[int], object] = lambda sentences: None,
) -> NDArray[np.float64]:
    """Return the pseudo-log-likelihoods in nats, float64 ``[sentences]``.

    Args:
        model: Model in evaluation mode, float32.
        sentences: Sentences to score; duplicates are scored only once.
        method: Which tokens are masked together; see ``Method``.
        max_batch_tokens: Maximum number of tokens in a batch. A batch contains sentences of one length, so
            there is no padding.
        advance: Called with the number of sentences that have been scored since the last call.
    """
    device = model.encoder.embedding.word.weight.device
    duplicates: dict[tuple[bytes, bytes], list[int]] = {}
    for index, sentence in enumerate(sentences):
        duplicates.setdefault((sentence.ids.tobytes(), sentence.scored.tobytes()), []).append(index)
    groups: dict[int, list[list[int]]] = {}
    for indices in duplicates.values():
        groups.setdefault(len(sentences[indices[0]].ids), []).append(indices)
    scores = np.zeros(len(sentences))
    for length, members in sorted(groups.items()):
        max_rows = max(1, max_batch_tokens // length)
        first = 0
        while first < len(members):
            # A batch has as many whole sentences as fit, but at least one.
            last, rows = first, 0
            while last < len(members) and (
                last == first or rows + len(sentences[members[last][0]].scored) <= max_rows
            ):
                rows += len(sentences[members[last][0]].scored)
                last += 1
            batch = [sentences[indices[0]] for indices in members[first:last]]
            copies = np.concatenate([masked_copies(sentence, method) for sentence in batch])
            positions = np.concatenate([sentence.scored for sentence in batch])
            targets = np.concatenate([sentence.ids[sentence.scored] for sentence in batch])
            logs = _log_probabilities(model, copies, positions, targets, max_rows, device)
            begin = 0
            for indices, sentence in zip(members[first:last], batch, strict=True):
                scores[indices] = logs[begin : begin + len(sentence.scored)].sum()
                begin += len(sentence.scored)
            advance(sum(len(indices) for indices in members[first:last]))
            first = last
    return scores


def _log_probabilities(
    model: ElcBertForMaskedLM,
    copies: NDArray[np.int64],
    positions: NDArray[np.int64],
    targets: NDArray[np.int64],
    max_rows: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return ``log p(target)`` at one position of each row, float64 ``[rows]``.

    At most ``max_rows`` rows are computed at a time.
    """
    logs = []
    for begin in range(0, len(copies), max_rows):
        part = slice(begin, begin + max_rows)
        ids = torch.from_numpy(copies[part]).to(device)
        rows, length = ids.shape
        row_starts = torch.arange(rows, device=device) * length
        flat_positions = row_starts + torch.from_numpy(positions[part]).to(device)
        logits = model(ids, torch.ones_like(ids, dtype=torch.bool), flat_positions).float()
        log_probabilities = torch.log_softmax(logits, dim=-1)
        wanted = torch.from_numpy(targets[part]).to(device)
        logs.append(log_probabilities.gather(1, wanted[:, None])[:, 0].double().cpu().numpy())
    return np.concatenate(logs) if logs else np.zeros(0)
