"""The planner's tables of tensors kept for the backward pass agree with what autograd keeps."""

import pytest
import torch
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.kernels import Mixing, kernels_for
from elc_bert.model import ElcBertForMaskedLM, use_kernels
from elc_bert.model.loss import masked_lm_loss
from elc_bert.planner.activations import (
    PLAIN,
    Activations,
    Workload,
    peak_of_backward,
    saved_bytes,
    table_for,
)
from elc_bert.utils.errors import UserError

B, T, N = 3, 17, 11
# All sizes differ, so that no two dimensions can be confused.
SIZES = {
    "vocab_size": 97,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 5,
    "intermediate_size": 56,
    "max_position_embeddings": 64,
    "position_bucket_size": 8,
}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DROPOUTS = {
    "both": {},
    "none": NO_DROPOUT,
    "hidden": {"attention_probs_dropout_prob": 0.0},
    "attention": {"hidden_dropout_prob": 0.0},
}
"""Settings by the kinds of dropout that are applied."""


def kept_by_autograd(model: ElcBertForMaskedLM, kernels: str, monkeypatch) -> int:
    """Return the bytes of all storages that the graph of a loss keeps, except parameters and the batch."""
    ids = torch.randint(7, 97, (B, T))
    mask, positions, targets = torch.ones(B, T, dtype=torch.bool), torch.arange(N), torch.randint(97, (N,))
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), ids, mask, positions, targets)}
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        # The tables leave out layer weights and scalars.
        if storage.data_ptr() not in given and tensor.numel() > SIZES["num_hidden_layers"] + 1:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    mixings: list[Mixing] = []
    chosen = kernels_for("cpu", kernels)
    make = chosen.mixing
    monkeypatch.setattr(chosen, "mixing", lambda: mixings.append(make()) or mixings[-1])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(ids, mask, positions)
        masked_lm_loss(logits, targets, kernels=kernels)
    for hidden in mixings[-1]._hidden:  # fused mixtures keep these outside of autograd
        keep(hidden)
    return sum(storages.values())


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("dropout", DROPOUTS)
@pytest.mark.parametrize("variant", ["base", "zero", "normalized", "weighted_output"])
def test_the_tables_give_the_bytes_that_autograd_keeps(variant, dropout, kernels, monkeypatch):
    try:
        kernels_for("cpu", kernels)
    except UserError as error:
        pytest.skip(str(error))
    config = ModelConfig(variant=variant, **SIZES, **DROPOUTS[dropout])
    model = ElcBertForMaskedLM(config)
    use_kernels(model, kernels)
    workload = Workload(config, B, T, N, compute_bytes=4, on_cpu=True, kernels=kernels)
    kept = kept_by_autograd(model, kernels, monkeypatch)
    assert saved_bytes(workload) == pytest.approx(kept, rel=0.001)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_a_gpu_keeps_less_than_a_cpu_and_fused_kernels_keep_no_probabilities(kernels):
    config = ModelConfig(**SIZES)
    on_cpu, on_gpu = (
        Workload(config, B, T, N, compute_bytes=2, on_cpu=on_cpu, kernels=kernels) for on_cpu in (True, False)
    )
    assert saved_bytes(on_gpu) < saved_bytes(on_cpu)
    names = {tensor.name for tensor in table_for(kernels, on_cpu=False).layer}
    assert ("probabilities" in names) == (kernels == "plain")


def make_workload(layers: int = 3, **changes) -> Workload:
    config = ModelConfig(**{**SIZES, "num_hidden_layers": layers})
    return Workload(config, B, T, N, **{"compute_bytes": 4, "on_cpu": True, "kernels": "plain", **changes})


def test_the_peak_without_checkpointing_includes_all_layers():
    peak = peak_of_backward(make_workload(), layer_gradients=0, head_gradients=0)
    assert peak.layers == 3 * make_workload().bytes_of(PLAIN.layer)
    assert peak.total >= saved_bytes(make_workload())


def test_the_peak_with_checkpointing_includes_one_layer_and_the_inputs_of_all():
    peak = peak_of_backward(make_workload(24, checkpointing=True), layer_gradients=0, head_gradients=0)
    assert peak.layers == make_workload().bytes_of(PLAIN.layer)
    state = B * T * 40 * 4
    # Plain mixtures keep the hidden states up to this layer, and equally many gradients.
    assert peak.hidden == (23 + 23) * state
    assert peak.total < peak_of_backward(make_workload(24), 0, 0).total / 5


def test_the_peak_is_at_the_end_of_backward_if_gradients_outgrow_activations():
    layer = make_workload().bytes_of(PLAIN.layer)
    few, many = (peak_of_backward(make_workload(), n, head_gradients=0) for n in (layer // 10, 10 * layer))
    assert few.gradients == 0
    assert many.gradients == 2 * 10 * layer
    assert isinstance(many, Activations)
    assert many.layers == layer


def test_saved_bytes_are_proportional_to_the_micro_batch():
    config = ModelConfig(**SIZES, **NO_DROPOUT)
    one, four = (
        saved_bytes(Workload(config, n, 512, 70 * n, compute_bytes=2, on_cpu=False, kernels="fused"))
        for n in (1, 4)
    )
    assert four == pytest.approx(4 * one, rel=0.01)
