"""One training step in plain PyTorch, without DeepSpeed, micro-batches and ranks."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import Lamb, parameter_groups
from tests.support.launching import losses, scalars


class PlainStep(NamedTuple):
    """Results of a step."""

    loss: float
    """Mean loss of the masked tokens."""
    accuracy: float
    """Share of the masked tokens that are predicted."""
    gradient_norm: float
    """Gradient norm before clipping."""
    model: ElcBertForMaskedLM
    """Model after the step."""


def plain_step(
    config: RunConfig, batch: MicroBatch, label_smoothing: float = 0.0, seed: int = 42
) -> PlainStep:
    """Take the first step of a run without dropout and warmup, on the whole global batch."""
    torch.manual_seed(seed)
    model = ElcBertForMaskedLM(config.elc_bert.model)
    params = dict(config.optimizer.params)
    lamb = Lamb(parameter_groups(model, params.pop("weight_decay")), **params)
    logits = model(batch.input_ids, batch.attention_mask, batch.positions)
    loss = torch.nn.functional.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)
    loss.backward()
    limit = config.gradient_clipping or float("inf")
    norm: Tensor = torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    lamb.step()
    accuracy = (logits.argmax(-1) == batch.targets).double().mean()
    return PlainStep(loss.item(), accuracy.item(), norm.item(), model)


def assert_first_step(directory: Path, expected: PlainStep) -> None:
    """Check that the first step of a run of one step had this loss, norm and effect."""
    assert losses(directory)[1] == pytest.approx(expected.loss, rel=1e-6)
    assert scalars(directory, "train/accuracy")[1] == pytest.approx(expected.accuracy)
    assert scalars(directory, "train/gradient_norm")[1] == pytest.approx(expected.gradient_norm, rel=1e-5)
    saved = load_file(directory / "checkpoints" / "step-000001" / "model.safetensors")
    for name, parameter in expected.model.named_parameters():
        torch.testing.assert_close(saved[name], parameter.detach(), rtol=1e-4, atol=1e-5)
