"""Norms and trust ratios that are logged are those of the step."""

import pytest
import torch

from elc_bert.optim.lamb import Lamb

CONSTANT = {"betas": (0.9, 0.98), "eps": 0.0}
"""Adam's first step is then the sign of the gradient."""


@pytest.mark.parametrize("fused", [False, None])
def test_norms_of_a_group_with_and_of_one_without_decay(fused):
    decaying = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    other = torch.nn.Parameter(torch.tensor([6.0, 8.0, 0.0, 0.0]))
    zero = torch.nn.Parameter(torch.zeros(4))
    groups = [
        {"params": [decaying], "weight_decay": 0.5},
        {"params": [other, zero], "weight_decay": 0.0, "lr": 0.2},
    ]
    lamb = Lamb(groups, lr=0.1, fused=fused, **CONSTANT)
    for parameter in (decaying, other, zero):
        parameter.grad = torch.full_like(parameter, 2.0)
    lamb.step()
    first, second, third = lamb.norms().values()

    update = torch.tensor([1.0 + 0.5 * 3.0, 1.0 + 0.5 * 4.0])
    norm = update.norm().item()
    assert first.weight == pytest.approx(5.0)
    assert first.update == pytest.approx(norm, rel=1e-5)
    assert first.trust_ratio == pytest.approx(5.0 / norm, rel=1e-5)
    assert first.learning_rate == 0.1
    assert first.update_to_weight == pytest.approx(0.1, rel=1e-5)
    torch.testing.assert_close(decaying.detach(), torch.tensor([3.0, 4.0]) - 0.1 * 5.0 / norm * update)

    assert second.weight == pytest.approx(10.0)
    assert second.update == pytest.approx(2.0)
    assert second.trust_ratio is None
    assert second.learning_rate == 0.2
    assert second.update_to_weight == pytest.approx(0.2 * 2.0 / 10.0, rel=1e-5)
    torch.testing.assert_close(other.detach(), torch.tensor([5.8, 7.8, -0.2, -0.2]))

    assert (third.weight, third.trust_ratio) == (0.0, None)
    assert third.update_to_weight == float("inf")
