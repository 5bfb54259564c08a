"""Peak memory of a device during a run."""

from dataclasses import dataclass
from typing import Literal

from elc_bert.config.schema import RunConfig
from elc_bert.planner.activations import Activations, Kernels, Workload, peak_of_backward
from elc_bert.planner.parameters import Parameters
from elc_bert.planner.states import BYTES, layout_of, pieces

MIB = 2**20
BASELINES = {"cpu": 415 * MIB, "gpu": 1024 * MIB}
"""Memory of a process without tensors. CPU: measured with PyTorch, DeepSpeed and TensorBoard loaded and one
training step taken. GPU: assumed, for the context, the workspace of cuBLAS and the buffers of NCCL."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the worst moment of one phase."""

    moment: Literal["backward", "reduction", "step"]
    baseline: int
    pieces: dict[str, float]
    """Bytes of weights, gradients, optimizer state and buffers, by name."""
    activations: Activations | None
    """Activations; None outside of the backward pass."""
    host: float
    """Bytes of the host's memory used in addition for this device."""

    @property
    def total(self) -> float:
        """Bytes on the device, activations included."""
        activations = self.activations.total if self.activations else 0
        return self.baseline + sum(self.pieces.values()) + activations


def kernels_of(config: RunConfig) -> Kernels:
    """Return the kernels that the run uses if fused ones are available."""
    return "plain" if config.elc_bert.training.kernels == "plain" else "fused"


def workload(config: RunConfig, sequences: int, tokens: int, kernels: Kernels, on_cpu: bool) -> Workload:
    """Return a micro-batch of full sequences with the expected number of masked tokens."""
    # Under autocast some activations are bf16, but inputs and outputs of layer norms are fp32.
    return Workload(
        model=config.elc_bert.model,
        sequences=sequences,
        tokens=tokens,
        predicted=round(config.elc_bert.data.mask_probability * sequences * (tokens - 2)),
        compute_bytes=BYTES[config.precision],
        on_cpu=on_cpu,
        kernels=kernels,
        checkpointing=config.elc_bert.training.activation_checkpointing,
    )


def peak_memory(
    config: RunConfig, parameters: Parameters, load: Workload, accumulation: int, devices: int, on_cpu: bool
) -> Memory:
    """Return the largest memory of backward pass, gradient reduction and optimizer step.

    Args:
        config: Configuration of the run.
        parameters: Numbers of parameters of its model.
        load: One micro-batch.
        accumulation: Number of micro-batches per step.
        devices: Number of devices.
        on_cpu: True if the devices are CPU processes.

    Raises:
        UserError: DeepSpeed would refuse the configuration.
    """
    layout = layout_of(config, devices)
    plain_lamb = config.optimizer.is_lamb and config.optimizer.params.get("fused") is False
    found = pieces(layout, parameters, on_cpu, plain_lamb)
    baseline = BASELINES["cpu" if on_cpu else "gpu"]
    host = sum(piece.bytes for piece in found if piece.on_host)
    here = [piece for piece in found if not piece.on_host]

    def kept(*when: str) -> dict[str, float]:
        return {piece.name: piece.bytes for piece in here if piece.when in when}

    first_of_many = accumulation > 1
    growing = sum(piece.bytes for piece in here if piece.when == "gradients")
    backward = kept("always", "backward", *(["gradients"] if first_of_many else []))
    candidates = [
        Memory("backward", baseline, backward, _activations(load, parameters, growing, first_of_many), host),
        Memory("reduction", baseline, kept("always", "gradients", "backward", "reduction"), None, host),
        Memory("step", baseline, kept("always", "gradients", "step"), None, host),
    ]
    return max(candidates, key=lambda memory: memory.total)


def _activations(
    load: Workload, parameters: Parameters, growing: float, are_there_already: bool
) -> Activations:
    """Return the activations at their peak, with the gradients that this pass adds."""
    per_parameter = 0.0 if are_there_already else growing / parameters.total
    layers = load.model.num_hidden_layers
    head = parameters.head + load.model.vocab_size * load.model.hidden_size
    return peak_of_backward(
        load, round(per_parameter * parameters.layers / layers), round(per_parameter * head)
    )
