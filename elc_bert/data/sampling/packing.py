"""Where the samples of a global batch go: which rank, which micro-batch, which row and which place in it.

A row takes several samples where they fit, so that little of it is padding. Every rank works out the same
rows from the lengths of the samples alone, then takes its part of them.

Shapes: `G` samples of a global batch, `R` rows of all ranks, `B` samples and `A` micro-steps of one rank,
`T` tokens of a row.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.format.vocabulary import PAD
from elc_bert.data.sampling.batches import Batch


@dataclass(frozen=True)
class Layout:
    """What one rank reads of a global batch, and the rows and micro-batches that it puts it into."""

    samples: NDArray[np.int64]
    """Places in the global batch of this rank's samples, row by row, int64 [B]."""
    rows: NDArray[np.int64]
    """Row of each of them, ascending, int64 [B]."""
    sizes: NDArray[np.int64]
    """Rows of each micro-batch, int64 [A]."""

    @property
    def num_rows(self) -> int:
        """Of all micro-batches together."""
        return int(self.sizes.sum())


def one_a_row(global_batch: int, world_size: int, micro_batch: int, rank: int) -> Layout:
    """A row for each sample: micro-step k of rank r reads those from (k * world_size + r) * micro_batch."""
    samples = np.arange(global_batch).reshape(-1, world_size, micro_batch)[:, rank]
    return Layout(samples.ravel(), np.arange(samples.size), np.full(len(samples), micro_batch))


def packed(lengths: NDArray[np.int64], width: int, world_size: int, micro_batch: int, rank: int) -> Layout:
    """As few rows as `best_fit` needs, and about the same work for every rank and micro-step.

    All ranks have the same number of micro-batches, of at most `micro_batch` rows, which differ by at most
    one row, as do the ranks. Only where there are too few rows for that, a micro-batch is a row of padding.

    Args:
        lengths: tokens of each sample of the global batch, int64 [G].
        width: `T`.
        world_size: number of ranks.
        micro_batch: most rows of a micro-batch.
        rank: whose layout it is.
    """
    rows = best_fit(lengths, width)
    # A token attends to those of its own sample: the work that rows differ in.
    work = np.bincount(rows, weights=lengths**2)
    micro_steps = -(-len(work) // (world_size * micro_batch))
    ranks, steps = deal(work, world_size, micro_steps)
    ours = np.flatnonzero(ranks == rank)
    ours = ours[np.argsort(steps[ours], kind="stable")]
    in_steps = np.bincount(steps[ours], minlength=micro_steps)
    sizes = np.maximum(in_steps, 1)
    first = np.cumsum(sizes) - sizes
    place_in_step = np.arange(len(ours)) - np.repeat(np.cumsum(in_steps) - in_steps, in_steps)
    own_row = np.full(len(work), -1)
    own_row[ours] = first[steps[ours]] + place_in_step
    own_row = own_row[rows]
    samples = np.flatnonzero(own_row >= 0)
    samples = samples[np.argsort(own_row[samples], kind="stable")]
    return Layout(samples, own_row[samples], sizes)


def best_fit(lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """The row of each sample, int64 [G], numbered from 0: best-fit decreasing.

    From the longest to the shortest, a sample goes into the row that it leaves the least room in, or
    into a new one. Samples of one length and rows of one room are dealt with together, so that it
    takes about as many steps as there are lengths (as in Krell et al. 2021, "Efficient sequence
    packing without cross-contamination").

    Args:
        lengths: tokens of each sample, from 1 to `width`, int64 [G].
        width: `T`.
    """
    runs: dict[int, list[tuple[int, int]]] = {}
    """Rows that have a certain room left, as first row and number of rows."""
    rooms: list[int] = []
    """Keys of `runs`, ascending."""
    placed: list[tuple[int, int, int]] = []
    """First row, number of rows, and samples that go into each, from the longest sample to the shortest."""
    num_rows = 0
    counts = np.bincount(lengths)
    shortest = int(lengths.min())

    def leave(room: int, first: int, number: int) -> None:
        if number and room >= shortest:
            if room not in runs:
                bisect.insort(rooms, room)
            runs.setdefault(room, []).append((first, number))

    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            tightest = bisect.bisect_left(rooms, length)
            if tightest < len(rooms):
                room = rooms[tightest]
                first, number = runs[room].pop()
                if not runs[room]:
                    del runs[room], rooms[tightest]
            else:
                room, first, number = width, num_rows, -(-left // (width // length))
                num_rows += number
            # A row with the least room stays so while it is filled: it gets all that fit.
            each = room // length
            full = min(number, left // each)
            rest = left - full * each if full < number else 0
            placed += [(first, full, each), (first + full, min(rest, 1), rest)]
            leave(room - each * length, first, full)
            leave(room - rest * length, first + full, min(rest, 1))
            leave(room, first + full + min(rest, 1), number - full - min(rest, 1))
            left -= full * each + rest

    firsts, numbers, eaches = np.array(placed).T
    within = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    rows = np.empty(len(lengths), dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    rows[longest_first] = np.repeat(np.repeat(firsts, numbers) + within, np.repeat(eaches, numbers))
    return rows


def deal(
    work: NDArray[np.number], world_size: int, micro_steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rank and micro-step of each row, both int64 [R]: like cards, the costliest row first, to and fro.

    Numbers of rows differ by at most one, over all micro-batches and over all ranks; the work of two ranks
    by at most that of the costliest row.
    """
    players = world_size * micro_steps
    turn = np.arange(len(work))
    player = turn % players
    player = np.where(turn // players % 2, players - 1 - player, player)
    step, rank = player // world_size, player % world_size
    rank = np.where(step % 2, world_size - 1 - rank, rank)
    ranks, steps = np.empty_like(turn), np.empty_like(turn)
    costliest_first = np.argsort(-work, kind="stable")
    ranks[costliest_first], steps[costliest_first] = rank, step
    return ranks, steps


def lay_out(parts: Iterable[Batch], layout: Layout, width: int) -> Batch:
    """Copies samples side by side into their rows; `attention_mask` numbers those of a row 1, 2, ...

    Args:
        parts: the samples of the layout in its order, in batches of any size.
        layout: which row each sample goes into.
        width: `T`.

    Returns:
        `layout.num_rows` rows, with an `attention_mask` of int32.
    """
    lengths, inputs, tokens, predicted = [], [], [], []
    for part in parts:
        is_real = part.attention_mask != 0
        lengths.append(is_real.sum(axis=1))
        inputs.append(part.input_ids[is_real])
        tokens.append(part.tokens[is_real])
        predicted.append(part.predicted[is_real])
    length = np.concatenate(lengths)
    used = np.bincount(layout.rows, length, minlength=layout.num_rows)
    assert used.max() <= width, "rows of a layout hold its samples"
    is_used = np.arange(width) < used[:, None]
    in_row = np.bincount(layout.rows, minlength=layout.num_rows)
    numbers = np.arange(1, len(length) + 1) - np.repeat(np.cumsum(in_row) - in_row, in_row)

    def spread(values: NDArray, padding: int, dtype: type) -> NDArray:
        rows: NDArray = np.full(is_used.shape, padding, dtype=dtype)
        rows[is_used] = values
        return rows

    return Batch(
        spread(np.concatenate(inputs), PAD, np.int64),
        spread(np.repeat(numbers.astype(np.int32), length), 0, np.int32),
        spread(np.concatenate(tokens), PAD, np.int32),
        spread(np.concatenate(predicted), False, np.bool_),
    )
