"""The tables of what is kept for backward, against what autograd keeps."""

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
# Every letter has another value.
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


def kept_by_autograd(model: ElcBertForMaskedLM, kernels: str, monkeypatch) -> int:
    """Bytes of all storages that the graph of a loss refers to, without parameters and the batch."""
    ids = torch.randint(7, 97, (B, T))
    mask, positions, targets = torch.ones(B, T, dtype=torch.bool), torch.arange(N), torch.randint(97, (N,))
    given = {t.untyped_storage().data_ptr() for t in (*model.parameters(), ids, mask, positions, targets)}
    storages: dict[int, int] = {}
    alive = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        # Shares of layers and single numbers are not in the tables.
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
    for hidden in mixings[-1]._hidden:  # fused mixtures keep these themselves
        keep(hidden)
    return sum(storages.values())


@pytest.mark.parametrize("kernels", ["plain", "fused"])
@pytest.mark.parametrize("dropout", [{}, NO_DROPOUT], ids=["dropout", "no dropout"])
@pytest.mark.parametrize("variant", ["base", "zero", "normalized", "weighted_output"])
def test_the_table_is_what_autograd_keeps(variant, dropout, kernels, monkeypatch):
    try:
        kernels_for("cpu", kernels)
    except UserError as error:
        pytest.skip(str(error))
    config = ModelConfig(variant=variant, **SIZES, **dropout)
    model = ElcBertForMaskedLM(config)
    use_kernels(model, kernels)
    load = Workload(config, B, T, N, compute_bytes=4, on_cpu=True, kernels=kernels)
    kept = kept_by_autograd(model, kernels, monkeypatch)
    assert saved_bytes(load) == pytest.approx(kept, rel=0.001)


@pytest.mark.parametrize("kernels", ["plain", "fused"])
def test_a_gpu_keeps_a_byte_of_dropout_and_no_probabilities_where_kernels_are_fused(kernels):
    config = ModelConfig(**SIZES)
    on_cpu, on_gpu = (
        Workload(config, B, T, N, compute_bytes=2, on_cpu=on_cpu, kernels=kernels) for on_cpu in (True, False)
    )
    assert saved_bytes(on_gpu) < saved_bytes(on_cpu)
    names = {tensor.name for tensor in table_for(kernels, on_cpu=False).layer}
    assert ("probabilities" in names) == (kernels == "plain")


def load(layers: int = 3, **changes) -> Workload:
    config = ModelConfig(**{**SIZES, "num_hidden_layers": layers})
    return Workload(config, B, T, N, **{"compute_bytes": 4, "on_cpu": True, "kernels": "plain", **changes})


def test_the_worst_moment_without_checkpointing_has_all_layers():
    worst = peak_of_backward(load(), layer_gradients=0, head_gradients=0)
    assert worst.layers == 3 * load().bytes_of(PLAIN.layer)
    assert worst.total >= saved_bytes(load())


def test_checkpointing_keeps_the_layers_inputs_and_one_layer():
    worst = peak_of_backward(load(24, checkpointing=True), layer_gradients=0, head_gradients=0)
    assert worst.layers == load().bytes_of(PLAIN.layer)
    state = B * T * 40 * 4
    # Plain mixtures: states up to this layer, and as many gradients.
    assert worst.hidden == (23 + 23) * state
    assert worst.total < peak_of_backward(load(24), 0, 0).total / 5


def test_gradients_of_parameters_grow_while_layers_are_given_up():
    layer = load().bytes_of(PLAIN.layer)
    few, many = (peak_of_backward(load(), n, head_gradients=0) for n in (layer // 10, 10 * layer))
    assert few.gradients == 0
    assert many.gradients == 2 * 10 * layer
    assert isinstance(many, Activations)
    assert many.layers == layer


def test_bytes_are_proportional_to_the_micro_batch():
    config = ModelConfig(**SIZES, **NO_DROPOUT)
    one, four = (
        saved_bytes(Workload(config, n, 512, 70 * n, compute_bytes=2, on_cpu=False, kernels="fused"))
        for n in (1, 4)
    )
    assert four == pytest.approx(4 * one, rel=0.01)
