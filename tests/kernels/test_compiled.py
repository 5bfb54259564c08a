"""What torch.compile makes of the definitions, as far as it can be seen without a compiler."""

import functools

import pytest
import torch

from elc_bert.config.reader import load_config
from elc_bert.engine import build as engine
from elc_bert.kernels import Kernels
from elc_bert.kernels.compiled import METHODS, GraphCounts, compiled, left_plain
from elc_bert.model.positions import distance_buckets
from elc_bert.utils.errors import UserError
from tests.support.launching import write_config

CPU = torch.device("cpu")


def results(kernels: Kernels, batch: int) -> list[torch.Tensor]:
    """Outputs of every method that is compiled, and gradients."""
    length, heads, size, table = 16, 2, 4, 15
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, length, heads, size, generator=generator, requires_grad=True)
    positions = torch.randn(table, heads, size, generator=generator, requires_grad=True)
    mask = torch.arange(length) < torch.arange(3, batch + 3)[:, None]
    context = kernels.attention(
        x, x.roll(1, 0), x, positions, positions, distance_buckets(length, 8, 64, CPU), mask, 0.0
    )
    inner = kernels.geglu_norm(x.flatten(2), 1e-7)
    loss, correct = kernels.cross_entropy(x.flatten(0, 1).flatten(1), torch.arange(batch * length) % 8, 0.1)
    (context.sum() + inner.square().sum() + loss).backward()
    return [context, inner, loss, correct, x.grad, positions.grad]


def test_one_graph_each_for_any_batch_size_equal_to_the_definitions(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    kernels, before = compiled(Kernels()), GraphCounts.so_far()
    for batch in (3, 5):
        for mine, expected in zip(results(kernels, batch), results(Kernels(), batch), strict=True):
            torch.testing.assert_close(mine, expected)
    after = GraphCounts.so_far()
    assert after.graphs - before.graphs == len(METHODS)
    assert (after.breaks, after.recompiles) == (before.breaks, before.recompiles)


def test_fast_paths_are_left_alone():
    class Fast(Kernels):
        def geglu_norm(self, x, eps):
            return x

    assert left_plain(Fast()) == ["attention", "cross_entropy"]
    assert "geglu_norm" not in vars(compiled(Fast()))


class TestConfiguration:
    def test_a_missing_compiler_is_said_in_one_line(self, monkeypatch, tmp_path):
        def missing(*arguments, **options):
            raise RuntimeError("No working C++ compiler found\nwith a long explanation")

        monkeypatch.setattr(torch, "compile", missing)
        path = write_config(tmp_path, tmp_path, tmp_path, training={"compile": True})
        with pytest.raises(UserError) as caught:
            engine.choose_kernels(load_config(path), CPU)
        assert str(caught.value) == (
            f"{path}: elc_bert.training.compile: torch.compile does not work here (No working C++ compiler "
            "found); install a C++ compiler such as g++, or set it to false"
        )

    def test_fast_paths_cannot_be_had_on_every_device(self, tmp_path):
        path = write_config(tmp_path, tmp_path, tmp_path, training={"kernels": "fused"})
        with pytest.raises(UserError) as caught:
            engine.choose_kernels(load_config(path), torch.device("meta"))
        assert str(caught.value).startswith(f"{path}: elc_bert.training.kernels: ")
        config = load_config(path, ["elc_bert.training.kernels=auto"])
        assert type(engine.choose_kernels(config, torch.device("meta"))) is Kernels
