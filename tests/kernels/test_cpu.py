"""The CPU's fast paths agree with the definitions in outputs and gradients, under every mask."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elc_bert.kernels import AttentionInputs, Kernels, kernels_for
from elc_bert.model.positions import distance_buckets
from tests.support.tensors import assert_alike, outputs_and_gradients, relative_error

PLAIN, FUSED = Kernels(), kernels_for("cpu", "fused")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
TOLERANCES = TOLERANCE | {torch.float16: 2e-3, torch.float64: 1e-5}
both_types = pytest.mark.parametrize("dtype", TOLERANCE, ids=["fp32", "bf16"])


def assert_same(function: Callable, inputs: list[Tensor], dtype: torch.dtype) -> None:
    """Check that ``function(kernels, *inputs)`` agrees between the fast path and the fp32 definition."""
    expected = outputs_and_gradients(lambda *x: function(PLAIN, *x), inputs)
    found = outputs_and_gradients(lambda *x: function(FUSED, *x), [tensor.to(dtype) for tensor in inputs])
    assert_alike(found, expected, dtype, TOLERANCES[dtype])


def attention_inputs(batch: int, length: int, heads: int, size: int, positions: int) -> list[Tensor]:
    torch.manual_seed(length)
    shapes = [(batch, length, heads, size)] * 3 + [(positions, heads, size)] * 2
    # Exact in bf16, so that only the arithmetic differs.
    return [torch.randn(shape).bfloat16().float() for shape in shapes]


MASKS = {
    "full": lambda b, t: torch.ones(b, t, dtype=torch.bool),
    "padded": lambda b, t: torch.arange(t) < torch.arange(b)[:, None] * t // max(1, b - 1),  # one is empty
    "padded in front": lambda b, t: torch.arange(t) >= torch.arange(b)[:, None],
    "with holes": lambda b, t: torch.arange(b * t).view(b, t) % 3 != 1,
    "packed": lambda b, t: torch.arange(t).div(t // 3 + 1, rounding_mode="floor").expand(b, t) + 1,
    "packed and padded": lambda b, t: (
        (torch.arange(t) // 4 + 1) * (torch.arange(t) < t - 3).int().expand(b, t)
    ),
    "packed in no order": lambda b, t: torch.arange(b * t).view(b, t) * 7 % 4,
}


@both_types
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("length", "buckets"), [(1, 4), (2, 32), (37, 4), (64, 32), (150, 32)])
def test_attention(mask, length, buckets, dtype):
    inputs = attention_inputs(3, length, 2, 8, 2 * buckets - 1)
    table = distance_buckets(length, buckets, 128, torch.device("cpu"))

    def attention(kernels, *tensors):
        return kernels.attention(AttentionInputs(*tensors, table, MASKS[mask](3, length)))

    assert_same(attention, inputs, dtype)


def test_attention_accepts_slices_of_larger_tensors():
    q, k, v, *positions = attention_inputs(2, 9, 2, 4, 7)
    table, mask = distance_buckets(9, 4, 16, torch.device("cpu")), MASKS["full"](2, 9)
    together = torch.cat([q, k], dim=2)
    parts = AttentionInputs(together[:, :, :2], together[:, :, 2:], v, *positions, table, mask)
    found = FUSED.attention(parts)
    assert torch.equal(found, FUSED.attention(AttentionInputs(q, k, v, *positions, table, mask)))
    assert found.is_contiguous()


def test_attention_does_not_depend_on_the_chunk_size(monkeypatch):
    inputs = attention_inputs(5, 20, 2, 4, 7)
    table, mask = distance_buckets(20, 4, 16, torch.device("cpu")), MASKS["with holes"](5, 20)

    def attention(*tensors):
        torch.manual_seed(1)
        return FUSED.attention(AttentionInputs(*tensors, table, mask, 0.2))

    whole = outputs_and_gradients(attention, inputs)
    for scores in (1, 3000):
        monkeypatch.setattr("elc_bert.kernels.cpu.kernels.SCORES_PER_CHUNK", scores)
        for found, expected in zip(outputs_and_gradients(attention, inputs), whole, strict=True):
            assert relative_error(found, expected) <= 1e-5


@both_types
def test_attention_applies_one_dropout_mask_to_probabilities_and_gradients(dtype):
    """With unit vectors as values the output equals the probabilities, and so shows which were dropped."""
    batch, length, rate = 4, 64, 0.3
    q, k, _, position_q, position_k = attention_inputs(batch, length, 2, length, 7)
    v = torch.eye(length)[None, :, None].expand(batch, length, 2, length)
    table, mask = distance_buckets(length, 4, 16, torch.device("cpu")), MASKS["packed"](batch, length)
    inputs = [tensor.to(dtype) for tensor in (q, k, v, position_q, position_k)]

    def dropped(*tensors):
        torch.manual_seed(3)
        return FUSED.attention(AttentionInputs(*tensors, table, mask, rate))

    shown = dropped(*inputs)
    assert torch.equal(shown, dropped(*inputs)), "the generator's state determines the mask"
    whole = FUSED.attention(AttentionInputs(*inputs, table, mask))
    kept = (shown != 0) | (whole == 0)
    assert kept[whole != 0].float().mean() == pytest.approx(1 - rate, abs=0.015)
    torch.testing.assert_close(shown, whole / (1 - rate) * kept, rtol=TOLERANCE[dtype], atol=0)

    class SameDropout(Kernels):
        def dropout(self, x, probability):
            return x * kept.transpose(1, 2) / (1 - rate)

    exact = outputs_and_gradients(
        lambda *x: SameDropout().attention(AttentionInputs(*x, table, mask, rate)),
        [tensor.float() for tensor in inputs],
    )
    for ours, expected in zip(outputs_and_gradients(dropped, inputs), exact, strict=True):
        assert relative_error(ours.float(), expected) <= TOLERANCE[dtype]


@both_types
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_linear_on_a_processor_without_bf16_instructions(autocast, bias, dtype, monkeypatch):
    monkeypatch.setattr("elc_bert.kernels.cpu.products.lacks_bf16_products", lambda: True)
    torch.manual_seed(0)
    inputs = [torch.randn(shape).bfloat16().float() for shape in ((2, 3, 8), (5, 8), (5,))][: 2 + bias]
    expected = outputs_and_gradients(PLAIN.linear, inputs)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = outputs_and_gradients(FUSED.linear, [tensor.to(dtype) for tensor in inputs])
    assert found[0].dtype == (torch.bfloat16 if autocast else dtype)
    for ours, exact in zip(found, expected, strict=True):
        assert relative_error(ours.float(), exact) <= TOLERANCE[torch.bfloat16 if autocast else dtype]


@both_types
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14), (2, 9, 256)])
def test_geglu_norm(shape, dtype):
    torch.manual_seed(0)
    x = 3 * torch.randn(shape)
    if shape == (1, 2):
        x = torch.tensor([[1.0, 2.0]])  # the norm of a single number is 0
    assert_same(lambda kernels, x: kernels.geglu_norm(x, 1e-5), [x.bfloat16().float()], dtype)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp32", "bf16", "fp16", "fp64"])
def test_mixtures(dtype):
    """Three layers; the second one also reads its input directly, not only through the mixture."""
    torch.manual_seed(0)
    h = torch.randn(2, 5, 900).bfloat16().float()
    weights = [torch.randn(n).bfloat16().float() for n in (1, 2, 3)]

    def network(kernels, h, *weights):
        mixing, last = kernels.mixing(), h
        for number, layer in enumerate(weights):
            mixed = mixing.mix(last, torch.softmax(layer.float(), 0))
            last = torch.tanh(mixed) + (0.5 * last if number == 1 else 0)
        return last

    assert_same(network, [h, *weights], dtype)


def test_mixtures_under_autocast_accept_outputs_of_different_types():
    h, weights = torch.randn(3, 4), torch.tensor([0.3, -0.2])

    def second_of_two(kernels, h, weights):
        mixing = kernels.mixing()
        mixed = mixing.mix(h.bfloat16().float(), torch.softmax(weights[:1], 0))
        with torch.autocast("cpu", torch.bfloat16):
            mixing.mix(h, torch.softmax(weights[:1], 0))
            return mixing.mix(h.bfloat16(), torch.softmax(weights, 0)).float() + mixed

    found, expected = (second_of_two(kernels, h, weights) for kernels in (FUSED, PLAIN))
    assert relative_error(found, expected) <= 1e-2


def test_an_unused_mixture_does_not_change_the_gradients():
    h, weights = torch.randn(3, 4), torch.zeros(2)

    def first_of_two(kernels, h, weights):
        mixing = kernels.mixing()
        mixed = mixing.mix(h, torch.softmax(weights[:1], 0))
        mixing.mix(mixed * 2, torch.softmax(weights, 0))
        return mixed * h

    assert_same(first_of_two, [h, weights], torch.float32)


@both_types
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_cross_entropy(rows, smoothing, dtype):
    torch.manual_seed(rows)
    logits, targets = (4 * torch.randn(rows, 301)).bfloat16().float(), torch.randint(301, (rows,))
    if rows > 1:
        targets[0] = logits[0].argmax()
        logits[1, [3, 5]], targets[1] = 50.0, 5  # of equal logits the first is the prediction
    assert FUSED.cross_entropy(logits, targets)[1] == PLAIN.cross_entropy(logits, targets)[1]
    found, expected = logits.to(dtype, copy=True).requires_grad_(), logits.requires_grad_()
    (ours, _), (exact, _) = (
        FUSED.cross_entropy(found, targets, smoothing),
        PLAIN.cross_entropy(expected, targets, smoothing),
    )
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
    (ours * 0.5).backward()
    (exact * 0.5).backward()
    assert found.grad.dtype == dtype
    if rows:
        assert relative_error(found.grad.float(), expected.grad) <= TOLERANCE[dtype]


def test_targets_outside_of_the_vocabulary_are_handled_as_by_the_definition():
    logits, targets = torch.randn(3, 5), torch.tensor([1, -100, 4])  # -100: not counted
    assert torch.equal(FUSED.cross_entropy(logits, targets)[0], PLAIN.cross_entropy(logits, targets)[0])
    with pytest.raises(IndexError):
        FUSED.cross_entropy(logits, torch.tensor([1, 5, 4]))


@both_types
@given(rate=st.floats(0.01, 0.99), size=st.integers(1, 30_000), seed=st.integers(0, 2**60))
@settings(max_examples=25, deadline=None)
def test_dropout_drops_the_given_share_and_keeps_the_mean(rate, size, seed, dtype):
    torch.manual_seed(seed)
    x = torch.ones(size, dtype=dtype, requires_grad=True)
    y = FUSED.dropout(x, rate)
    y.backward(torch.ones_like(y))
    assert torch.equal(x.grad, y), "the gradient has the same mask"
    deviation = (rate * (1 - rate) / size) ** 0.5
    assert abs((y == 0).float().mean() - rate) <= 5.5 * deviation + 1 / size
    assert (y[y != 0] == torch.tensor(1 / (1 - rate)).to(dtype)).all()


def test_dropout_is_uncorrelated_within_and_between_rows():
    torch.manual_seed(0)
    kept = (FUSED.dropout(torch.ones(512, 4096), 0.5) != 0).float() * 2 - 1
    for shift in (1, 2, 8, 100):
        assert abs((kept * kept.roll(shift, 1)).mean()) < 0.004
        assert abs((kept * kept.roll(shift, 0)).mean()) < 0.004
    assert kept.mean(0).abs().max() < 0.25
    assert kept.mean(1).abs().max() < 0.09


@settings(max_examples=10, deadline=None)
@given(threads=st.integers(2, 5))
def test_bit_identical_for_any_number_of_threads(threads):
    before = torch.get_num_threads()
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            torch.manual_seed(0)
            x = torch.randn(3, 50, 6000)
            mixing = FUSED.mixing()
            results.append(
                outputs_and_gradients(
                    lambda x, mixing=mixing: FUSED.geglu_norm(
                        FUSED.dropout(mixing.mix(x, torch.ones(1)), 0.1), 1e-6
                    ),
                    [x],
                )
            )
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def test_non_finite_values_propagate():
    inputs = attention_inputs(1, 6, 1, 4, 7)
    inputs[0][0, 2] = float("nan")
    table = distance_buckets(6, 4, 16, torch.device("cpu"))
    for dtype in TOLERANCE:
        infinite = torch.full((1, 4), float("inf"), dtype=dtype)
        shown = FUSED.attention(AttentionInputs(*(x.to(dtype) for x in inputs), table, MASKS["full"](1, 6)))
        assert shown.isnan().any(-1).squeeze().tolist() == [False, False, True, False, False, False]
        assert FUSED.geglu_norm(torch.tensor([[float("nan"), 1.0, 2.0, 3.0]], dtype=dtype), 0.0).isnan().all()
        assert FUSED.cross_entropy(infinite, torch.zeros(1).long())[0].isnan()


def test_fp16_and_fp64_fall_back_to_the_definitions():
    for dtype in (torch.float16, torch.float64):
        inputs = [tensor.to(dtype) for tensor in attention_inputs(1, 6, 1, 4, 7)]
        table = distance_buckets(6, 4, 16, torch.device("cpu"))
        arguments = AttentionInputs(*inputs, table, MASKS["full"](1, 6))
        assert torch.equal(FUSED.attention(arguments), PLAIN.attention(arguments))
        x = torch.randn(3, 8).to(dtype)
        assert torch.equal(FUSED.geglu_norm(x, 1e-3), PLAIN.geglu_norm(x, 1e-3))
        assert torch.equal(FUSED.linear(x, x), PLAIN.linear(x, x))
        assert FUSED.dropout(x, 0.5).dtype == dtype
        targets = torch.tensor([1, 2, 3])
        assert torch.equal(FUSED.cross_entropy(x, targets)[0], PLAIN.cross_entropy(x, targets)[0])
