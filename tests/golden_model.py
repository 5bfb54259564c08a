"""The reference's figures for one small model of each variant, under this project's names."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from elc_bert.config import ModelConfig

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ("base", "zero", "normalized", "weighted_output")
# Reference name -> ours, applied in this order.
RENAMED = {
    "transformer.prev_layer_weights": "encoder.output_mixture.weights",
    "transformer.layers": "encoder.layers",
    "prev_layer_weights": "mixture.weights",
    "attention.in_proj_qk": "attention.query_key",
    "attention.in_proj_v": "attention.value",
    "attention.out_proj": "attention.output",
    "attention.post_layer_norm": "attention.post_norm",
    "mlp.mlp.1": "feed_forward.expand",
    "mlp.mlp.4": "feed_forward.contract",
    "classifier.nonlinearity.1": "head.dense",
    "classifier.nonlinearity.5": "head.decoder",
    "embedding.relative_embedding": "encoder.embedding.relative",
    "embedding.relative_layer_norm": "encoder.embedding.relative_norm",
    "embedding.word_embedding": "encoder.embedding.word",
}


class GoldenModel:
    """One ``model_<variant>.safetensors``."""

    def __init__(self, variant: str):
        with safe_open(GOLDEN / f"model_{variant}.safetensors", "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.config = ModelConfig(variant=variant, **json.loads(file.metadata()["config"]))
        self.parameters = _below(tensors, "param.")
        # The reference ties the output matrix to the embedding and lists it once.
        self.parameters["head.decoder.weight"] = self.parameters["encoder.embedding.word.weight"]
        self.gradients = _below(tensors, "grad.")
        self.input_ids: Tensor = tensors["input_ids"]
        self.attention_mask: Tensor = ~tensors["padding_mask"]
        self.embedding_output: Tensor = tensors["embedding_output_batch_major"]
        self.final_hidden: Tensor = tensors["final_hidden_batch_major"]
        self.logits: Tensor = tensors["logits_masked_time_major"]
        self.loss: Tensor = tensors["loss"][0]
        # Rows of the logits go through the positions first, then through the batch.
        time, batch = (tensors["labels"].T != -100).nonzero(as_tuple=True)
        self.positions = batch * self.input_ids.shape[1] + time
        self.targets = tensors["labels"].flatten()[self.positions]


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            name = name.removeprefix(prefix)
            for reference, ours in RENAMED.items():
                name = name.replace(reference, ours)
            found[name] = tensor
    return found


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest expected entry."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=torch.finfo().tiny)).item()
