"""Parameter groups with and without weight decay."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: the matrices of linear layers, with decay, and all others, without.

    The others are biases, layer norms, embeddings (with the output matrix that is tied to them) and
    layer-mixing weights, as in the published recipe.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices = {id(module.weight) for module in model.modules() if isinstance(module, nn.Linear)} - embeddings
    decaying = [p for p in model.parameters() if id(p) in matrices]
    other = [p for p in model.parameters() if id(p) not in matrices]
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": other, "weight_decay": 0.0},
    ]
