"""Compilation of the definitions with torch.compile, as far as it can be tested without a compiler."""

import functools

import pytest
import torch

from elc_bert.config.reader import load_config
from elc_bert.engine import build as engine
from elc_bert.kernels import AttentionInputs, Kernels
from elc_bert.kernels.compiled import METHODS, GraphCounts, compile_kernels, methods_without_fast_path
from elc_bert.model.positions import distance_buckets
from elc_bert.utils.errors import UserError
from tests.support.launching import write_config

CPU = torch.device("cpu")


def results(kernels: Kernels, batch: int) -> list[torch.Tensor]:
    """Return the outputs of every method that is compiled, and gradients."""
    length, heads, size, table = 16, 2, 4, 15
    generator = torch.Generator().manual_seed(batch)
    x = torch.randn(batch, length, heads, size, generator=generator, requires_grad=True)
    positions = torch.randn(table, heads, size, generator=generator, requires_grad=True)
    mask = torch.arange(length) < torch.arange(3, batch + 3)[:, None]
    buckets = distance_buckets(length, 8, 64, CPU)
    context = kernels.attention(AttentionInputs(x, x.roll(1, 0), x, positions, positions, buckets, mask))
    inner = kernels.geglu_norm(x.flatten(2), 1e-7)
    loss, correct = kernels.cross_entropy(x.flatten(0, 1).flatten(1), torch.arange(batch * length) % 8, 0.1)
    (context.sum() + inner.square().sum() + loss).backward()
    return [context, inner, loss, correct, x.grad, positions.grad]


def test_each_method_compiles_to_one_graph_for_any_batch_size_and_matches_its_definition(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    kernels, before = compile_kernels(Kernels()), GraphCounts.so_far()
    for batch in (3, 5):
        for found, expected in zip(results(kernels, batch), results(Kernels(), batch), strict=True):
            torch.testing.assert_close(found, expected)
    after = GraphCounts.so_far()
    assert after.graphs - before.graphs == len(METHODS)
    assert (after.breaks, after.recompiles) == (before.breaks, before.recompiles)


def test_fast_paths_are_not_compiled():
    class Fast(Kernels):
        def geglu_norm(self, x, eps):
            return x

    assert methods_without_fast_path(Fast()) == ["attention", "cross_entropy"]
    assert "geglu_norm" not in vars(compile_kernels(Fast()))


class TestConfiguration:
    def test_a_missing_compiler_is_reported_in_one_line(self, monkeypatch, tmp_path):
        def missing(*arguments, **options):
            raise RuntimeError("No working C++ compiler found\nwith a long explanation")

        monkeypatch.setattr(torch, "compile", missing)
        path = write_config(tmp_path, tmp_path, tmp_path, training={"compile": True})
        with pytest.raises(UserError) as caught:
            engine.choose_kernels(load_config(path), CPU)
        message = str(caught.value)
        assert message.startswith(f"{path}: elc_bert.training.compile: ")
        assert "No working C++ compiler found" in message
        assert "\n" not in message

    def test_insisting_on_fast_paths_is_an_error_on_a_device_without_any(self, tmp_path):
        path = write_config(tmp_path, tmp_path, tmp_path, training={"kernels": "fused"})
        with pytest.raises(UserError) as caught:
            engine.choose_kernels(load_config(path), torch.device("meta"))
        assert str(caught.value).startswith(f"{path}: elc_bert.training.kernels: ")
        config = load_config(path, ["elc_bert.training.kernels=auto"])
        assert type(engine.choose_kernels(config, torch.device("meta"))) is Kernels
