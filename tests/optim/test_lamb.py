"""LAMB against the reference's figures; under ZeRO it is tested through the launcher in training/."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elc_bert.optim import Lamb

GOLDEN = Path(__file__).parents[1] / "golden" / "lamb.safetensors"


@pytest.fixture
def golden():
    return load_file(GOLDEN)


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


def test_goes_on_from_its_state(golden):
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


def test_allocating_neither_moves_nor_counts(golden):
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


def test_a_zero_parameter_or_update_has_trust_ratio_one():
    p = torch.nn.Parameter(torch.zeros(3, 3))
    lamb = Lamb([p], lr=0.5, weight_decay=0.1)
    p.grad = torch.ones(3, 3)
    lamb.step()
    torch.testing.assert_close(p.detach(), torch.full((3, 3), -0.5), rtol=0, atol=1e-5)

    q = torch.nn.Parameter(torch.ones(2, 2))
    lamb = Lamb([{"params": [q], "weight_decay": 1e-30}], lr=0.5)
    q.grad = torch.zeros(2, 2)
    lamb.step()
    assert torch.isfinite(q).all()


def test_parameters_without_gradient_stay(golden):
    parameters, lamb = build(golden)
    parameters[0].grad = golden["grad.0.0"]
    lamb.step()
    assert (parameters[0] - golden["after.0.0"]).abs().max() <= 1e-6
    assert all(torch.equal(p, golden[f"init.{i}"]) for i, p in enumerate(parameters) if i > 0)
