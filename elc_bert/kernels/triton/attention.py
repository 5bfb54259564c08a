"""Disentangled attention on a GPU (CUDA or ROCm), in Triton; scores exist a tile at a time, not in memory.

Triton comes with torch's GPU builds, so this module is imported only where its kernels are wanted.

Shapes: ``B`` batch, ``T`` tokens, ``H`` heads, ``K`` head size, ``P`` relative positions, padded to a power
of two. A program works on one head of one sequence; ``row`` is which, ``h * B + b``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = math.log2(math.e)
COLUMNS = 32
"""Keys (or queries) that a program goes on by, for twice as many queries (or keys) that it stays with.

A power of two; with more, registers spill. Tuned by what the compiler reports, not yet by a clock.
"""
COLUMNS_WIDE = 16
"""For fp32, which has no tensor cores and needs twice the room, and for heads of more than 64."""
WARPS = 4
STAGES = 2


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position_q: Tensor,
    position_k: Tensor,
    distance_buckets: Tensor,
    attention_mask: Tensor,
    dropout: float,
) -> Tensor:
    """As ``Kernels.attention``, in fp32, bf16 or fp16.

    Which entries are dropped follows from one number of the device's generator.
    """
    tensors = [q, k, v, _by_head(position_q), _by_head(position_k)]
    if torch.is_autocast_enabled(q.device.type):
        tensors = [tensor.to(torch.get_autocast_dtype(q.device.type)) for tensor in tensors]
    # Made on the device, so that nobody waits for it.
    seed = torch.randint(2**62, (1,), device=q.device) if dropout else None
    mask = attention_mask.int().contiguous()
    return _Attention.apply(*tensors, distance_buckets.int(), mask, seed, dropout)


def device_of(tensor: Tensor) -> torch.cuda.device:
    """Triton launches on the current device; a tensor on the CPU, which it interprets for, has number -1."""
    return torch.cuda.device(tensor.get_device())


@triton.jit
def _load_tile(pointer, t, stride, length, K: tl.constexpr, K_PADDED: tl.constexpr):
    """Vectors ``t`` of the ``length`` there are, ``[t, K_PADDED]``; zeros beyond."""
    k = tl.arange(0, K_PADDED)
    inside = (t[:, None] < length) & (k[None, :] < K)
    return tl.load(pointer + t[:, None] * stride + k[None, :], inside, 0.0)


@triton.jit
def _store_tile(pointer, t, stride, length, tile, K: tl.constexpr, K_PADDED: tl.constexpr):
    k = tl.arange(0, K_PADDED)
    inside = (t[:, None] < length) & (k[None, :] < K)
    tl.store(pointer + t[:, None] * stride + k[None, :], tile, inside)


@triton.jit
def _load_numbers(mask, t, length, ARE_QUERIES: tl.constexpr):
    """The tokens' entries in the attention mask; beyond ``length`` what neither sees nor is seen."""
    return tl.load(mask + t, t < length, -1 if ARE_QUERIES else 0).to(tl.int32)


@triton.jit
def _visible(query, key):
    """``visible`` of the definition."""
    return (key != 0) & ((query == key) | (query == 0))


@triton.jit
def _blocks_in_sight(own, mask, length, ARE_QUERIES: tl.constexpr, COLUMNS: tl.constexpr):
    """First and last (exclusive) block of ``COLUMNS`` keys that queries may see, or of queries that see keys.

    Scores outside are not computed. Looking for blocks costs little: it reads one number a token.

    Args:
        own: numbers of the queries, or of the keys.
        ARE_QUERIES: which of the two.
    """
    low, high = tl.min(tl.where(own > 0, own, 0x7FFFFFFF)), tl.max(own)
    sees_all = tl.max((own == 0).to(tl.int32)) > 0
    first, last = tl.cdiv(length, COLUMNS), 0
    for block in range(tl.cdiv(length, COLUMNS)):
        other = _load_numbers(mask, block * COLUMNS + tl.arange(0, COLUMNS), length, not ARE_QUERIES)
        from_padding = (other > 0) & sees_all if ARE_QUERIES else (other == 0) & (high > 0)
        in_sight = from_padding | ((other >= low) & (other <= high))
        found = tl.max(in_sight.to(tl.int32)) > 0
        first = tl.where(found, tl.minimum(first, block), first)
        last = tl.where(found, block + 1, last)
    return first, last


@triton.jit
def _by_bucket(table, buckets, t, other, length, SIGN: tl.constexpr, P: tl.constexpr):
    """Entry (t, other) is that of row ``t`` of ``table [T, P]`` for the pair's bucket, ``[t, other]``."""
    inside = (t[:, None] < length) & (other[None, :] < length)
    distance = SIGN * (t[:, None] - other[None, :])
    bucket = tl.load(buckets + (length - 1 + distance), inside, 0)
    return tl.load(table + (t[:, None] * P + bucket), inside, 0.0).to(tl.float32)


@triton.jit
def _scores(a, b, a_table, b_table, buckets, i, j, length, SIGN: tl.constexpr, P: tl.constexpr):
    """Unscaled scores of tokens ``i`` and ``j``, of which one are queries and one are keys.

    Args:
        a, b: their vectors.
        a_table, b_table: their products with every relative position, ``[T, P]``.
        SIGN: 1 if ``i`` are the queries, -1 if ``j`` are.
    """
    content = tl.dot(a, tl.trans(b), input_precision="ieee")
    # Each table is read along its rows, where neighbours lie close.
    a_position = _by_bucket(a_table, buckets, i, j, length, SIGN, P)
    b_position = _by_bucket(b_table, buckets, j, i, length, -SIGN, P)
    return content + a_position + tl.trans(b_position)


@triton.jit
def _kept(
    seed, row, first_query, first_key, QUERIES: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr
):  # fmt: skip
    """Which probabilities of a tile dropout keeps, ``[QUERIES, KEYS]``.

    A call of Philox gives random numbers to four neighbouring keys; its counter is their place. Seven rounds
    pass the tests of randomness that its authors set (Salmon et al. 2011).
    """
    i = first_query + tl.arange(0, QUERIES)
    four_keys = first_key // 4 + tl.arange(0, KEYS // 4)
    a, b, c, d = tl.philox(tl.load(seed), i[:, None], four_keys[None, :], row.to(tl.int32), 0, n_rounds=7)
    bits = tl.join(tl.join(a, b), tl.join(c, d)).reshape(QUERIES, KEYS)
    return tl.uint_to_uniform_float(bits) >= DROPOUT


@triton.jit
def _attention_forward(
    q, k, v, c_table, p_table, buckets, mask, seed, output, log_sums,
    q_b, q_t, q_h, k_b, k_t, k_h, v_b, v_t, v_h,
    batch, heads, length, scale,
    K: tl.constexpr, K_PADDED: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A block of queries of one row per program (Dao et al. 2022).

    Args:
        c_table, p_table: ``[H, B, T, P]``, products of queries, and keys, with relative positions.
        buckets: int32 ``[2 T - 1]``.
        output: ``[B, T, H, K]``, contiguous.
        log_sums: fp32 ``[H, B, T]``, logarithm to base 2 of the sum of a query's exponentials.
        q_b, ...: strides.
        scale: of the scores, for exponentials to base 2, which are the ones that GPUs have.
    """
    blocks = tl.cdiv(length, ROWS)
    row, first_query = tl.program_id(0) // blocks, tl.program_id(0) % blocks * ROWS
    h, b = row // batch, (row % batch).to(tl.int64)
    q, k, v = q + b * q_b + h * q_h, k + b * k_b + h * k_h, v + b * v_b + h * v_h
    of_row = row.to(tl.int64) * length
    c_table, p_table, mask = c_table + of_row * P, p_table + of_row * P, mask + b * length

    i = first_query + tl.arange(0, ROWS)
    queries = _load_tile(q, i, q_t, length, K, K_PADDED)
    query_numbers = _load_numbers(mask, i, length, True)
    highest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mean = tl.zeros((ROWS, K_PADDED), tl.float32)
    first, last = _blocks_in_sight(query_numbers, mask, length, True, COLUMNS)
    for block in range(first, last):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        keys = _load_tile(k, j, k_t, length, K, K_PADDED)
        values = _load_tile(v, j, v_t, length, K, K_PADDED)
        key_numbers = _load_numbers(mask, j, length, False)
        scores = scale * _scores(queries, keys, c_table, p_table, buckets, i, j, length, 1, P)
        seen = _visible(query_numbers[:, None], key_numbers[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A query that has seen nothing yet: infinities must not meet.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        exponentials = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(exponentials, 1)
        if DROPOUT > 0:
            kept = _kept(seed, row, first_query, block * COLUMNS, ROWS, COLUMNS, DROPOUT)
            exponentials = tl.where(kept, exponentials / (1 - DROPOUT), 0.0)
        mean = tl.dot(exponentials.to(values.dtype), values, mean * fade[:, None], input_precision="ieee")
        highest = higher
    sees_any = total > 0
    total = tl.where(sees_any, total, 1.0)
    tile = (mean / total[:, None]).to(output.dtype.element_ty)
    _store_tile(output + (b * length * heads + h) * K, i, heads * K, length, tile, K, K_PADDED)
    tl.store(log_sums + of_row + i, tl.where(sees_any, highest + tl.log2(total), 0.0), i < length)


@triton.jit
def _attention_backward(
    a, a2, b, b2, a_table, b_table, position, output, log_sums, deltas, buckets, mask, seed,
    a_gradient, a2_gradient, position_gradients,
    a_b, a_t, a_h, a2_b, a2_t, a2_h, b_b, b_t, b_h, b2_b, b2_t, b2_h,
    batch, heads, length, scale, scale_base2,
    ARE_QUERIES: tl.constexpr,
    K: tl.constexpr, K_PADDED: tl.constexpr, P: tl.constexpr, DROPOUT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries, or of keys and values, of one row per program.

    Queries and keys play the same part in a score, so that one kernel does for both.

    Args:
        a, a2: of the block's own side: queries and the output's gradient, or keys and values.
        b, b2: the same of the other side.
        a_table, b_table: ``[H, B, T, P]``, products of ``a`` and of ``b`` with relative positions.
        position: ``[H, P, K]``, those that ``a`` is multiplied with.
        deltas: fp32 ``[H, B, T]``, product of output and its gradient; queries write it, keys read it.
        a_gradient, a2_gradient: ``[B, T, H, K]``, contiguous; the second for keys (that is, values) only.
        position_gradients: fp32 ``[H, B, blocks, P, K]``, this program's part. Parts are added up in a fixed
            order outside, so that runs agree to the bit.
    """
    SIGN: tl.constexpr = 1 if ARE_QUERIES else -1
    blocks = tl.cdiv(length, ROWS)
    row, start = tl.program_id(0) // blocks, tl.program_id(0) % blocks * ROWS
    h, batch_row = row // batch, (row % batch).to(tl.int64)
    a, a2 = a + batch_row * a_b + h * a_h, a2 + batch_row * a2_b + h * a2_h
    b, b2 = b + batch_row * b_b + h * b_h, b2 + batch_row * b2_b + h * b2_h
    of_row = row.to(tl.int64) * length
    a_table, b_table, mask = a_table + of_row * P, b_table + of_row * P, mask + batch_row * length
    log_sums, deltas = log_sums + of_row, deltas + of_row
    contiguous = (batch_row * length * heads + h) * K

    i = start + tl.arange(0, ROWS)
    own, own2 = _load_tile(a, i, a_t, length, K, K_PADDED), _load_tile(a2, i, a2_t, length, K, K_PADDED)
    numbers = _load_numbers(mask, i, length, ARE_QUERIES)
    if ARE_QUERIES:
        attended = _load_tile(output + contiguous, i, heads * K, length, K, K_PADDED)
        delta = tl.sum(attended.to(tl.float32) * own2.to(tl.float32), 1)
        tl.store(deltas + i, delta, i < length)
        delta, log_sum = delta[:, None], tl.load(log_sums + i, i < length, 0.0)[:, None]
    gradient = tl.zeros((ROWS, K_PADDED), tl.float32)
    gradient2 = tl.zeros((ROWS, K_PADDED), tl.float32)
    # For the gradient of the table [T, P] the gradients of a row's scores in one bucket are added up. Row r
    # of a tile is turned by r, so that column c has distances r - s of c, give or take COLUMNS: there are
    # twice as many rows. The distances COLUMNS less than c are those of c in the next tile, and COLUMNS more
    # than c in the one after it. So three tiles together have all entries of certain COLUMNS distances, and
    # a product with the matrix that says which distance is in which bucket adds them up.
    table_gradient = tl.zeros((ROWS, P), tl.float32)
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    turn = (r - c) & (COLUMNS - 1)
    one_less, one_more = r < c, r >= c + COLUMNS
    before = tl.zeros((ROWS, COLUMNS), own.dtype)
    long_before = before
    first, last = _blocks_in_sight(numbers, mask, length, ARE_QUERIES, COLUMNS)
    for block in range(first, last):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        other, other2 = (
            _load_tile(b, j, b_t, length, K, K_PADDED),
            _load_tile(b2, j, b2_t, length, K, K_PADDED),
        )
        other_numbers = _load_numbers(mask, j, length, not ARE_QUERIES)
        scores = scale_base2 * _scores(own, other, a_table, b_table, buckets, i, j, length, SIGN, P)
        if ARE_QUERIES:
            seen = _visible(numbers[:, None], other_numbers[None, :])
        else:
            seen = _visible(other_numbers[None, :], numbers[:, None])
            delta = tl.load(deltas + j, j < length, 0.0)[None, :]
            log_sum = tl.load(log_sums + j, j < length, 0.0)[None, :]
        probabilities = tl.where(seen, tl.exp2(scores - log_sum), 0.0)
        products = tl.dot(own2, tl.trans(other2), input_precision="ieee")
        remaining = probabilities
        if DROPOUT > 0:
            if ARE_QUERIES:
                kept = _kept(seed, row, start, block * COLUMNS, ROWS, COLUMNS, DROPOUT)
            else:
                kept = tl.trans(_kept(seed, row, block * COLUMNS, start, COLUMNS, ROWS, DROPOUT))
            products = tl.where(kept, products / (1 - DROPOUT), 0.0)
            remaining = tl.where(kept, probabilities / (1 - DROPOUT), 0.0)
        if not ARE_QUERIES:
            gradient2 = tl.dot(remaining.to(own.dtype), other2, gradient2, input_precision="ieee")
        tile = (probabilities * (products - delta)).to(own.dtype)
        gradient = tl.dot(tile, other, gradient, input_precision="ieee")
        turned = tl.gather(tile, turn, 1)
        together = tl.where(one_more, turned, tl.where(one_less, long_before, before))
        in_bucket = _in_bucket(buckets, start - (block - 1) * COLUMNS, length, own.dtype, SIGN, P, COLUMNS)
        table_gradient = tl.dot(together, in_bucket, table_gradient, input_precision="ieee")
        long_before = before
        before = turned
    for block in tl.static_range(2):
        turned = tl.zeros_like(before)
        together = tl.where(one_more, turned, tl.where(one_less, long_before, before))
        distance = start - (last - 1 + block) * COLUMNS
        in_bucket = _in_bucket(buckets, distance, length, own.dtype, SIGN, P, COLUMNS)
        table_gradient = tl.dot(together, in_bucket, table_gradient, input_precision="ieee")
        long_before = before
        before = turned

    table_gradient = (scale * table_gradient).to(own.dtype)
    p = tl.arange(0, P)
    positions = _load_tile(position + h * P * K, p, K, P, K, K_PADDED)
    gradient = tl.dot(table_gradient, positions, scale * gradient, input_precision="ieee")
    element = a_gradient.dtype.element_ty
    _store_tile(a_gradient + contiguous, i, heads * K, length, gradient.to(element), K, K_PADDED)
    if not ARE_QUERIES:
        _store_tile(a2_gradient + contiguous, i, heads * K, length, gradient2.to(element), K, K_PADDED)
    part = position_gradients + tl.program_id(0).to(tl.int64) * P * K
    of_positions = tl.dot(tl.trans(table_gradient), own, input_precision="ieee")
    _store_tile(part, p, K, P, of_positions, K, K_PADDED)


@triton.jit
def _in_bucket(buckets, first, length, dtype, SIGN: tl.constexpr, P: tl.constexpr, N: tl.constexpr):
    """1 where distance ``SIGN * (first + row)`` is in bucket ``column``, else 0, ``[N, P]``."""
    distance = SIGN * (first + tl.arange(0, N))
    inside = (distance > -length) & (distance < length)
    bucket = tl.load(buckets + (length - 1 + distance), inside, 0)
    return (bucket[:, None] == tl.arange(0, P)[None, :]).to(dtype)


class _Attention(torch.autograd.Function):
    """Keeps the output, one number per query and head, and what it was given."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        position_q: Tensor,
        position_k: Tensor,
        buckets: Tensor,
        mask: Tensor,
        seed: Tensor | None,
        dropout: float,
    ) -> Tensor:
        """As ``Kernels.attention``, but for ``position_q, position_k [H, P, K]`` and a seed of dropout."""
        batch, length, heads, size = q.shape
        output = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        log_sums = torch.empty(heads, batch, length, dtype=torch.float32, device=q.device)
        constants = _constants(q, position_k, dropout)
        blocks = triton.cdiv(length, constants["ROWS"])
        with device_of(q):
            _attention_forward[(heads * batch * blocks,)](
                q, k, v, _products(q, position_k), _products(k, position_q), buckets, mask, seed,
                output, log_sums, *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
                batch, heads, length, _scale(size) * LOG2_E, **constants,
            )  # fmt: skip
        ctx.save_for_backward(q, k, v, position_q, position_k, buckets, mask, seed, output, log_sums)
        ctx.dropout = dropout
        return output

    @staticmethod
    def backward(ctx: Any, output_gradient: Tensor) -> Any:
        q, k, v, position_q, position_k, buckets, mask, seed, output, log_sums = ctx.saved_tensors
        batch, length, heads, size = q.shape
        output_gradient = output_gradient.contiguous()
        tables = _products(q, position_k), _products(k, position_q)
        deltas = torch.empty_like(log_sums)
        q_gradient, k_gradient, v_gradient = (torch.empty_like(output) for _ in range(3))
        constants = _constants(q, position_k, ctx.dropout)
        blocks = triton.cdiv(length, constants["ROWS"])
        q_parts, k_parts = (
            torch.empty(heads, batch * blocks, *position_k.shape[1:], dtype=torch.float32, device=q.device)
            for _ in range(2)
        )
        with device_of(q):
            # Queries first, since they write the deltas that keys read.
            for are_queries, sides, rest in (
                (True, (q, output_gradient, k, v), (*tables, position_k)),
                (False, (k, v, q, output_gradient), (*reversed(tables), position_q)),
            ):
                gradients = (q_gradient, None, q_parts) if are_queries else (k_gradient, v_gradient, k_parts)
                _attention_backward[(heads * batch * blocks,)](
                    *sides, *rest, output, log_sums, deltas, buckets, mask, seed, *gradients,
                    *(stride for side in sides for stride in side.stride()[:3]),
                    batch, heads, length, _scale(size), _scale(size) * LOG2_E,
                    ARE_QUERIES=are_queries, **constants,
                )  # fmt: skip
        # Queries are multiplied with positions of keys, and the other way round.
        of_position_q, of_position_k = (parts.sum(1).to(q.dtype) for parts in (k_parts, q_parts))
        return q_gradient, k_gradient, v_gradient, of_position_q, of_position_k, None, None, None, None


def _scale(head_size: int) -> float:
    return 1.0 / math.sqrt(3 * head_size)


def _constants(q: Tensor, position: Tensor, dropout: float) -> dict[str, Any]:
    """What the attention kernels are compiled for."""
    size = q.shape[-1]
    columns = COLUMNS_WIDE if q.dtype == torch.float32 or size > 64 else COLUMNS
    return {
        "K": size,
        # Matrix products take no fewer than 16.
        "K_PADDED": max(16, triton.next_power_of_2(size)),
        "P": position.shape[1],
        "DROPOUT": dropout,
        "ROWS": 2 * columns,
        "COLUMNS": columns,
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _products(x: Tensor, position: Tensor) -> Tensor:
    """Products of ``x [B, T, H, K]`` with every relative position ``[H, P, K]``, ``[H, B * T, P]``."""
    return torch.bmm(x.permute(2, 0, 1, 3).flatten(1, 2), position.transpose(1, 2))


def _by_head(position: Tensor) -> Tensor:
    """``[P, H, K]`` to ``[H, P, K]``, with P padded by zeros to a power of two, no less than 16."""
    padding = max(16, triton.next_power_of_2(len(position))) - len(position)
    return F.pad(position.transpose(0, 1), (0, 0, 0, padding)).contiguous()
