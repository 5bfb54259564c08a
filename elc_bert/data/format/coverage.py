"""Text of a dataset that is in no segment, so that no sample of a run ever contains it.

Shapes: ``B`` segments.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.manifest import SegmentsEntry

MAX_UNREAD_SHARE = 0.01
"""Share of the tokens above which unread text is worth a warning."""


class Coverage:
    """Number of tokens that segments contain, each token counted once.

    Segments are added in the order of the stream: neither their starts nor their ends ever decrease.
    """

    def __init__(self) -> None:
        self.covered = 0
        """Number of tokens in at least one of the segments."""
        self._reached = 0

    def add(self, offsets: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """Add segments, given the position of their first token and their number of tokens, int64 ``[B]``."""
        ends = offsets.astype(np.int64) + lengths
        reached = np.concatenate([[self._reached], ends])
        self.covered += int(np.maximum(ends - np.maximum(offsets, reached[:-1]), 0).sum())
        self._reached = int(reached[-1])


def unread_share(entry: SegmentsEntry, num_tokens: int) -> float:
    """Return the share of a dataset's tokens that is in none of its segments."""
    assert entry.unread is not None
    return entry.unread / max(num_tokens, 1)


def unread_warning(prefix: Path, entry: SegmentsEntry, num_tokens: int) -> str | None:
    """Return a warning about text that no run reads, or None if it is at most 1 % or unknown.

    Args:
        prefix: Path of the dataset without ``.bin``.
        entry: Manifest entry of the segments.
        num_tokens: Number of tokens of the dataset.
    """
    if entry.unread is None or unread_share(entry, num_tokens) <= MAX_UNREAD_SHARE:
        return None
    length = entry.sequence_length
    return (
        f"{prefix}: warning: {unread_share(entry, num_tokens):.1%} of the tokens are in no segment of "
        f"{length}, because sentences of more than {length - 2} tokens are cut, so no run reads them; use "
        f'the policy "packed" (elc_bert.data.segments), which needs: python -m data_tools segments {prefix} '
        f"--lengths {length} --policy packed"
    )
