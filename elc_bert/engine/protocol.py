"""Part of ``deepspeed.DeepSpeedEngine`` that this project uses, typed."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from elc_bert.model import ElcBertForMaskedLM


class CheckpointFiles(Protocol):
    """Files of a checkpoint that ``Engine.save_checkpoint`` has copied in memory."""

    def write(self) -> dict[str, str]:
        """Write the files to disk and return the SHA-256 of each by name; see ``BackgroundWriter``."""


class Engine(Protocol):
    """A model, its optimizer and its schedule under DeepSpeed (0.19.8).

    Outside of this package only what is declared here is used. DeepSpeed's wrapper around the optimizer,
    which differs with ZeRO stage and precision, is known to this package alone.
    """

    module: ElcBertForMaskedLM
    """The model. At ZeRO 3 its parameters are empty tensors outside of forward and backward."""
    device: torch.device
    """Device of the model."""
    optimizer: Any
    """DeepSpeed's wrapper around the optimizer; in fp32 at ZeRO stage 0 the optimizer itself."""
    basic_optimizer: Optimizer
    """The optimizer inside the wrapper."""
    lr_scheduler: LRScheduler
    """Learning-rate schedule; advanced by ``step`` unless the step was skipped."""
    checkpoint_engine: CheckpointFiles
    """Writer of the files that ``save_checkpoint`` creates."""
    skipped_steps: int
    """Optimizer steps skipped because the gradient was not finite."""
    global_steps: int
    """Optimizer steps, skipped ones included."""
    global_samples: int
    """DeepSpeed's count of samples: global batch times steps."""

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of the model; see ``ElcBertForMaskedLM.forward``."""

    def backward(self, loss: Tensor, *, scale_wrt_gas: bool) -> Any:
        """Add the gradient of a loss, averaged over ranks, to the accumulated gradient."""

    def step(self) -> None:
        """Update the weights at a gradient accumulation boundary; otherwise only count the micro-batch."""

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        """Declare whether the next ``backward`` completes the gradient of the step."""

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""

    def get_lr(self) -> list[float]:
        """Return the learning rate of each parameter group for the next step."""

    def get_global_grad_norm(self) -> Tensor | float:
        """Return the gradient norm over all ranks, before clipping, of the last step."""

    def was_step_applied(self) -> bool:
        """Return whether the last step updated the weights."""

    def zero_optimization(self) -> bool:
        """Return whether the ZeRO stage is above 0."""

    def bfloat16_enabled(self) -> bool:
        """Return whether the weights are bfloat16."""

    def fp16_enabled(self) -> bool:
        """Return whether the weights are float16."""

    def dynamic_loss_scale(self) -> bool:
        """Return whether fp16 adapts its loss scale."""

    def dynamic_loss_scale_args(self) -> dict[str, Any]:
        """Return the settings of the dynamic loss scale."""

    def save_checkpoint(self, save_dir: str, tag: str, *, save_latest: bool) -> Any:
        """Save the state through ``checkpoint_engine``. Collective."""

    def load_checkpoint(self, load_dir: str, tag: str) -> Any:
        """Load the state that a run of the same layout saved. Collective."""
