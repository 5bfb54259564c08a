"""Disentangled attention on a GPU (CUDA or ROCm), in Triton; scores are computed tile by tile and not stored.

Triton comes only with PyTorch's GPU builds, so this module is imported only if its kernels are used.

Shapes: ``B`` batch, ``T`` tokens, ``H`` heads, ``K`` head size, ``P`` relative positions, padded to a power
of two. Each program works on one head of one sequence; ``row`` is its index, ``h * B + b``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from elc_bert.kernels.reference import AttentionInputs

LOG2_E = math.log2(math.e)
COLUMNS = 32
"""Tile size along the inner loop, a power of two. A program owns a tile of twice as many rows.

With more columns registers spill. The value was chosen from the compiler's reports and has not been timed.
"""
COLUMNS_WIDE = 16
"""Tile size for fp32, which needs twice the registers and has no tensor cores, and for head sizes over 64."""
WARPS = 4
STAGES = 2


def attention(inputs: AttentionInputs) -> Tensor:
    """Compute ``Kernels.attention`` in fp32, bf16 or fp16.

    The dropout mask is determined by one number drawn from the device's generator.
    """
    q, k, v, position_q, position_k = inputs.vectors
    tensors = [q, k, v, _by_head(position_q), _by_head(position_k)]
    if torch.is_autocast_enabled(q.device.type):
        tensors = [tensor.to(torch.get_autocast_dtype(q.device.type)) for tensor in tensors]
    # The seed is drawn on the device to avoid a synchronization.
    seed = torch.randint(2**62, (1,), device=q.device) if inputs.dropout else None
    mask = inputs.attention_mask.int().contiguous()
    context: Tensor = _Attention.apply(*tensors, inputs.distance_buckets.int(), mask, seed, inputs.dropout)
    return context


def device_of(tensor: Tensor) -> torch.cuda.device:
    """Return a context that makes a tensor's device the current one, on which Triton launches kernels.

    Triton's interpreter runs on CPU tensors, whose device index is -1; the context then does nothing.
    """
    return torch.cuda.device(tensor.get_device())


@triton.jit
def _load_tile(pointer, t, stride, length, K: tl.constexpr, K_PADDED: tl.constexpr):
    """Load the vectors of the tokens ``t``, ``[t, K_PADDED]``; elements beyond ``length`` or ``K`` are 0."""
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
    """Load the tokens' entries of the attention mask; beyond ``length``, a value that attends to nothing."""
    return tl.load(mask + t, t < length, -1 if ARE_QUERIES else 0).to(tl.int32)


@triton.jit
def _visible(query, key):
    """Return True where a query may attend to a key; see ``visibility_mask`` in reference.py."""
    return (key != 0) & ((query == key) | (query == 0))


@triton.jit
def _visible_blocks(own, mask, length, ARE_QUERIES: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the first and last (exclusive) block of keys visible to queries, or of queries that see keys.

    Scores outside of these blocks are not computed. The search is cheap: it reads one number per token.

    Args:
        own: Entries of the attention mask for the program's queries or keys.
        mask: Attention mask of the sequence.
        length: Number of tokens.
        ARE_QUERIES: ``own`` belongs to queries, not to keys.
        COLUMNS: Number of tokens in a block.
    """
    low, high = tl.min(tl.where(own > 0, own, 0x7FFFFFFF)), tl.max(own)
    sees_all = tl.max((own == 0).to(tl.int32)) > 0
    first, last = tl.cdiv(length, COLUMNS), 0
    for block in range(tl.cdiv(length, COLUMNS)):
        other = _load_numbers(mask, block * COLUMNS + tl.arange(0, COLUMNS), length, not ARE_QUERIES)
        from_padding = (other > 0) & sees_all if ARE_QUERIES else (other == 0) & (high > 0)
        is_visible = from_padding | ((other >= low) & (other <= high))
        found = tl.max(is_visible.to(tl.int32)) > 0
        first = tl.where(found, tl.minimum(first, block), first)
        last = tl.where(found, block + 1, last)
    return first, last


@triton.jit
def _by_bucket(table, buckets, t, other, length, SIGN: tl.constexpr, P: tl.constexpr):
    """Load, for each pair (t, other), the entry of row ``t`` of ``table [T, P]`` in the pair's bucket."""
    inside = (t[:, None] < length) & (other[None, :] < length)
    distance = SIGN * (t[:, None] - other[None, :])
    bucket = tl.load(buckets + (length - 1 + distance), inside, 0)
    return tl.load(table + (t[:, None] * P + bucket), inside, 0.0).to(tl.float32)


@triton.jit
def _scores(a, b, a_table, b_table, buckets, i, j, length, SIGN: tl.constexpr, P: tl.constexpr):
    """Compute the unscaled scores of tokens ``i`` and ``j``: one group are queries, the other keys.

    Args:
        a: Vectors of the tokens ``i``.
        b: Vectors of the tokens ``j``.
        a_table: Products of ``a`` with every relative position, ``[T, P]``.
        b_table: Products of ``b`` with every relative position, ``[T, P]``.
        buckets: Bucket of each distance.
        i: Positions of the rows.
        j: Positions of the columns.
        length: Number of tokens.
        SIGN: 1 if ``i`` are the queries, -1 if ``j`` are.
        P: Number of relative positions.
    """
    content = tl.dot(a, tl.trans(b), input_precision="ieee")
    # Each table is read along its rows, so that neighboring threads read neighboring addresses.
    a_position = _by_bucket(a_table, buckets, i, j, length, SIGN, P)
    b_position = _by_bucket(b_table, buckets, j, i, length, -SIGN, P)
    return content + a_position + tl.trans(b_position)


@triton.jit
def _dropout_mask(
    seed, row, first_query, first_key, QUERIES: tl.constexpr, KEYS: tl.constexpr, DROPOUT: tl.constexpr
):  # fmt: skip
    """Return True for the probabilities of a tile that dropout keeps, ``[QUERIES, KEYS]``.

    A call of Philox yields random numbers for four neighboring keys; their position is its counter. Seven
    rounds pass the statistical tests of its authors (Salmon et al. 2011).
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
    """Compute the output of a block of queries per program (Dao et al. 2022).

    ``c_table`` and ``p_table`` are ``[H, B, T, P]``: products of the queries, and of the keys, with relative
    positions. ``buckets`` is int32 ``[2 T - 1]``. The results are ``output [B, T, H, K]``, contiguous, and
    ``log_sums``, fp32 ``[H, B, T]``: base-2 logarithms of the sums of each query's exponentials. ``q_b``
    etc. are strides. ``scale`` includes log2(e), because GPUs have instructions for base-2 exponentials only.
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
    first, last = _visible_blocks(query_numbers, mask, length, True, COLUMNS)
    for block in range(first, last):
        j = block * COLUMNS + tl.arange(0, COLUMNS)
        keys = _load_tile(k, j, k_t, length, K, K_PADDED)
        values = _load_tile(v, j, v_t, length, K, K_PADDED)
        key_numbers = _load_numbers(mask, j, length, False)
        scores = scale * _scores(queries, keys, c_table, p_table, buckets, i, j, length, 1, P)
        seen = _visible(query_numbers[:, None], key_numbers[None, :])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # For a query without visible keys so far, inf - inf would give a NaN.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        exponentials = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        total = total * fade + tl.sum(exponentials, 1)
        if DROPOUT > 0:
            kept = _dropout_mask(seed, row, first_query, block * COLUMNS, ROWS, COLUMNS, DROPOUT)
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
    """Compute the gradients of a block of queries, or of a block of keys and values, per program.

    Scores are symmetric in queries and keys, so one kernel serves both.

    ``a`` and ``a2`` are the program's own tokens: queries and the output's gradient, or keys and values.
    ``b`` and ``b2`` are the others. ``a_table`` and ``b_table``, ``[H, B, T, P]``, are the products of ``a``
    and ``b`` with relative positions; ``a`` is multiplied with ``position [H, P, K]``. ``deltas``, fp32
    ``[H, B, T]``, is the product of the output and its gradient: the launch for queries writes it, the one
    for keys reads it. ``a_gradient`` and, in the launch for keys, ``a2_gradient`` (of the values) are
    ``[B, T, H, K]``, contiguous. ``position_gradients``, fp32 ``[H, B, blocks, P, K]``, takes the
    contribution of each program; the caller sums these in a fixed order, so that runs are bit-identical.
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
    # The gradient of table [T, P] is, for each row and bucket, the sum of the gradients of the row's scores
    # in that bucket. Rotating row r of a tile by r aligns the tile by distance: column c then holds the
    # entries with distance c modulo COLUMNS. As a tile has twice as many rows as columns, the entries of one
    # distance spread over three consecutive tiles. Selecting them from the three (`aligned`) gives all
    # entries of COLUMNS consecutive distances, which a product with the one-hot matrix of buckets sums up.
    table_gradient = tl.zeros((ROWS, P), tl.float32)
    r, c = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    rotation = (r - c) & (COLUMNS - 1)
    one_less, one_more = r < c, r >= c + COLUMNS
    before = tl.zeros((ROWS, COLUMNS), own.dtype)
    long_before = before
    first, last = _visible_blocks(numbers, mask, length, ARE_QUERIES, COLUMNS)
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
                kept = _dropout_mask(seed, row, start, block * COLUMNS, ROWS, COLUMNS, DROPOUT)
            else:
                kept = tl.trans(_dropout_mask(seed, row, block * COLUMNS, start, COLUMNS, ROWS, DROPOUT))
            products = tl.where(kept, products / (1 - DROPOUT), 0.0)
            remaining = tl.where(kept, probabilities / (1 - DROPOUT), 0.0)
        if not ARE_QUERIES:
            gradient2 = tl.dot(remaining.to(own.dtype), other2, gradient2, input_precision="ieee")
        tile = (probabilities * (products - delta)).to(own.dtype)
        gradient = tl.dot(tile, other, gradient, input_precision="ieee")
        rotated = tl.gather(tile, rotation, 1)
        aligned = tl.where(one_more, rotated, tl.where(one_less, long_before, before))
        in_bucket = _in_bucket(buckets, start - (block - 1) * COLUMNS, length, own.dtype, SIGN, P, COLUMNS)
        table_gradient = tl.dot(aligned, in_bucket, table_gradient, input_precision="ieee")
        long_before = before
        before = rotated
    for block in tl.static_range(2):
        rotated = tl.zeros_like(before)
        aligned = tl.where(one_more, rotated, tl.where(one_less, long_before, before))
        distance = start - (last - 1 + block) * COLUMNS
        in_bucket = _in_bucket(buckets, distance, length, own.dtype, SIGN, P, COLUMNS)
        table_gradient = tl.dot(aligned, in_bucket, table_gradient, input_precision="ieee")
        long_before = before
        before = rotated

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
    """Return the one-hot matrix of buckets, ``[N, P]``: row n is for distance ``SIGN * (first + n)``."""
    distance = SIGN * (first + tl.arange(0, N))
    inside = (distance > -length) & (distance < length)
    bucket = tl.load(buckets + (length - 1 + distance), inside, 0)
    return (bucket[:, None] == tl.arange(0, P)[None, :]).to(dtype)


class _Attention(torch.autograd.Function):
    """Attention that saves its inputs, output, and one number per query and head for the backward pass."""

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
        """Compute attention; positions are ``[H, P, K]``, and ``seed`` is int64 ``[1]`` or None."""
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
            # The launch for queries comes first because it writes the deltas that the launch for keys reads.
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
        # Queries are multiplied with the positions' keys, and keys with the positions' queries.
        position_q_gradient, position_k_gradient = (parts.sum(1).to(q.dtype) for parts in (k_parts, q_parts))
        return (
            q_gradient,
            k_gradient,
            v_gradient,
            position_q_gradient,
            position_k_gradient,
            None,
            None,
            None,
            None,
        )


def _scale(head_size: int) -> float:
    return 1.0 / math.sqrt(3 * head_size)


def _constants(q: Tensor, position: Tensor, dropout: float) -> dict[str, Any]:
    """Return the compile-time constants and launch options of the attention kernels."""
    size = q.shape[-1]
    columns = COLUMNS_WIDE if q.dtype == torch.float32 or size > 64 else COLUMNS
    return {
        "K": size,
        # tl.dot requires at least 16.
        "K_PADDED": max(16, triton.next_power_of_2(size)),
        "P": position.shape[1],
        "DROPOUT": dropout,
        "ROWS": 2 * columns,
        "COLUMNS": columns,
        "num_warps": WARPS,
        "num_stages": STAGES,
    }


def _products(x: Tensor, position: Tensor) -> Tensor:
    """Multiply ``x [B, T, H, K]`` with every relative position ``[H, P, K]``, ``[H, B * T, P]``."""
    return torch.bmm(x.permute(2, 0, 1, 3).flatten(1, 2), position.transpose(1, 2))


def _by_head(position: Tensor) -> Tensor:
    """Transpose ``[P, H, K]`` to ``[H, P, K]`` and zero-pad P to a power of two of at least 16."""
    padding = max(16, triton.next_power_of_2(len(position))) - len(position)
    return F.pad(position.transpose(0, 1), (0, 0, 0, padding)).contiguous()
