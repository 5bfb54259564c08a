"""Adam's step counts after a checkpoint of PyTorch's or of DeepSpeed's own Adam has been loaded."""

from types import SimpleNamespace

import pytest
import torch

from elc_bert.engine.stepping import restore_step_counts


def steps_after_loading(optimizer: torch.optim.Optimizer, saved: list) -> list:
    """Return the step counts of the optimizer after a state with the counts ``saved`` has been loaded."""
    for parameter, step in zip(optimizer.param_groups[0]["params"], saved, strict=True):
        optimizer.state[parameter].update(
            step=step, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter)
        )
    restore_step_counts(SimpleNamespace(basic_optimizer=optimizer, global_steps=9, skipped_steps=2))
    return [state["step"] for state in optimizer.state.values()]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, torch.optim.Adam])
def test_pytorchs_adam_continues_from_the_counts_of_deepspeeds(optimizer_class, fused):
    """DeepSpeed's FusedAdam advances the count of the last tensor of a group only."""
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = optimizer_class(weights, lr=0.1, fused=fused)
    steps = steps_after_loading(optimizer, [0, 7])
    assert all(isinstance(step, torch.Tensor) for step in steps)
    assert [step.item() for step in steps] == [7.0, 7.0]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    # Both moments have the bias correction of the eighth step.
    update = 0.1 * (0.1 / (1 - 0.9**8)) / (0.001 / (1 - 0.999**8)) ** 0.5
    decay = 1 - 0.1 * 0.01 if optimizer_class is torch.optim.AdamW else 1.0
    for weight in weights:
        assert weight.tolist() == pytest.approx([decay - update] * 3, rel=1e-5)


def test_counts_of_pytorchs_adam_stay_the_same():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(3))])
    assert steps_after_loading(optimizer, [torch.tensor(7.0)]) == [torch.tensor(7.0)]


def test_deepspeeds_adam_gets_integers():
    class FusedAdam(torch.optim.SGD):
        """Stands for DeepSpeed's class of this name, which takes a minute to compile."""

    optimizer = FusedAdam([torch.nn.Parameter(torch.ones(3))])
    assert steps_after_loading(optimizer, [torch.tensor(7.0)]) == [7]
    assert isinstance(optimizer.state[optimizer.param_groups[0]["params"][0]]["step"], int)


def test_other_optimizers_are_left_alone():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))])
    assert steps_after_loading(optimizer, [3]) == [3]
