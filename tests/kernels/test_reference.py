"""The plain definitions, and the choice between them and fast paths."""

import sys

import pytest
import torch

from elc_bert.kernels import AttentionInputs, Kernels, kernels_for
from elc_bert.kernels.cpu import extension
from elc_bert.kernels.cpu import library as cpu_library
from elc_bert.kernels.reference import expand_to_pairs, visibility_mask
from elc_bert.model.positions import distance_buckets
from elc_bert.utils.errors import UserError


def test_tokens_attend_to_their_segment_and_nothing_attends_to_padding():
    (mask,) = visibility_mask(torch.tensor([[1, 1, 2, 0]]))[0].int().tolist()
    assert mask == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 0]]


def test_entries_by_distance_are_expanded_to_pairs():
    assert expand_to_pairs(torch.tensor([-2, -1, 0, 1, 2])).tolist() == [[0, -1, -2], [1, 0, -1], [2, 1, 0]]


def test_gradients_of_attention_match_finite_differences():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    positions = [torch.randn(7, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    buckets = distance_buckets(5, 4, 16, torch.device("cpu"))
    mask = torch.tensor([[1, 1, 2, 2, 0], [0, 0, 0, 0, 0]])

    def attention(*tensors):
        return Kernels().attention(AttentionInputs(*tensors, buckets, mask))

    assert torch.autograd.gradcheck(attention, (q, k, v, *positions))


def test_gradients_of_geglu_match_finite_differences():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: Kernels().geglu_norm(x, 1e-7), x)


def test_gradients_of_mixing_match_finite_differences():
    def last_mixture(*hidden):
        mixing = Kernels().mixing()
        for number, h in enumerate(hidden[:-1], start=1):
            mixed = mixing.mix(h, torch.softmax(hidden[-1][:number], 0))
        return mixed

    tensors = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    assert torch.autograd.gradcheck(last_mixture, tuple(tensors))


@pytest.mark.parametrize("choice", ["auto", "plain"])
def test_devices_without_fast_paths_use_the_definitions(choice):
    assert type(kernels_for("meta", choice)) is Kernels
    assert type(kernels_for("cpu", "plain")) is Kernels


def test_gpu_kernels_without_triton_are_an_error(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("elc_bert.kernels.triton.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    kernels_for.cache_clear()
    with pytest.raises(UserError, match=r"^elc_bert\.training\.kernels: .*triton"):
        kernels_for("cuda", "fused")
    assert type(kernels_for("cuda", "auto")) is Kernels
    kernels_for.cache_clear()


def test_a_cpu_computes_with_its_own_kernels_whether_or_not_triton_is_installed():
    pytest.importorskip("triton")
    assert type(kernels_for("cpu", "fused")).__name__ == "CpuKernels"
    assert type(kernels_for("cpu", "auto")).__name__ == "CpuKernels"
    assert type(kernels_for("cuda", "fused")).__name__ == "TritonKernels"


def test_insisting_on_missing_fast_paths_is_an_error(monkeypatch):
    with pytest.raises(UserError, match=r"^elc_bert\.training\.kernels: .*\bmeta\b"):
        kernels_for("meta", "fused")
    kernels_for.cache_clear()
    cpu_library.library.cache_clear()
    monkeypatch.setattr(extension, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^elc_bert\.training\.kernels: .*no C compiler"):
        kernels_for("cpu", "fused")
    assert type(kernels_for("cpu", "auto")) is Kernels
    kernels_for.cache_clear()
