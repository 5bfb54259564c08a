"""Assignment of a global batch's samples to ranks, micro-batches and rows, with or without packing.

With packing, a row holds several samples if they fit, so that there is little padding. Every rank computes
the same rows from the lengths of the samples alone, and then takes its own part of them.

Shapes: ``G`` samples of a global batch, ``R`` rows of all ranks, ``B`` samples and ``A`` micro-steps of one
rank, ``T`` tokens of a row.
"""

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elc_bert.data.sampling.batches import Batch


@dataclass(frozen=True)
class Layout:
    """Samples of a global batch that one rank reads, and their rows and micro-batches."""

    samples: NDArray[np.int64]
    """Indices of this rank's samples in the global batch, row by row, int64 ``[B]``."""
    rows: NDArray[np.int64]
    """Row of each of these samples, ascending, int64 ``[B]``."""
    sizes: NDArray[np.int64]
    """Number of rows of each micro-batch, int64 ``[A]``."""

    @property
    def num_rows(self) -> int:
        """Total number of rows of all micro-batches."""
        return int(self.sizes.sum())


def unpacked_layout(global_batch: int, world_size: int, micro_batch: int, rank: int) -> Layout:
    """Return the layout with one sample in each row.

    Micro-step k of rank r reads ``micro_batch`` samples, starting at (k * world_size + r) * micro_batch.
    """
    samples = np.arange(global_batch).reshape(-1, world_size, micro_batch)[:, rank]
    return Layout(samples.ravel(), np.arange(samples.size), np.full(len(samples), micro_batch))


def packed_layout(
    lengths: NDArray[np.int64], width: int, world_size: int, micro_batch: int, rank: int
) -> Layout:
    """Return the layout with as few rows as ``best_fit`` needs, and balanced work over ranks and micro-steps.

    All ranks have the same number of micro-batches, of at most ``micro_batch`` rows. The numbers of rows of
    two micro-batches differ by at most one, and so do those of two ranks. Only if there are too few rows, a
    micro-batch consists of one row of padding.

    Args:
        lengths: Number of tokens of each sample of the global batch, int64 ``[G]``.
        width: Row length ``T``.
        world_size: Number of ranks.
        micro_batch: Maximum number of rows of a micro-batch.
        rank: Rank whose layout is returned.
    """
    rows = best_fit(lengths, width)
    # A token attends to the tokens of its own sample only, so this is the part of the work that varies.
    work = np.bincount(rows, weights=lengths**2)
    micro_steps = -(-len(work) // (world_size * micro_batch))
    ranks, steps = distribute_rows(work, world_size, micro_steps)
    ours = np.flatnonzero(ranks == rank)
    ours = ours[np.argsort(steps[ours], kind="stable")]
    in_steps = np.bincount(steps[ours], minlength=micro_steps)
    sizes = np.maximum(in_steps, 1)
    first = np.cumsum(sizes) - sizes
    index_in_step = np.arange(len(ours)) - np.repeat(np.cumsum(in_steps) - in_steps, in_steps)
    own_row = np.full(len(work), -1)
    own_row[ours] = first[steps[ours]] + index_in_step
    own_row = own_row[rows]
    samples = np.flatnonzero(own_row >= 0)
    samples = samples[np.argsort(own_row[samples], kind="stable")]
    return Layout(samples, own_row[samples], sizes)


def best_fit(lengths: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """Assign samples to rows by best-fit decreasing bin packing.

    From the longest to the shortest, each sample goes into the row with the least room in which it fits, or
    into a new row. Samples of equal length and rows with equal room are processed together, so the number of
    steps is about that of distinct lengths (as in Krell et al. 2021, "Efficient sequence packing without
    cross-contamination").

    Args:
        lengths: Number of tokens of each sample, from 1 to ``width``, int64 ``[G]``.
        width: Row length ``T``.

    Returns:
        The row of each sample, numbered from 0, int64 ``[G]``.
    """
    runs: dict[int, list[tuple[int, int]]] = {}
    """Rows by the room that they have left, as runs of (first row, number of rows)."""
    rooms: list[int] = []
    """Keys of ``runs``, ascending."""
    placed: list[tuple[int, int, int]] = []
    """Runs of (first row, number of rows, samples put into each row), from the longest samples on."""
    num_rows = 0
    counts = np.bincount(lengths)
    shortest = int(lengths.min())

    def add_run(room: int, first: int, number: int) -> None:
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
            # A row with the least room remains the one with the least room, so it gets all samples that fit.
            each = room // length
            full = min(number, left // each)
            rest = left - full * each if full < number else 0
            placed += [(first, full, each), (first + full, min(rest, 1), rest)]
            add_run(room - each * length, first, full)
            add_run(room - rest * length, first + full, min(rest, 1))
            add_run(room, first + full + min(rest, 1), number - full - min(rest, 1))
            left -= full * each + rest

    firsts, numbers, eaches = np.array(placed).T
    within = np.arange(numbers.sum()) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    rows = np.empty(len(lengths), dtype=np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    rows[longest_first] = np.repeat(np.repeat(firsts, numbers) + within, np.repeat(eaches, numbers))
    return rows


def distribute_rows(
    work: NDArray[np.number], world_size: int, micro_steps: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distribute rows over ranks and micro-steps in serpentine order, from the costliest row to the cheapest.

    The numbers of rows of two micro-batches differ by at most one, and so do those of two ranks. The work of
    two ranks differs by at most that of the costliest row.

    Args:
        work: Work of each row, ``[R]``.
        world_size: Number of ranks.
        micro_steps: Number of micro-steps.

    Returns:
        Rank and micro-step of each row, both int64 ``[R]``.
    """
    slots = world_size * micro_steps
    turn = np.arange(len(work))
    slot = turn % slots
    slot = np.where(turn // slots % 2, slots - 1 - slot, slot)
    step, rank = slot // world_size, slot % world_size
    rank = np.where(step % 2, world_size - 1 - rank, rank)
    ranks, steps = np.empty_like(turn), np.empty_like(turn)
    costliest_first = np.argsort(-work, kind="stable")
    ranks[costliest_first], steps[costliest_first] = rank, step
    return ranks, steps


def pack_rows(parts: Iterable[Batch], layout: Layout, width: int, pad: int) -> Batch:
    """Copy samples into packed rows, one after the other.

    Args:
        parts: Samples of the layout, in its order, in batches of any size.
        layout: Layout that assigns the samples to rows.
        width: Row length ``T``.
        pad: Id of the padding token.

    Returns:
        ``layout.num_rows`` rows. Their ``attention_mask`` is int32: it numbers the samples of a row 1, 2,
        ..., and is 0 on padding.
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
    assert used.max() <= width, "the samples of a row fit into it"
    is_used = np.arange(width) < used[:, None]
    in_row = np.bincount(layout.rows, minlength=layout.num_rows)
    numbers = np.arange(1, len(length) + 1) - np.repeat(np.cumsum(in_row) - in_row, in_row)

    def fill(values: NDArray[Any], padding: int, dtype: type[np.generic]) -> NDArray[Any]:
        rows: NDArray[Any] = np.full(is_used.shape, padding, dtype=dtype)
        rows[is_used] = values
        return rows

    return Batch(
        fill(np.concatenate(inputs), pad, np.int64),
        fill(np.repeat(numbers.astype(np.int32), length), 0, np.int32),
        fill(np.concatenate(tokens), pad, np.int32),
        fill(np.concatenate(predicted), False, np.bool_),
    )
