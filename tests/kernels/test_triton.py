"""The GPU kernels agree with the definitions; without a GPU, they run in Triton's interpreter."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from elc_bert.kernels.reference import AttentionInputs, Kernels
from elc_bert.model.positions import distance_buckets
from tests.support.tensors import assert_alike, outputs_and_gradients, relative_error

pytest.importorskip("triton", reason="triton is not installed; make setup installs it on Linux")
# Triton reads at import whether to compile or to interpret kernels: see conftest.py.
from elc_bert.kernels.triton import attention as attention_gpu
from elc_bert.kernels.triton import kernels as fused_gpu
from elc_bert.kernels.triton.kernels import TritonKernels, combine, inner_products

PLAIN, FUSED = Kernels(), TritonKernels()
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "cpu"], ids=["gpu", "interpreted"])
def device(request, monkeypatch) -> str:
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("the kernels run on this machine's GPU, not in the interpreter")
        # The interpreter is fastest with few large tiles.
        monkeypatch.setattr(attention_gpu, "COLUMNS_WIDE", attention_gpu.COLUMNS)
    return request.param


def attention_inputs(length: int, size: int, buckets: int, batch: int = 2) -> list[Tensor]:
    """Return queries and keys in one tensor, values, and the queries and keys of relative positions."""
    torch.manual_seed(length)
    shapes = [(batch, length, 4, size), (batch, length, 2, size), *[(2 * buckets - 1, 2, size)] * 2]
    # Exact in bf16, so that only the arithmetic differs.
    return [torch.randn(shape).bfloat16().float() for shape in shapes]


def attention(
    kernels: Kernels, device: str, buckets: int, mask: Tensor, dropout: float = 0.0, seed: int = 0
) -> Callable[..., Tensor]:
    """Return attention as a function of queries and keys in one tensor, as in the model, and the others."""
    table = distance_buckets(mask.shape[1], buckets, 64, torch.device(device))

    def run(qk: Tensor, *others: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return kernels.attention(
            AttentionInputs(*qk.chunk(2, dim=2), *others, table, mask.to(device), dropout)
        )

    return run


MASKS: dict[str, Callable[[int], Tensor]] = {
    "full": lambda t: torch.ones(2, t, dtype=torch.bool),
    "padded": lambda t: torch.arange(t) < torch.tensor([[t], [t // 2 + 1]]),
    "one row empty": lambda t: (torch.arange(t) % 5 != 1) & torch.tensor([[True], [False]]),
    "packed": lambda t: torch.stack([1 + torch.arange(t) // 33, (1 + torch.arange(t) // 9).clamp(max=3)]),
    "packed and padded": lambda t: (torch.arange(t) < t - 3) * (1 + torch.arange(2 * t).view(2, t) // 20),
    "packed in no order": lambda t: torch.arange(2 * t).view(2, t) * 7 % 4,
}


@pytest.mark.parametrize(
    ("length", "size", "buckets", "mask", "dtype"),
    [
        (1, 4, 4, "full", torch.float32),
        (1, 24, 4, "full", torch.float32),
        (1, 64, 32, "full", torch.float16),
        (7, 24, 4, "padded", torch.float32),
        (33, 64, 32, "packed and padded", torch.float32),
        (65, 4, 32, "packed", torch.float32),
        (65, 24, 4, "one row empty", torch.float32),
        (65, 4, 32, "packed in no order", torch.float32),
        (33, 24, 4, "full", torch.float16),
        (65, 64, 32, "packed and padded", torch.float16),
        pytest.param(300, 64, 32, "packed and padded", torch.float32, marks=pytest.mark.gpu),
        # The interpreter multiplies the bits of bf16 matrices as if they were integers.
        pytest.param(7, 24, 4, "one row empty", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param(300, 64, 32, "packed in no order", torch.bfloat16, marks=pytest.mark.gpu),
        pytest.param(129, 128, 32, "padded", torch.float32, marks=pytest.mark.gpu),
        pytest.param(129, 128, 32, "padded", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_attention(length, size, buckets, mask, dtype, device):
    inputs = attention_inputs(length, size, buckets)
    numbers = MASKS[mask](length)
    expected = outputs_and_gradients(attention(PLAIN, "cpu", buckets, numbers), inputs)
    ours = [tensor.to(device, dtype) for tensor in inputs]
    found = outputs_and_gradients(attention(FUSED, device, buckets, numbers), ours)
    # With one token the gradients of queries and keys are 0, and only rounding errors are left of them.
    assert_alike(found, expected, dtype, TOLERANCE[dtype], floor=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
def test_attention_applies_one_dropout_mask_to_probabilities_and_gradients(device, dtype):
    """With unit vectors as values the output equals the probabilities, and so shows which were dropped."""
    length, rate = 40, 0.3
    qk, _, *positions = attention_inputs(length, length, 4)
    v = torch.eye(length)[None, :, None].expand(2, length, 2, length)
    inputs = [tensor.to(device, dtype) for tensor in (qk, v, *positions)]
    mask = MASKS["packed"](length)
    dropped = attention(FUSED, device, 4, mask, rate)
    shown, whole = dropped(*inputs).cpu(), attention(FUSED, device, 4, mask)(*inputs).cpu()
    kept = (shown != 0) | (whole == 0)
    assert kept[whole != 0].float().mean() == pytest.approx(1 - rate, abs=0.03)
    assert_close(shown, whole / (1 - rate) * kept, rtol=TOLERANCE[dtype], atol=0)
    heads = kept.unbind(2)
    assert not torch.equal(*heads), "heads differ"
    assert not torch.equal(*heads[0][:, :9, :9]), "rows differ"

    class SameDropout(Kernels):
        def dropout(self, x, probability):
            return x * kept.transpose(1, 2) / (1 - rate)

    exact = [tensor.float().cpu() for tensor in inputs]
    expected = outputs_and_gradients(attention(SameDropout(), "cpu", 4, mask, rate), exact)
    assert_alike(outputs_and_gradients(dropped, inputs), expected, dtype, TOLERANCE[dtype])


def test_the_dropout_mask_depends_on_the_seed_and_not_on_the_tile_size(device, monkeypatch):
    inputs = [tensor.to(device) for tensor in attention_inputs(33, 4, 4, batch=1)]
    mask = torch.ones(1, 33, dtype=torch.bool)
    first, other = (attention(FUSED, device, 4, mask, 0.5, seed)(*inputs) for seed in (1, 2))
    assert not torch.equal(first, other)
    monkeypatch.setattr(attention_gpu, "COLUMNS_WIDE", 16 if attention_gpu.COLUMNS_WIDE == 32 else 32)
    again = attention(FUSED, device, 4, mask, 0.5, seed=1)(*inputs)
    assert_close(first, again, rtol=1e-5, atol=1e-5)


def test_recomputed_attention_has_the_same_dropout_mask(device):
    inputs = [tensor.to(device) for tensor in attention_inputs(7, 4, 4)]
    mask = MASKS["full"](7).to(device)
    table = distance_buckets(7, 4, 64, torch.device(device))

    def run(qk, *others):
        return FUSED.attention(AttentionInputs(*qk.chunk(2, dim=2), *others, table, mask, 0.5))

    torch.manual_seed(1)
    expected = outputs_and_gradients(run, inputs)
    torch.manual_seed(1)
    found = outputs_and_gradients(lambda *x: checkpoint(run, *x, use_reentrant=False), inputs)
    assert all(map(torch.equal, found, expected))


@pytest.mark.gpu
def test_attention_is_bit_identical_between_runs():
    inputs = [tensor.to("cuda") for tensor in attention_inputs(300, 64, 32)]
    run = attention(FUSED, "cuda", 32, MASKS["packed"](300), 0.1)
    assert all(map(torch.equal, outputs_and_gradients(run, inputs), outputs_and_gradients(run, inputs)))


def test_attention_under_autocast_and_without_gradients(device):
    inputs = [tensor.to(device) for tensor in attention_inputs(7, 4, 4)]
    run = attention(FUSED, device, 4, MASKS["padded"](7))
    with torch.autocast(device, torch.float16):
        found = outputs_and_gradients(run, inputs)
    assert [tensor.dtype for tensor in found] == [torch.float16, *[torch.float32] * 4]
    expected = outputs_and_gradients(run, [tensor.half() for tensor in inputs])
    assert all(
        torch.equal(ours.float(), theirs.float()) for ours, theirs in zip(found, expected, strict=True)
    )
    with torch.no_grad():
        assert torch.equal(run(*(tensor.half() for tensor in inputs)).cpu(), expected[0])


def test_fp64_falls_back_to_the_definition(device):
    inputs = [tensor.to(device).double() for tensor in attention_inputs(7, 4, 4)]
    mask = MASKS["padded"](7)
    assert torch.equal(*(attention(kernels, device, 4, mask)(*inputs) for kernels in (FUSED, PLAIN)))


@both_types
@pytest.mark.parametrize("size", [1, 2048, 5000])
def test_weighted_sums_and_inner_products(device, size, dtype):
    torch.manual_seed(size)
    shares, gradient, *tensors = torch.randn(3), *torch.randn(4, size).to(dtype)
    tensors[1] = torch.stack([tensors[1], tensors[1]], 1)[:, 0]  # not contiguous
    ours = [tensor.to(device) for tensor in tensors]
    mixed = combine(shares.to(device), ours).cpu()
    expected = sum(share * tensor.double() for share, tensor in zip(shares, tensors, strict=True))
    assert mixed.dtype == dtype
    assert relative_error(mixed.double(), expected) <= TOLERANCE[dtype]
    products = inner_products(gradient.to(device), ours).cpu()
    assert products.dtype == torch.float32
    expected = torch.stack([gradient.double() @ tensor.double() for tensor in tensors])
    assert_close(products.double(), expected, rtol=1e-5, atol=1e-5 * size**0.5)


@both_types
def test_mixtures(device, dtype):
    torch.manual_seed(0)
    h = torch.randn(2, 5, 30).bfloat16().float()
    weights = [torch.randn(n).bfloat16().float() for n in (1, 2, 3)]

    def network(kernels, last, *weights):
        mixing = kernels.mixing()
        for layer in weights:
            last = torch.tanh(mixing.mix(last, torch.softmax(layer.float(), 0)))
        return last

    expected = outputs_and_gradients(lambda *x: network(PLAIN, *x), [h, *weights])
    ours = [tensor.to(device, dtype) for tensor in (h, *weights)]
    found = outputs_and_gradients(lambda *x: network(FUSED, *x), ours)
    assert_alike(found, expected, dtype, TOLERANCE[dtype])


@both_types
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 20), (1, 16), (7, 301)])
def test_cross_entropy(device, rows, vocabulary, smoothing, dtype, monkeypatch):
    monkeypatch.setattr(fused_gpu, "VOCABULARY_BLOCK", 128)  # a row then has several blocks
    torch.manual_seed(rows)
    logits = (4 * torch.randn(rows, vocabulary)).bfloat16().float()
    targets = torch.randint(vocabulary, (rows,))
    if rows > 2:
        targets[0] = logits[0].argmax()
        logits[1:3, [3, 205]], targets[1], targets[2] = (
            50.0,
            205,
            3,
        )  # of equal logits the first is the prediction
    expected, found = logits.clone().requires_grad_(), logits.to(device, dtype).requires_grad_()
    exact, expected_correct = PLAIN.cross_entropy(expected, targets, smoothing)
    loss, correct = FUSED.cross_entropy(found, targets.to(device), smoothing)
    assert correct.dtype == torch.int64
    assert correct == expected_correct
    assert_close(loss.cpu(), exact, rtol=1e-5, atol=1e-6)
    (loss * 0.5).backward()
    (exact * 0.5).backward()
    assert found.grad.dtype == dtype
    if rows:
        assert relative_error(found.grad.float().cpu(), expected.grad) <= TOLERANCE[dtype]


def test_a_target_outside_of_the_vocabulary_gives_nan(device):
    logits = torch.randn(2, 5, device=device)
    assert FUSED.cross_entropy(logits, torch.tensor([0, 5], device=device))[0].isnan()
