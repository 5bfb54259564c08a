"""Figures that show a model's learned parameters."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_layer_weights(weights: dict[str, Tensor]) -> "Figure":
    """Draw a heat map of the layer weights with one row per layer and one column per source.

    Args:
        weights: Softmax-normalized weights of each layer's inputs, by layer name.
    """
    from matplotlib.figure import Figure

    columns = max(len(shares) for shares in weights.values())
    table = torch.full((len(weights), columns), float("nan"))
    for row, shares in enumerate(weights.values()):
        table[row, : len(shares)] = shares.cpu()
    width, height = 1.5 + 0.38 * columns, 1.2 + 0.34 * len(weights)
    figure = Figure(figsize=(width, height))
    # The margins are set in inches: an automatic layout takes longer than everything else here.
    axes = figure.add_axes((0.6 / width, 0.6 / height, 0.36 * columns / width, 1 - 0.8 / height))
    image = axes.imshow(table.numpy(), vmin=0.0, vmax=1.0, cmap="magma_r", aspect="auto")
    axes.set_xticks(range(columns), ["emb", *(str(layer) for layer in range(1, columns))])
    axes.set_yticks(range(len(weights)), [name.removeprefix("layer_").lstrip("0") for name in weights])
    axes.set_xlabel("input from layer")
    axes.set_ylabel("layer")
    color_axes = figure.add_axes((1 - 0.75 / width, 0.6 / height, 0.15 / width, 1 - 0.8 / height))
    figure.colorbar(image, cax=color_axes, label="share")
    return figure
