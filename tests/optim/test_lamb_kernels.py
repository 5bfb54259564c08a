"""All kernels of LAMB agree with the plain definition, however ZeRO partitions the tensors."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from elc_bert.kernels.cpu import extension
from elc_bert.optim import lamb_cpu
from elc_bert.optim.dispatch import choose_lamb_kernels, fused_lamb_kernels
from elc_bert.optim.fragments import FlatParameter, Fragment
from elc_bert.optim.lamb_reference import LambKernels, ReferenceLamb
from elc_bert.utils.errors import UserError
from tests.optim.lamb_kernels import ALL_KINDS, FUSED_KINDS, kernels_of

SIZES = st.integers(1, 40) | st.sampled_from([4096, 8192]) | st.integers(30_000, 70_000)


@dataclass(frozen=True)
class Partitioning:
    """A group's tensors, concatenated and divided into one flat parameter per rank."""

    sizes: list[int]
    bounds: list[int]
    """Boundaries of the ranks' partitions."""
    padding: int
    """Number of elements before the first fragment of a partition, so that fragments start unaligned."""
    decay: float
    zeros: bool
    """The first tensor is zero and has no gradient."""

    def fragments(self, rank: int) -> tuple[Fragment, ...]:
        low, high = self.bounds[rank : rank + 2]
        found, first = [], 0
        for number, size in enumerate(self.sizes):
            start, end = max(low, first), min(high, first + size)
            if start < end:
                found.append(Fragment(number, self.padding + start - low, end - start))
            first += size
        return tuple(found)


@st.composite
def partitionings(draw: Callable) -> Partitioning:
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    inner = draw(st.lists(st.integers(0, sum(sizes)), max_size=3))
    bounds = [0, *sorted(inner), sum(sizes)]
    return Partitioning(
        sizes, bounds, draw(st.integers(0, 5)), draw(st.sampled_from([0.0, 0.01, 0.1])), draw(st.booleans())
    )


class Group:
    """Parameters of a group with gradients and moments, as whole tensors or as the ranks' partitions."""

    def __init__(self, partitioning: Partitioning, device: str, dtype: torch.dtype = torch.float32):
        self.partitioning, self.device, self.dtype = partitioning, device, dtype
        self.options = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": partitioning.decay}
        draw = torch.Generator().manual_seed(len(partitioning.sizes))
        self.values = [torch.randn(sum(partitioning.sizes), generator=draw) for _ in range(4)]
        self.values[3].square_().add_(0.01)  # the second moment
        if partitioning.zeros:
            for values in self.values:
                values[: partitioning.sizes[0]] = 0

    def whole(self) -> list[FlatParameter]:
        fragments = zip(*(values.split(self.partitioning.sizes) for values in self.values), strict=True)
        return [self._flat(tensors, 1, (Fragment(0, 0, tensors[0].numel()),)) for tensors in fragments]

    def partition(self, rank: int) -> FlatParameter:
        low, high = self.partitioning.bounds[rank : rank + 2]
        padded = [
            torch.cat(
                [torch.full((self.partitioning.padding,), 7.0), values[low:high], torch.full((3,), 7.0)]
            )
            for values in self.values
        ]
        return self._flat(padded, len(self.partitioning.sizes), self.partitioning.fragments(rank))

    def _flat(
        self, tensors: Sequence[Tensor], num_tensors: int, fragments: tuple[Fragment, ...]
    ) -> FlatParameter:
        p, grad, moment1, moment2 = (tensor.to(self.device, self.dtype, copy=True) for tensor in tensors)
        p.grad = grad
        state = {"step": torch.tensor(3.0), "exp_avg": moment1, "exp_avg_sq": moment2}
        return FlatParameter(p, state, self.options, num_tensors, fragments)


def take_step(kernels: LambKernels, ranks: Sequence[Sequence[FlatParameter]]) -> Tensor:
    """Take a step of all ranks with their flat parameters; return the sums of squares over the ranks."""
    if any(flat.weight_decay == 0 for flats in ranks for flat in flats):
        return sum(kernels.update_moments_and_step(flats).cpu() for flats in ranks)
    parts = [kernels.update_moments(flats) for flats in ranks]
    assert all(part.is_contiguous() for part in parts), "NCCL requires contiguous tensors"
    squares = torch.stack(parts).sum(0)
    weights, updates = squares.sqrt().unbind(1)
    ratios = torch.where((weights > 0) & (updates > 0), weights / updates, 1.0)
    for flats in ranks:
        kernels.step(flats, ratios)
    return squares.cpu()


def contents(flats: Sequence[FlatParameter]) -> list[Tensor]:
    """Return weights, gradients and both moments, concatenated without the padding."""
    pieces = [
        [tensor[f.start : f.start + f.length].cpu() for tensor in flat.tensors]
        for flat in flats
        for f in flat.fragments
    ]
    return [torch.cat(column) for column in zip(*pieces, strict=True)]


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=40, deadline=None)
@given(partitioning=partitionings())
def test_steps_on_fragments_agree_with_steps_on_whole_tensors_in_fp64(kind, partitioning):
    kernels, device = kernels_of(kind)
    whole = Group(partitioning, "cpu", torch.float64).whole()
    expected = take_step(ReferenceLamb(), [whole])
    flats = [Group(partitioning, device).partition(rank) for rank in range(len(partitioning.bounds) - 1)]
    squares = take_step(kernels, [[flat] for flat in flats])
    # The absolute tolerance is for tensors of few elements, in which decay can cancel Adam's update.
    assert_close(squares.sqrt(), expected.sqrt(), rtol=2e-6, atol=1e-6)
    for ours, exact in zip(contents(flats), contents(whole), strict=True):
        # Steps have a norm of about 4, and fp32 has 7 digits.
        assert_close(ours.double(), exact, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("kind", FUSED_KINDS)
def test_accepts_groups_with_different_options_in_one_call(kind):
    kernels, device = kernels_of(kind)
    options = [Partitioning([5000, 3, 9000], [0, 14003], 1, decay, zeros=False) for decay in (0.1, 0.0, 0.01)]
    ours, theirs = ([Group(partitioning, device).partition(0) for partitioning in options] for _ in range(2))
    expected = ReferenceLamb().update_moments_and_step(theirs)
    assert_close(kernels.update_moments_and_step(ours), expected, rtol=2e-6, atol=0)
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        assert_close(a, b, rtol=2e-6, atol=2e-6)
    assert kernels.update_moments([]).shape == (0, 2)


@given(partitioning=partitionings(), threads=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_bit_identical_for_any_number_of_threads(partitioning, threads):
    kernels, _ = kernels_of("cpu")
    before = torch.get_num_threads()
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            flats = Group(partitioning, "cpu").whole()
            results.append([take_step(kernels, [flats]), *contents(flats)])
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def flat_parameters(p: Tensor) -> list[FlatParameter]:
    p.grad = torch.zeros_like(p)
    state = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return [FlatParameter(p, state, {}, 1, (Fragment(0, 0, p.numel()),))]


@pytest.mark.parametrize(
    ("p", "reason"),
    [
        (torch.zeros(2, 2, dtype=torch.float64), "contiguous fp32"),
        (torch.zeros(2, 3).T, "contiguous fp32"),
        (torch.zeros(2, device="meta"), "on meta"),
    ],
)
def test_the_error_gives_the_reason_why_kernels_cannot_be_used(p, reason):
    with pytest.raises(UserError, match=rf"^optimizer\.params\.fused: .*{reason}"):
        choose_lamb_kernels(flat_parameters(p), fused=True)
    assert isinstance(choose_lamb_kernels(flat_parameters(p), fused=None), ReferenceLamb)


def test_gpu_kernels_without_triton_are_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "elc_bert.optim.lamb_triton", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(UserError, match=r"^optimizer\.params\.fused: .*triton"):
        fused_lamb_kernels("cuda")


def test_a_cpu_takes_its_own_kernels_whether_or_not_triton_is_installed():
    kernels_of("cpu")  # skips the test without a C compiler
    assert type(fused_lamb_kernels("cpu")).__name__ == "CpuLambKernels"
    chosen = choose_lamb_kernels(flat_parameters(torch.zeros(2)), fused=None)
    assert type(chosen).__name__ == "CpuLambKernels"


def test_kernels_that_were_not_built(monkeypatch):
    monkeypatch.setattr(extension, "find_spec", lambda name: None)
    lamb_cpu._library.cache_clear()
    with pytest.raises(UserError, match=r"^optimizer\.params\.fused: .*no C compiler"):
        choose_lamb_kernels(flat_parameters(torch.zeros(2)), fused=True)
    assert isinstance(choose_lamb_kernels(flat_parameters(torch.zeros(2)), fused=None), ReferenceLamb)


def test_the_definition_can_be_requested():
    assert isinstance(choose_lamb_kernels(flat_parameters(torch.zeros(2)), fused=False), ReferenceLamb)
