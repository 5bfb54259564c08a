"""Load a trained model, print its layer weights, and take one training step.

Run it in the checkout after ``make demo``:

    python examples/inspect_model.py runs/demo
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.data.sampling.from_config import (
    masking_from_config,
    portions_from_config,
    special_tokens_from_config,
)
from elc_bert.data.sampling.steps import MicroBatch
from elc_bert.data.sampling.stream import SampleStream
from elc_bert.hub.loading import load_model
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import Lamb, parameter_groups
from elc_bert.utils.errors import run_single_process


def print_layer_weights(model: ElcBertForMaskedLM) -> None:
    """Print how much each layer takes from the embedding and from every earlier layer."""
    print("layer weights: the embedding first, then the layers in order")
    for name, weights in model.encoder.layer_weights().items():
        print(f"  {name:9} {' '.join(f'{weight:.3f}' for weight in weights.tolist())}")


def first_training_samples(config: RunConfig, count: int) -> MicroBatch:
    """Return the first masked sequences that the run was trained on."""
    settings = config.elc_bert
    stream = SampleStream(
        portions_from_config(settings.data),
        settings.training.sequence_length,
        settings.training.seed,
        0,  # the first phase of the run, before sequences become longer
        masking_from_config(settings.data, special_tokens_from_config(settings.data)),
        settings.model.vocab_size,
        settings.data.segments,
    )
    return MicroBatch.from_batch(stream(np.arange(count)))


def masked_loss(model: ElcBertForMaskedLM, batch: MicroBatch) -> Tensor:
    """Return the mean cross-entropy over the masked tokens of a batch."""
    logits = model(batch.input_ids, batch.attention_mask, batch.positions)  # at the masked positions only
    return F.cross_entropy(logits, batch.targets)


def take_step(model: ElcBertForMaskedLM, batch: MicroBatch, learning_rate: float) -> tuple[float, float]:
    """Take one step of LAMB; return the loss of the batch before and after it."""
    optimizer = Lamb(parameter_groups(model, weight_decay=0.1), lr=learning_rate)
    loss = masked_loss(model, batch)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return loss.item(), masked_loss(model, batch).item()


def run(directory: Path) -> None:
    """Run the example on the newest checkpoint of a run."""
    model = load_model(directory).model  # float32 on the CPU, in evaluation mode: without dropout
    print(f"{directory}: variant {model.config.variant}, {model.num_parameters():,} parameters")
    print_layer_weights(model)
    batch = first_training_samples(load_config(directory / "config.json", of_finished_run=True), count=8)
    before, after = take_step(model, batch, learning_rate=0.001)
    print(f"loss of {len(batch.targets)} masked tokens: {before:.4f} before the step, {after:.4f} after it")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", nargs="?", type=Path, default=Path("runs/demo"), help="a run's output directory"
    )
    arguments = parser.parse_args()
    sys.exit(run_single_process(lambda: run(arguments.run), "inspect_model.py"))
