"""The configuration of a run: one JSON file, typed, frozen and checked before anything starts.

DeepSpeed's keys stand at the top level of the file and keep DeepSpeed's meaning; everything of this
project is under ``"elc_bert"``. Precedence: defaults < file < ``--set key=value``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
PositiveNumber = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
#: DeepSpeed writes "auto" where a number is to be worked out.
Auto = BeforeValidator(lambda value: None if value == "auto" else value)


class Section(BaseModel):
    """A part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class ModelConfig(Section):
    """``elc_bert.model``: the network."""

    variant: Literal["base", "zero", "normalized", "weighted_output"] = "zero"
    """How layers mix earlier outputs (the four variants of the ELC-BERT paper, section 3)."""
    vocab_size: Positive = 6144
    """Subwords; must be the tokenizer's."""
    hidden_size: Positive = 384
    """Width D of every layer."""
    num_hidden_layers: Positive = 12
    """Layers L."""
    num_attention_heads: Positive = 6
    """Heads H; must divide hidden_size."""
    intermediate_size: Positive = 1024
    """Width M of the gated feed-forward."""
    max_position_embeddings: int = Field(512, gt=2)
    """Distance in tokens up to which relative positions are told apart; longer input is allowed."""
    position_bucket_size: int = Field(32, ge=4)
    """Buckets B to one side for relative positions."""
    hidden_dropout_prob: Probability = 0.1
    """Dropout on the outputs of the embedding, attention and feed-forward."""
    attention_probs_dropout_prob: Probability = 0.1
    """Dropout on attention probabilities."""
    layer_norm_eps: float = Field(1e-7, gt=0)
    """Added to the variance in every layer norm."""

    @model_validator(mode="after")
    def _check_shapes(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            divisors = [h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]
            near = sorted(divisors, key=lambda h: abs(h - self.num_attention_heads))[:4]
            raise ValueError(
                f"hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}; possible near it: {', '.join(map(str, sorted(near)))}"
            )
        if self.max_position_embeddings <= self.position_bucket_size // 2 + 1:
            raise ValueError(
                f"max_position_embeddings {self.max_position_embeddings} must exceed half of "
                f"position_bucket_size {self.position_bucket_size} by more than 1"
            )
        return self


class TrainingDataset(Section):
    """An entry of ``elc_bert.data.train``: one dataset of a blend, with either ``weight`` or ``epochs``."""

    path: Path
    """Prefix of the dataset: PREFIX.bin, PREFIX.idx and PREFIX.json, made by data_tools."""
    weight: PositiveNumber | None = None
    """Its share of the sequences, relative to the weights of the others."""
    epochs: PositiveNumber | None = None
    """How often it is gone through, relative to the epochs of the others."""


class DataConfig(Section):
    """``elc_bert.data``: what is read, and how it is masked."""

    train: tuple[TrainingDataset, ...]
    """Training datasets to blend, see TrainingDataset; of a single one the path is enough."""
    dev: Path
    """Prefix of the held-out dataset."""
    tokenizer: Path
    """Tokenizer JSON; its hash must be that of all datasets."""
    segments: Literal["reference", "packed"] = "reference"
    """How datasets are cut into segments: by whole sentences of one document, or without regard to both."""
    mask_probability: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the non-special tokens to be predicted."""
    random_probability: Probability = 0.1
    """Share of masked spans replaced by random subwords."""
    keep_probability: Probability = 0.1
    """Share of masked spans left as they are."""
    short_probability: Probability = 0.1
    """Probability that a segment is cut to a uniformly random length."""
    pack: bool = True
    """Put several sequences into a row where they fit: no work on padding, and the same loss."""
    workers: int = Field(1, ge=0)
    """Processes per device that prepare batches; 0 prepares them in the training process."""

    @field_validator("train", mode="before")
    @classmethod
    def _listed(cls, train: Any) -> Any:
        if isinstance(train, str | Path):
            train = [train]
        if not isinstance(train, list | tuple) or not train:
            raise ValueError('must be a path, or a list such as [{"path": "data/a", "weight": 0.7}, ...]')
        return [{"path": each} if isinstance(each, str | Path) else each for each in train]

    @field_validator("train")
    @classmethod
    def _check_blend(cls, train: tuple[TrainingDataset, ...]) -> tuple[TrainingDataset, ...]:
        for number, each in enumerate(train):
            given = [key for key in ("weight", "epochs") if getattr(each, key) is not None]
            if len(given) == 2:
                raise _within(f"[{number}]", "has both weight and epochs; keep one")
            if len(train) > 1 and not given:
                raise _within(f"[{number}].weight", f"is missing; say how much is read of {each.path}")
            if (each.weight is None) != (train[0].weight is None):
                other = "epochs" if each.epochs is None else "weight"
                raise _within(f"[{number}].{given[0]}", f"train[0] has {other}; use the same for all")
            if each.path in [other.path for other in train[:number]]:
                raise _within(f"[{number}].path", f"{each.path} is listed before; raise its share there")
        return train

    @field_serializer("train")
    def _short(self, train: tuple[TrainingDataset, ...]) -> str | list[dict[str, Any]]:
        """As one writes it: a single dataset as its path."""
        if len(train) == 1 and train[0].weight is None and train[0].epochs is None:
            return str(train[0].path)
        return [each.model_dump(mode="json", exclude_none=True) for each in train]

    @model_validator(mode="after")
    def _check_split(self) -> DataConfig:
        if self.random_probability + self.keep_probability > 1.0:
            raise ValueError("random_probability + keep_probability must not exceed 1")
        return self


def _within(place: str, message: str) -> PydanticCustomError:
    """An error in a part of the value that is validated, such as ``[1].weight``."""
    return PydanticCustomError("value_error", "{message}", {"within": place, "message": message})


class TrainingConfig(Section):
    """``elc_bert.training``: the loop."""

    output_dir: Path
    """Where checkpoints, logs and the resolved configuration go; created if need be."""
    max_steps: Positive
    """Optimizer steps of the whole run."""
    sequence_length: int = Field(128, ge=8)
    """Tokens T of a sequence, [CLS] and [SEP] included, before the length switch."""
    long_after: Probability = 0.9
    """Share of the run after which sequences are 4 times longer and the batch 4 times smaller; 1 = never."""
    max_micro_batch_size: Positive = 256
    """Most rows (of sequence_length) a device takes at once, if the micro-batch is not given."""
    seed: int = Field(42, ge=0, lt=2**63)
    """Decides initialisation, data order, masks and dropout."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability spread evenly over the vocabulary in the training loss."""
    activation_checkpointing: bool = False
    """Recompute layers in the backward pass: less memory, about a third more arithmetic."""
    deterministic: bool = False
    """Use deterministic algorithms on GPUs, slower, so that a resumed run is the same to the bit; CPUs do."""
    max_nonfinite_steps: Positive = 10
    """Steps in a row with a loss or gradient that is not finite, all skipped, after which the run stops."""
    check_replicas_every: Positive | None = None
    """Steps between checks that all devices hold the same weights; null = never."""
    kernels: Literal["auto", "fused", "plain"] = "auto"
    """Fast paths of the model: fused to insist on them, plain for the definitions, auto for what there is."""
    compile: bool = False
    """Compile by torch.compile what has no fast path; the first steps then take minutes."""
    log_every: Positive = 1
    """Steps between entries of the log; loss and accuracy are averaged over the steps between."""
    log_every_tensor: bool = False
    """Also log the trust ratio and the update-to-weight ratio of each tensor (Lamb)."""
    picture_every: Positive = 100
    """Steps between heat maps of the layer weights."""
    silence_limit: PositiveNumber = 120.0
    """Seconds without a sign of life after which a rank is lost, and all others end."""
    hang_limit: PositiveNumber | None = 1800.0
    """Seconds without progress on any rank after which all end; null = never."""


class EvaluationConfig(Section):
    """``elc_bert.evaluation``: loss on held-out text."""

    every: Positive = 500
    """Steps between evaluations; the last step is always evaluated."""
    sequences: Positive | None = 2048
    """Sequences of the held-out dataset used each time, always the same; null = all."""
    minimal_pairs: Path | None = None
    """Folder of minimal pairs (BLiMP's .jsonl files) to score while training; null = none."""
    minimal_pairs_every: Positive = 1000
    """Steps between scorings of minimal pairs; the last step is always scored."""
    minimal_pairs_limit: Positive | None = 20
    """Pairs of each file scored each time, from its beginning; null = all."""
    babylm_checkpoints: bool = False
    """Export the model at 1M, 2M, ... 10M, 20M, ... 100M, 200M, ... 1000M words, as BabyLM evaluates it."""


class CheckpointConfig(Section):
    """``elc_bert.checkpoint``: what a run leaves behind."""

    every: Positive = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: Positive = 2
    """Latest checkpoints kept; older ones are deleted, but for these:"""
    keep_every: Positive | None = None
    """Checkpoints of steps that are multiples of this stay for good; null = none."""
    keep_best: bool = False
    """The checkpoint with the lowest held-out loss measured at its step stays; the file best names it."""
    background: bool = True
    """Write while training goes on, from a copy of weights and optimizer state in CPU memory."""


class ElcBertConfig(Section):
    """``elc_bert``: everything that is not DeepSpeed's."""

    model: ModelConfig = ModelConfig()
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()


class LambParams(Section):
    """``optimizer.params`` of type Lamb."""

    lr: float = Field(0.01, ge=0.0)
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.98)
    """Decay of the running mean and of the running square of the gradient."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root of the running square."""
    weight_decay: float = Field(0.1, ge=0.0)
    """Decoupled decay of matrices; biases, norms, embeddings and layer weights never decay."""
    fused: bool | None = None
    """Fused kernels: true to insist on them, false for the plain definition, null for them where possible."""


class OptimizerConfig(Section):
    """``optimizer``: ``Lamb`` is this project's; every other type goes to DeepSpeed untouched."""

    type: str = "Lamb"
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        # With the defaults filled in, so that the saved configuration is complete.
        return LambParams(**params).model_dump() if _is_lamb(info.data.get("type")) else params

    @property
    def is_lamb(self) -> bool:
        return _is_lamb(self.type)


def _is_lamb(name: str | None) -> bool:
    return name is not None and name.lower() == "lamb"


class ScheduleParams(Section):
    """``scheduler.params`` of types Cosine, Linear and Constant."""

    warmup_proportion: Probability = 0.016
    """Share of the run in which the learning rate rises linearly from 0 to its peak."""
    min_factor: Probability = 0.1
    """Learning rate at the end, as a share of the peak (not for Constant)."""


OUR_SCHEDULES = ("Cosine", "Linear", "Constant")


class SchedulerConfig(Section):
    """``scheduler``: ``Cosine``, ``Linear`` and ``Constant`` are this project's, others DeepSpeed's."""

    type: str = "Cosine"
    params: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("params")
    @classmethod
    def _check_params(cls, params: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        return ScheduleParams(**params).model_dump() if info.data.get("type") in OUR_SCHEDULES else params

    @property
    def is_ours(self) -> bool:
        return self.type in OUR_SCHEDULES


#: Sections of DeepSpeed that lower the precision, and what they lower it to.
PRECISIONS: dict[str, Literal["bf16", "fp16", "bf16 autocast"]] = {
    "bf16": "bf16",
    "fp16": "fp16",
    "torch_autocast": "bf16 autocast",
}


class RunConfig(BaseModel):
    """The whole file. Keys of DeepSpeed that this project does not read are passed through."""

    # DeepSpeed's own sections are checked by DeepSpeed's own classes (training/deepspeed_config.py).
    model_config = ConfigDict(extra="allow", frozen=True, use_attribute_docstrings=True)

    train_batch_size: Positive
    """Sequences per optimizer step over all devices (the global batch), before the length switch."""
    train_micro_batch_size_per_gpu: Annotated[Positive | None, Auto] = None
    """Rows a device takes at once, at most where sequences are packed; worked out if absent (see
    elc_bert.training.max_micro_batch_size)."""
    gradient_accumulation_steps: Annotated[Positive | None, Auto] = None
    """Micro-batches per device and step, at most where sequences are packed; worked out if absent."""
    gradient_clipping: float = Field(2.0, ge=0.0)
    """Largest norm of the gradient; 0 = no clipping."""
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    elc_bert: ElcBertConfig
    _file: Path | None = PrivateAttr(None)

    @field_validator("train_batch_size", mode="before")
    @classmethod
    def _need_a_number(cls, value: Any) -> Any:
        if value == "auto":
            raise ValueError("give the global batch as a number; micro-batch and accumulation follow from it")
        return value

    @property
    def origin(self) -> str:
        """How messages about a key begin: the file it was read from."""
        return f"{self._file}: " if self._file else ""

    @property
    def zero_stage(self) -> int:
        """ZeRO stage, 0 to 3."""
        return int((self.deepspeed_extras.get("zero_optimization") or {}).get("stage", 0))

    @property
    def precision(self) -> Literal["bf16", "fp16", "bf16 autocast", "fp32"]:
        """Type of the weights in forward and backward; DeepSpeed keeps fp32 masters of the others.

        Under autocast the weights are fp32, the matrix products bf16.
        """
        for section, name in PRECISIONS.items():
            if (self.deepspeed_extras.get(section) or {}).get("enabled"):
                return name
        return "fp32"

    @property
    def offloads_optimizer(self) -> bool:
        """Whether masters and moments are in CPU memory and the optimizer steps there."""
        zero = self.deepspeed_extras.get("zero_optimization") or {}
        return (zero.get("offload_optimizer") or {}).get("device", "none") != "none"

    @property
    def deepspeed_extras(self) -> dict[str, Any]:
        """Top-level keys that only DeepSpeed reads."""
        return self.model_extra or {}
