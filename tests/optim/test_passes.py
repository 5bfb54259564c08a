"""Every kind of passes does what the plain definition does, however ZeRO cuts the tensors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from elc_bert.optim import lamb_cpu as fused_cpu
from elc_bert.optim.passes import Flat, Fragment, Passes, PlainPasses, choose_passes
from elc_bert.utils.errors import UserError
from tests.optim.kinds import ALL_KINDS, KERNELS, passes_of

SIZES = st.integers(1, 40) | st.sampled_from([4096, 8192]) | st.integers(30_000, 70_000)


@dataclass(frozen=True)
class Cut:
    """A group's tensors, laid end to end and cut into one flat per rank."""

    sizes: list[int]
    bounds: list[int]
    """Where the ranks' shares begin and end."""
    padding: int
    """Elements before the first fragment of each flat; in fp32, whose starts are then unaligned."""
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
def cuts(draw: Callable) -> Cut:
    sizes = draw(st.lists(SIZES, min_size=1, max_size=4))
    inner = draw(st.lists(st.integers(0, sum(sizes)), max_size=3))
    bounds = [0, *sorted(inner), sum(sizes)]
    return Cut(
        sizes, bounds, draw(st.integers(0, 5)), draw(st.sampled_from([0.0, 0.01, 0.1])), draw(st.booleans())
    )


class Group:
    """Parameters of a group with gradients and moments, whole or cut into the ranks' flats."""

    def __init__(self, cut: Cut, device: str, dtype: torch.dtype = torch.float32):
        self.cut, self.device, self.dtype = cut, device, dtype
        self.options = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": cut.decay}
        draw = torch.Generator().manual_seed(len(cut.sizes))
        self.values = [torch.randn(sum(cut.sizes), generator=draw) for _ in range(4)]
        self.values[3].square_().add_(0.01)  # the second moment
        if cut.zeros:
            for values in self.values:
                values[: cut.sizes[0]] = 0

    def whole(self) -> list[Flat]:
        fragments = zip(*(values.split(self.cut.sizes) for values in self.values), strict=True)
        return [self._flat(tensors, 1, (Fragment(0, 0, tensors[0].numel()),)) for tensors in fragments]

    def of_rank(self, rank: int) -> Flat:
        low, high = self.cut.bounds[rank : rank + 2]
        padded = [
            torch.cat([torch.full((self.cut.padding,), 7.0), values[low:high], torch.full((3,), 7.0)])
            for values in self.values
        ]
        return self._flat(padded, len(self.cut.sizes), self.cut.fragments(rank))

    def _flat(self, tensors: Sequence[Tensor], num_tensors: int, fragments: tuple[Fragment, ...]) -> Flat:
        p, grad, moment1, moment2 = (tensor.to(self.device, self.dtype, copy=True) for tensor in tensors)
        p.grad = grad
        state = {"step": torch.tensor(3.0), "exp_avg": moment1, "exp_avg_sq": moment2}
        return Flat(p, state, self.options, num_tensors, fragments)


def take_step(passes: Passes, ranks: Sequence[Sequence[Flat]]) -> Tensor:
    """A step of all ranks, each with some flats; the sums of squares over the ranks."""
    if any(flat.weight_decay == 0 for flats in ranks for flat in flats):
        return sum(passes.update_moments_and_step(flats).cpu() for flats in ranks)
    parts = [passes.update_moments(flats) for flats in ranks]
    assert all(part.is_contiguous() for part in parts), "or NCCL could not all-reduce them"
    squares = torch.stack(parts).sum(0)
    weights, updates = squares.sqrt().unbind(1)
    ratios = torch.where((weights > 0) & (updates > 0), weights / updates, 1.0)
    for flats in ranks:
        passes.step(flats, ratios)
    return squares.cpu()


def contents(flats: Sequence[Flat]) -> list[Tensor]:
    """Weights, gradients and both moments, without the padding, end to end."""
    pieces = [
        [tensor[f.start : f.start + f.length].cpu() for tensor in flat.tensors]
        for flat in flats
        for f in flat.fragments
    ]
    return [torch.cat(column) for column in zip(*pieces, strict=True)]


@pytest.mark.parametrize("kind", ALL_KINDS)
@settings(max_examples=40, deadline=None)
@given(cut=cuts())
def test_steps_on_fragments_are_those_on_whole_tensors_in_double_precision(kind, cut):
    passes, device = passes_of(kind)
    whole = Group(cut, "cpu", torch.float64).whole()
    expected = take_step(PlainPasses(), [whole])
    flats = [Group(cut, device).of_rank(rank) for rank in range(len(cut.bounds) - 1)]
    squares = take_step(passes, [[flat] for flat in flats])
    # Absolutely as well: in a tensor of few elements decay can happen to cancel Adam's update.
    assert_close(squares.sqrt(), expected.sqrt(), rtol=2e-6, atol=1e-6)
    for ours, exact in zip(contents(flats), contents(whole), strict=True):
        # Steps are of length 4 or so, and single precision has 7 digits.
        assert_close(ours.double(), exact, rtol=2e-6, atol=5e-6)


@pytest.mark.parametrize("kind", KERNELS)
def test_takes_groups_that_differ_in_one_call(kind):
    passes, device = passes_of(kind)
    options = [Cut([5000, 3, 9000], [0, 14003], 1, decay, zeros=False) for decay in (0.1, 0.0, 0.01)]
    ours, theirs = ([Group(cut, device).of_rank(0) for cut in options] for _ in range(2))
    expected = PlainPasses().update_moments_and_step(theirs)
    assert_close(passes.update_moments_and_step(ours), expected, rtol=2e-6, atol=0)
    for a, b in zip(contents(ours), contents(theirs), strict=True):
        assert_close(a, b, rtol=2e-6, atol=2e-6)
    assert passes.update_moments([]).shape == (0, 2)


@given(cut=cuts(), threads=st.integers(2, 5))
@settings(max_examples=25, deadline=None)
def test_the_number_of_threads_changes_no_bit(cut, threads):
    passes, _ = passes_of("cpu")
    before = torch.get_num_threads()
    results = []
    for number in (1, threads):
        torch.set_num_threads(number)
        try:
            flats = Group(cut, "cpu").whole()
            results.append([take_step(passes, [flats]), *contents(flats)])
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, *results))


def flats_of(p: Tensor) -> list[Flat]:
    p.grad = torch.zeros_like(p)
    state = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
    return [Flat(p, state, {}, 1, (Fragment(0, 0, p.numel()),))]


@pytest.mark.parametrize(
    ("p", "reason"),
    [
        (torch.zeros(2, 2, dtype=torch.float64), "contiguous fp32"),
        (torch.zeros(2, 3).T, "contiguous fp32"),
        (torch.zeros(2, device="meta"), "no kernels for parameters and gradients on meta"),
    ],
)
def test_says_why_there_are_no_kernels(p, reason):
    with pytest.raises(UserError, match=rf"^optimizer\.params\.fused: .*{reason}.*: set it to false$"):
        choose_passes(flats_of(p), fused=True)
    assert isinstance(choose_passes(flats_of(p), fused=None), PlainPasses)


def test_says_that_the_kernels_were_not_built(monkeypatch):
    monkeypatch.setattr(fused_cpu, "find_spec", lambda name: None)
    fused_cpu._library.cache_clear()
    with pytest.raises(UserError, match="no C compiler"):
        choose_passes(flats_of(torch.zeros(2)), fused=True)
    assert isinstance(choose_passes(flats_of(torch.zeros(2)), fused=None), PlainPasses)


def test_the_definition_on_request():
    assert isinstance(choose_passes(flats_of(torch.zeros(2)), fused=False), PlainPasses)
