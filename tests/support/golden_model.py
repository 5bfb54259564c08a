"""The reference's figures for one small model of each variant, under this project's names."""

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from elc_bert.config.schema import ModelConfig
from elc_bert.hub.reference import convert_name

GOLDEN = Path(__file__).parents[1] / "golden"
VARIANTS = ("base", "zero", "normalized", "weighted_output")


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
            found[convert_name(name.removeprefix(prefix))] = tensor
    return found
