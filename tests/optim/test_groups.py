"""Parameter groups with and without weight decay."""

from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import parameter_groups


def test_only_matrices_of_linear_layers_decay():
    model = ElcBertForMaskedLM(ModelConfig(variant="weighted_output", num_hidden_layers=2, hidden_size=12))
    decaying, other = parameter_groups(model, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)] for p in decaying["params"]}
    per_layer = [
        "attention.query_key.weight",
        "attention.value.weight",
        "attention.output.weight",
        "feed_forward.expand.weight",
        "feed_forward.contract.weight",
    ]
    layers = {f"encoder.layers.{layer}.{name}" for layer in range(2) for name in per_layer}
    assert found == layers | {"head.dense.weight"}  # the tied output matrix counts as embedding
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.1, 0.0)
    assert len(decaying["params"]) + len(other["params"]) == len(names)
