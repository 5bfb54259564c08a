"""Packed rows give the loss and the gradients of the same sequences in separate rows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.data.format.vocabulary import PAD
from elc_bert.data.sampling.batches import Batch
from elc_bert.data.sampling.packing import pack_rows, packed_layout
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.kernels import kernels_for
from elc_bert.model import ElcBertForMaskedLM, use_kernels
from elc_bert.model.loss import masked_lm_loss
from elc_bert.utils.errors import UserError
from tests.support.golden_model import VARIANTS
from tests.support.tensors import relative_error

WIDTH, VOCABULARY, SEQUENCES = 48, 64, 24


def small_model(variant: str, kernels: str) -> ElcBertForMaskedLM:
    try:
        kernels_for("cpu", kernels)
    except UserError as error:
        pytest.skip(str(error))
    torch.manual_seed(1)
    model = ElcBertForMaskedLM(
        ModelConfig(
            variant=variant,
            vocab_size=VOCABULARY,
            hidden_size=24,
            num_attention_heads=3,
            num_hidden_layers=3,
            intermediate_size=40,
            max_position_embeddings=32,  # below WIDTH: the outermost buckets are used too
            position_bucket_size=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )
    use_kernels(model, kernels)
    with torch.no_grad():  # biases and most mixtures start at zero, which would hide errors
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def sequences() -> Batch:
    """Return masked sequences of all lengths, each padded to a separate row."""
    random = np.random.default_rng(2)
    lengths = np.concatenate([[3, WIDTH, WIDTH - 1, WIDTH - 3], random.integers(3, WIDTH, SEQUENCES - 4)])
    is_real = np.arange(WIDTH) < lengths[:, None]
    tokens = np.where(is_real, random.integers(6, VOCABULARY, (SEQUENCES, WIDTH)), 3).astype(np.int32)
    predicted = is_real & (random.random(tokens.shape) < 0.2)
    return Batch(np.where(predicted, 4, tokens).astype(np.int64), is_real, tokens, predicted)


def micro_batches_of(batch: Batch, sizes: list[int]) -> list[MicroBatch]:
    ends = np.cumsum(sizes)
    return [
        MicroBatch.from_batch(batch.rows(slice(end - size, end)))
        for size, end in zip(sizes, ends, strict=True)
    ]


def loss_and_gradients(
    model: ElcBertForMaskedLM, micro_batches: list[MicroBatch]
) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and gradients summed over micro-batches, as in a training step."""
    model.zero_grad()
    total = 0.0
    for micro in micro_batches:
        logits = model(micro.input_ids, micro.attention_mask, micro.positions)
        loss, _ = masked_lm_loss(logits, micro.targets, label_smoothing=0.1, kernels=model.kernels)
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_changes_neither_loss_nor_gradients(variant, kernels):
    model, batch = small_model(variant, kernels), sequences()
    lengths = batch.attention_mask.sum(axis=1)
    layouts = [packed_layout(lengths, WIDTH, world_size=2, micro_batch=3, rank=rank) for rank in range(2)]
    ours = []
    for layout in layouts:
        part = Batch(*(field[layout.samples] for field in vars(batch).values()))
        ours += micro_batches_of(pack_rows([part], layout, WIDTH, PAD), layout.sizes.tolist())
    rows = sum(len(micro.input_ids) for micro in ours)
    assert rows < 0.7 * SEQUENCES

    loss, gradients = loss_and_gradients(model, micro_batches_of(batch, [SEQUENCES]))
    packed_loss, packed_gradients = loss_and_gradients(model, ours)

    assert packed_loss == pytest.approx(loss, rel=1e-5)
    for name, expected in gradients.items():
        # The first layer has one input, whose normalized weight is always 1.
        assert expected.abs().max() > 0 or name == "encoder.layers.0.mixture.weights", name
        assert relative_error(packed_gradients[name], expected) <= 1e-5, name


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_row_of_padding_adds_nothing(variant, kernels):
    model = small_model(variant, kernels)
    nothing = torch.zeros(0, dtype=torch.int64)
    ids, numbers = torch.full((1, WIDTH), 3), torch.zeros(1, WIDTH, dtype=torch.int32)
    padding = MicroBatch(ids, numbers, nothing, nothing, 0)
    loss, gradients = loss_and_gradients(model, [padding])
    assert loss == 0.0
    for name, gradient in gradients.items():
        assert torch.count_nonzero(gradient) == 0, name
        assert gradient.isfinite().all(), name
