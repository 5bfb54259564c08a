"""The sections ``elc_bert.training``, ``elc_bert.evaluation`` and ``elc_bert.checkpoint``."""

from typing import Annotated, Literal

from pydantic import Field

from elc_bert.config.section import NonEmptyPath, Positive, PositiveNumber, Probability, Section


class TrainingConfig(Section):
    """Length, data order, logging and safety checks of a run (section ``elc_bert.training``)."""

    output_dir: NonEmptyPath
    """Directory for checkpoints, logs and the resolved configuration; created if it does not exist."""
    max_steps: Positive
    """Number of optimizer steps of the whole run."""
    sequence_length: int = Field(128, ge=8, le=2**20)
    """Number of tokens T in a sequence before the length switch, [CLS] and [SEP] included."""
    long_after: Probability = 0.9
    """Fraction of the run after which sequences become 4 times longer and the batch 4 times smaller; 1 means
    never."""
    max_micro_batch_size: Positive = 256
    """Largest number of rows of ``sequence_length`` tokens that a device processes at once. Used only if
    ``train_micro_batch_size_per_gpu`` is not given."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Random seed of the initialization, data order, masks and dropout."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability mass spread evenly over the vocabulary in the training loss."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass, which saves memory and costs about a third more
    arithmetic."""
    deterministic: bool = False
    """Use deterministic GPU algorithms, which are slower, so that a resumed run is bit-identical to an
    uninterrupted one. On CPUs it always is."""
    max_nonfinite_steps: Positive = 10
    """Number of consecutive steps with a non-finite loss or gradient after which the run stops. Each such
    step is skipped."""
    check_replicas_every: Positive | None = None
    """Number of steps between checks that all devices hold the same weights; null means never."""
    kernels: Literal["auto", "fused", "plain"] = "auto"
    """Implementation of the model's operations: ``fused`` requires the fused kernels, ``plain`` uses plain
    PyTorch, ``auto`` uses fused kernels where they are available."""
    compile: bool = False
    """Compile the parts without a fused kernel with torch.compile; the first steps then take minutes."""
    log_every: Positive = 1
    """Number of steps between log entries; loss and accuracy are averaged over these steps."""
    log_every_tensor: bool = False
    """Also log the trust ratio and the update-to-weight ratio of every tensor (Lamb only)."""
    picture_every: Positive = 100
    """Number of steps between heat maps of the layer weights."""
    silence_limit: PositiveNumber = 120.0
    """Seconds without a heartbeat after which a rank counts as lost and all other ranks exit."""
    hang_limit: PositiveNumber | None = 1800.0
    """Seconds without progress on any rank after which all ranks exit; null means never."""


class EvaluationConfig(Section):
    """Evaluation during training: held-out loss, minimal pairs, BabyLM (section ``elc_bert.evaluation``)."""

    every: Positive = 500
    """Number of steps between evaluations of the held-out loss; the last step is always evaluated."""
    sequences: Positive | None = 2048
    """Number of held-out sequences in each evaluation, always the same ones; null means all."""
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Fraction of the held-out tokens to predict. It is independent of ``elc_bert.data.mask_probability``, so
    that runs with different masks can be compared. 10 % of the masked spans become random tokens and 10 %
    stay unchanged."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Random seed of the choice of the held-out sequences and of their masks, independent of
    ``elc_bert.training.seed``."""
    minimal_pairs: NonEmptyPath | None = None
    """Directory of minimal pairs (BLiMP's .jsonl files) to score during training; null means none."""
    minimal_pairs_every: Positive = 1000
    """Number of steps between scorings of the minimal pairs; the last step is always scored."""
    minimal_pairs_limit: Positive | None = 20
    """Number of pairs scored from the beginning of each paradigm; null means all."""
    babylm_checkpoints: bool = False
    """Export the model at the word counts that BabyLM evaluates: 1M, 2M, ... 10M, 20M, ... 100M, 200M, ...
    1000M words."""


class CheckpointConfig(Section):
    """How often checkpoints are taken, and which ones are kept (section ``elc_bert.checkpoint``)."""

    every: Positive = 500
    """Number of steps between checkpoints; the last step is always saved."""
    keep: Positive = 2
    """Number of latest checkpoints to keep. Older ones are deleted unless ``keep_every`` or ``keep_best``
    retains them."""
    keep_every: Positive | None = None
    """Step interval of checkpoints to keep permanently: those at its multiples are never deleted. Null means
    none."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest held-out loss measured at its step; the file ``best`` names it."""
    background: bool = True
    """Write checkpoints while training continues, from a copy of weights and optimizer state in CPU
    memory."""
