"""Matrix products by OpenBLAS agree with PyTorch's own, on any processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elc_bert.kernels.cpu import products as cpu_products
from elc_bert.kernels.cpu.products import linear, multiply

sizes = st.integers(1, 300)


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    monkeypatch.setattr(cpu_products, "_is_amd", lambda: True)
    cpu_products.sgemm_address.cache_clear()
    yield
    cpu_products.sgemm_address.cache_clear()


def stored(shape: tuple[int, ...], transposed: bool, padding: int) -> torch.Tensor:
    """Return a random matrix, optionally stored transposed and as part of a wider one."""
    *leading, rows, columns = shape
    if transposed:
        return stored((*leading, columns, rows), False, padding).mT
    return torch.randn(*leading, rows, columns + padding)[..., :columns]


@settings(max_examples=60, deadline=None)
@given(
    sizes, sizes, sizes, st.sampled_from([(), (3,), (2, 5)]), st.booleans(), st.booleans(), st.integers(0, 3)
)
def test_any_shape_and_layout(m, n, k, leading, a_transposed, b_transposed, padding):
    assert cpu_products.sgemm_address() is not None
    a, b = stored((*leading, m, k), a_transposed, padding), stored((*leading, k, n), b_transposed, padding)
    bias = torch.randn(n)
    buffer = torch.full((*leading, m, n + padding), 7.0)

    torch.testing.assert_close(multiply(a, b, bias=bias), a @ b + bias, rtol=1e-5, atol=1e-4)
    multiply(a, b, out=buffer[..., :n])

    torch.testing.assert_close(buffer[..., :n], a @ b, rtol=1e-5, atol=1e-4)
    assert (buffer[..., n:] == 7.0).all()


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (3, 4, 0)])
def test_empty_matrices(shape):
    m, n, k = shape
    assert torch.equal(multiply(torch.ones(m, k), torch.ones(k, n)), torch.zeros(m, n))


def test_expanded_matrices():
    ones = torch.ones(()).expand(300, 40)
    assert torch.equal(multiply(ones, torch.ones(40, 5)), torch.full((300, 5), 40.0))
    row = torch.arange(40.0).expand(300, 40)
    assert torch.equal(multiply(row, torch.ones(40, 5)), torch.full((300, 5), 780.0))


def test_bit_identical_for_any_number_of_threads():
    a, b, threads = torch.randn(700, 384), torch.randn(384, 333), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = multiply(a, b)
        torch.set_num_threads(3)
        assert torch.equal(multiply(a, b), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(bias):
    torch.manual_seed(0)
    inputs = [torch.randn(shape, requires_grad=True) for shape in ((2, 130, 96), (33, 96), (33,))][: 2 + bias]
    weights = torch.randn(2, 130, 33)
    found, expected = linear(*inputs), torch.nn.functional.linear(*inputs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)


def test_fall_back_to_pytorch_on_other_processors_and_without_openblas(monkeypatch):
    a, b = torch.randn(50, 30), torch.randn(30, 20)
    for name, value in (("_is_amd", lambda: False), ("_is_amd", lambda: True)):
        monkeypatch.setattr(cpu_products, name, value)
        monkeypatch.setitem(__import__("sys").modules, "scipy_openblas32", None)
        cpu_products.sgemm_address.cache_clear()
        assert cpu_products.sgemm_address() is None
        assert torch.equal(multiply(a, b), a @ b)
