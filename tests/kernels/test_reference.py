"""The definitions themselves."""

from importlib.util import find_spec

import pytest
import torch

from elc_bert.kernels import Kernels, kernels_for
from elc_bert.kernels.cpu import library as cpu_library
from elc_bert.kernels.reference import by_pair, visible
from elc_bert.model.positions import distance_buckets
from elc_bert.utils.errors import UserError


def test_tokens_see_those_of_their_sequence_and_padding_is_seen_by_none():
    (mask,) = visible(torch.tensor([[1, 1, 2, 0]]))[0].int().tolist()
    assert mask == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]


def test_an_entry_for_every_pair_is_that_of_its_distance():
    assert by_pair(torch.tensor([-2, -1, 0, 1, 2])).tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]


def test_gradients_of_the_attention_are_its_slopes():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    positions = [torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    buckets = distance_buckets(5, 4, 16, torch.device("cpu"))
    mask = torch.tensor([[1, 1, 2, 2, 0], [0, 0, 0, 0, 0]])

    def attention(*tensors):
        return Kernels().attention(*tensors, buckets, mask, 0.0)

    assert torch.autograd.gradcheck(attention, (q, k, v, *positions))


def test_gradients_of_the_geglu_are_its_slopes():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Kernels().geglu_norm(x, 1e-7), x)


def test_gradients_of_the_mixture_are_its_slopes():
    def last_mixture(*hidden):
        mixing = Kernels().mixing()
        for number, h in enumerate(hidden[:-1], start=1):
            mixed = mixing.mix(h, torch.softmax(hidden[-1][:number], 0))
        return mixed

    tensors = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(last_mixture, tuple(tensors))


@pytest.mark.parametrize("choice", ["auto", "plain"])
def test_definitions_where_there_is_nothing_else(choice):
    assert type(kernels_for("meta", choice)) is Kernels
    assert type(kernels_for("cpu", "plain")) is Kernels


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is here")
def test_gpu_kernels_without_triton_are_an_error():
    with pytest.raises(UserError, match="need the package triton"):
        kernels_for("cuda", "fused")
    assert type(kernels_for("cuda", "auto")) is Kernels


def test_fast_paths_that_are_insisted_on_but_missing_are_an_error(monkeypatch):
    with pytest.raises(UserError, match=r"^elc_bert\.training\.kernels: .* type meta: set it to auto"):
        kernels_for("meta", "fused")
    kernels_for.cache_clear()
    cpu_library.library.cache_clear()
    monkeypatch.setattr(cpu_library, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="no C compiler"):
        kernels_for("cpu", "fused")
    assert type(kernels_for("cpu", "auto")) is Kernels
    kernels_for.cache_clear()
