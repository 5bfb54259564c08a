"""LAMB agrees with golden values of the reference; tests/engine and tests/training cover ZeRO."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elc_bert.optim import Lamb
from elc_bert.optim.fragments import Fragment
from elc_bert.optim.lamb import Partition
from tests.optim.lamb_kernels import ALL_KINDS, kernels_of

GOLDEN = Path(__file__).parents[1] / "golden" / "lamb.safetensors"


@pytest.fixture(params=ALL_KINDS)
def device(request, monkeypatch):
    """Device of the parameters; LAMB uses each kind of kernels in turn."""
    kernels, device = kernels_of(request.param)
    monkeypatch.setattr("elc_bert.optim.lamb.choose_lamb_kernels", lambda flats, fused: kernels)
    return device


@pytest.fixture
def golden(device):
    return load_file(GOLDEN, device=device)


def build(golden, **options):
    parameters = [torch.nn.Parameter(golden[f"init.{i}"].clone()) for i in range(5)]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return parameters, Lamb(groups, lr=0.01, **options)


def test_matches_the_reference(golden):
    parameters, lamb = build(golden)
    for step in range(6):
        for i, p in enumerate(parameters):
            p.grad = golden[f"grad.{step}.{i}"]
        lamb.step()
        for i, p in enumerate(parameters):
            assert (p - golden[f"after.{step}.{i}"]).abs().max() <= 1e-6


def test_resumes_from_its_state(golden):
    parameters, lamb = build(golden)
    for step in range(6):
        if step == 3:
            others, resumed = build(golden)
            for p, other in zip(parameters, others, strict=True):
                other.data.copy_(p)
            resumed.load_state_dict(lamb.state_dict())
            parameters, lamb = others, resumed
        for i, p in enumerate(parameters):
            p.grad = golden[f"grad.{step}.{i}"]
        lamb.step()
    assert all((p - golden[f"after.5.{i}"]).abs().max() <= 1e-6 for i, p in enumerate(parameters))


def test_allocating_changes_neither_parameters_nor_step_counts(golden):
    parameters, lamb = build(golden)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    with lamb.allocating():
        lamb.step()
    assert all(torch.equal(p, golden[f"init.{i}"]) for i, p in enumerate(parameters))
    assert all(state["step"] == 0 for state in lamb.state.values())
    for i, p in enumerate(parameters):
        p.grad = golden[f"grad.0.{i}"]
    lamb.step()
    assert all((p - golden[f"after.0.{i}"]).abs().max() <= 1e-6 for i, p in enumerate(parameters))


def test_a_zero_parameter_or_update_has_trust_ratio_one(device):
    p = torch.nn.Parameter(torch.zeros(3, 3, device=device))
    lamb = Lamb([p], lr=0.5, weight_decay=0.1)
    p.grad = torch.ones_like(p)
    lamb.step()
    torch.testing.assert_close(p.detach().cpu(), torch.full((3, 3), -0.5), rtol=0, atol=1e-5)

    q = torch.nn.Parameter(torch.ones(2, 2, device=device))
    lamb = Lamb([{"params": [q], "weight_decay": 1e-30}], lr=0.5)
    q.grad = torch.zeros_like(q)
    lamb.step()
    assert torch.isfinite(q).all()


def test_parameters_without_gradient_do_not_change(golden):
    parameters, lamb = build(golden)
    parameters[0].grad = golden["grad.0.0"]
    lamb.step()
    assert (parameters[0] - golden["after.0.0"]).abs().max() <= 1e-6
    assert all(torch.equal(p, golden[f"init.{i}"]) for i, p in enumerate(parameters) if i > 0)


def test_partitions_and_buffers_may_change_between_steps(device):
    """The division into tensors and the addresses of gradients and moments are not cached across steps."""
    p = torch.nn.Parameter(torch.linspace(1, 2, 6, device=device))
    lamb = Lamb([p], lr=0.1, weight_decay=0.1)
    for lengths in [(6,), (2, 4), (1, 2, 3)]:
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        fragments = tuple(map(Fragment, range(len(lengths)), starts, lengths))
        lamb.shard({p: Partition(tuple(map(str, fragments)), fragments)})
        p.grad = torch.linspace(-1, 1, 6, device=device)
        before = p.detach().clone()
        lamb.step()
        moved = (before - p.detach()).split(lengths)
        for part, step, norms in zip(before.split(lengths), moved, lamb.norms().values(), strict=True):
            assert norms.weight == pytest.approx(part.norm().item(), rel=1e-6)
            assert step.norm().item() == pytest.approx(0.1 * norms.weight, rel=1e-5)
        lamb.load_state_dict(lamb.state_dict())
        p.data = p.data.clone()
