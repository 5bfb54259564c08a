"""LAMB takes the same steps for all ZeRO stages, world sizes, offload and precisions."""

import functools
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from elc_bert.config.reader import load_config
from elc_bert.config.schema import ModelConfig
from elc_bert.model import ElcBertForMaskedLM
from elc_bert.optim import parameter_groups, schedule_factor
from tests.support.launching import (
    NO_DROPOUT,
    PRETRAIN_EACH,
    TINY,
    largest_difference,
    losses,
    run,
    scalars,
)

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(600)]

STEPS = 50
STAGES = (0, 1, 2, 3)
MICRO_BATCH = {1: 6, 2: 3, 3: 2}
"""Micro-batch by world size. With two micro-batches on every rank, a step has 12 sequences."""
CLIPPING = 0.5
PEAK = 0.03
ODD_MODEL = {
    "variant": "weighted_output",
    "hidden_size": 25,
    "num_attention_heads": 5,
    "intermediate_size": 37,
    "num_hidden_layers": 1,
    **NO_DROPOUT,
}
"""No size is divisible by a number of ranks, and some tensors have fewer elements than there are ranks."""
RUN: dict[str, Any] = {
    "train_batch_size": 12,
    "gradient_clipping": CLIPPING,
    "optimizer": {"params": {"lr": PEAK, "weight_decay": 0.1}},
    "model": ODD_MODEL,
    "training": {"max_steps": STEPS},
    "checkpoint": {"every": STEPS - 1},
}
"""Settings of all runs, with checkpoints of the last two steps."""
BF16 = {"bf16": {"enabled": True}}
FP32_SUMS = {"data_types": {"grad_accum_dtype": "fp32"}}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SUB_GROUPS = {"sub_group_size": 500, "stage3_param_persistence_threshold": 0}
"""Settings of stage 3 that partition every parameter and divide a parameter group into sub-groups."""


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **settings}}


MATRIX = {f"fp32 stage {stage}": zero(stage) for stage in STAGES} | {
    f"bf16 stage {stage}": zero(stage) | BF16 for stage in STAGES
}
"""Changes of ``RUN`` for the runs on every world size, by name of the run."""
VARIATIONS = {
    "fp32 stage 1 offload": zero(1, **OFFLOAD),
    "fp32 stage 2 offload": zero(2, **OFFLOAD),
    "fp32 stage 3 offload sub-groups": zero(3, **OFFLOAD, **SUB_GROUPS),
    "fp32 stage 3 sub-groups": zero(3, **SUB_GROUPS),
    "fp32 stage 2 reordered and aligned": zero(2, round_robin_gradients=True, parameter_alignment=True),
    "fp32 stage 1 reordered": zero(1, round_robin_gradients=True),
    "fp32 stage 2 reordered": zero(2, round_robin_gradients=True),
    "bf16 stage 2 offload": zero(2, **OFFLOAD) | BF16,
    "bf16 stage 3 offload": zero(3, **OFFLOAD) | BF16,
    "bf16 stage 1 summed in fp32": zero(1) | BF16 | FP32_SUMS,
}
"""Changes of ``RUN`` for further runs on two ranks, by name of the run."""
AUTOCAST = {
    f"autocast stage {stage}": zero(stage) | {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    for stage in STAGES
}
"""Runs with autocast. They follow the others because DeepSpeed then keeps it on for the whole process."""
PLAIN = {
    f"plain {precision} stage {stage}": zero(stage)
    | {"training": {"max_steps": STEPS, "max_nonfinite_steps": STEPS}}
    | settings
    for precision, settings in (("fp32", {}), ("bf16", BF16))
    for stage in STAGES[1:]
}
"""Runs with plain LAMB. Under stage 3 it may read the contents of padding, so that the loss becomes NaN."""
FP16 = {f"fp16 stage {stage}": zero(stage) | {"fp16": {"enabled": True}} for stage in STAGES}
OVERFLOW = {
    f"fp16 stage {stage} overflow": zero(stage)
    | {"fp16": {"enabled": True, "initial_scale_power": 24, "hysteresis": 1}, "training": {"max_steps": 14}}
    for stage in STAGES
}
"""Runs whose gradients overflow at the initial loss scale of 2^24. Every overflow halves the scale."""


class Launches:
    """Output directories of runs by name. All runs of a world size are started together.

    If they fail, every test that needs them fails with the same message.
    """

    def __init__(self, configure: Callable[..., Path], folder: Path):
        self._configure = configure
        self._folder = folder

    def __call__(self, world: int) -> dict[str, Path]:
        directories = self._launch_once(world)
        assert not isinstance(directories, str), directories
        return directories

    @functools.cache  # noqa: B019 (it lives as long as the tests of this file)
    def _launch_once(self, world: int) -> dict[str, Path] | str:
        """Return the output directories, or the message of the failure, which must not be repeated."""
        try:
            if world != 2:
                return self.launch(world, MATRIX)
            cases = MATRIX | VARIATIONS | FP16 | OVERFLOW | AUTOCAST
            return self.launch(world, cases, plain=PLAIN, options=["--fp16-on-cpu"])
        except (AssertionError, TimeoutError) as failure:
            return f"the runs of {world} ranks have failed: {failure}"

    def launch(
        self, world: int, cases: dict[str, Any], plain: dict[str, Any] | None = None, options: Iterable = ()
    ) -> dict[str, Path]:
        configs = {name: self._write(world, name, case) for name, case in (cases | (plain or {})).items()}
        arguments = [*options, *(configs[name] for name in cases)]
        if plain:
            arguments += ["--plain-lamb", *(configs[name] for name in plain)]
        result = run("forked", world, arguments, timeout=560, script=PRETRAIN_EACH)
        assert result.status == 0, result.output
        return {name: path.parent / "run" for name, path in configs.items()}

    def _write(self, world: int, name: str, case: dict[str, Any]) -> Path:
        changes = RUN | {"train_micro_batch_size_per_gpu": MICRO_BATCH[world]} | case
        return self._configure(self._folder / f"{world}-{name.replace(' ', '-')}", **changes)


@pytest.fixture(scope="module")
def launches(configure, tmp_path_factory) -> Launches:
    return Launches(configure, tmp_path_factory.mktemp("zero"))


def weights_after(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(directory / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def step_lengths(directory: Path) -> list[float]:
    """Return the norms of the last step of all decaying tensors, relative to learning rate and tensor.

    The trust ratio of the whole tensor makes this 1, whatever the gradient and the precision.
    """
    before, after = (weights_after(directory, step) for step in (STEPS - 1, STEPS))
    model = ElcBertForMaskedLM(load_config(directory / "config.json").elc_bert.model)
    decaying = {id(parameter) for parameter in parameter_groups(model, weight_decay=0.1)[0]["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in decaying]
    assert len(names) == 6
    rate = scalars(directory, "train/learning_rate")[STEPS]
    return [((after[name] - before[name]).norm() / before[name].norm() / rate).item() for name in names]


def assert_trust_ratios_of_whole_tensors(directory: Path) -> None:
    assert step_lengths(directory) == pytest.approx([1.0] * 6, rel=1e-3)


def assert_same_training(directory: Path, reference: Path) -> None:
    """Check that every loss and the final parameters of two runs are equal up to rounding."""
    assert largest_difference(losses(directory), losses(reference)) < 1e-5
    assert_trust_ratios_of_whole_tensors(directory)
    weights, expected = weights_after(directory, STEPS), weights_after(reference, STEPS)
    assert list(weights) == list(expected)
    largest = max(tensor.abs().max() for tensor in expected.values())
    for name in expected:
        assert (weights[name] - expected[name]).abs().max() < 1e-5 * largest


@pytest.mark.parametrize("world", [2, 3])
def test_partitions_cut_through_tensors(world):
    model = ElcBertForMaskedLM(ModelConfig(**TINY["elc_bert"]["model"] | ODD_MODEL))
    for group in parameter_groups(model, weight_decay=0.1):
        sizes = [parameter.numel() for parameter in group["params"]]
        partition = -(-sum(sizes) // (2 * world)) * 2  # stages 1 and 2 round up to an even number
        borders = {partition * rank for rank in range(1, world)}
        assert not borders & set(itertools.accumulate(sizes))
        # Stage 3 partitions each tensor, and some of the partitions end with padding.
        assert any(size % world for size in sizes)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("world", MICRO_BATCH)
def test_losses_are_equal_for_all_stages_and_world_sizes(launches, world, stage):
    reference, runs = launches(1), launches(world)
    assert len(losses(reference["fp32 stage 0"])) == STEPS
    assert_same_training(runs[f"fp32 stage {stage}"], reference["fp32 stage 0"])
    assert_trust_ratios_of_whole_tensors(runs[f"bf16 stage {stage}"])
    curve = losses(runs[f"bf16 stage {stage}"])
    assert 0 < largest_difference(curve, losses(reference["fp32 stage 0"])) < 2e-2
    assert largest_difference(curve, losses(reference["bf16 stage 0"])) < 2e-2


@pytest.mark.parametrize("case", VARIATIONS)
def test_losses_are_equal_with_offload_sub_groups_and_other_layouts(launches, case):
    reference, directory = launches(1)["fp32 stage 0"], launches(2)[case]
    if case.startswith("fp32"):
        assert_same_training(directory, reference)
    else:
        assert_trust_ratios_of_whole_tensors(directory)
        assert 0 < largest_difference(losses(directory), losses(reference)) < 2e-2


@pytest.mark.parametrize("case", PLAIN)
def test_a_plain_lamb_trains_another_model(launches, case):
    """Plain LAMB takes the partitions of ZeRO for whole tensors, so that its steps and losses differ."""
    expected = losses(launches(1)["fp32 stage 0"])
    curve = losses(launches(2)[case])
    assert any(not abs(curve[step] / expected[step] - 1) < 1e-3 for step in expected)
    # NaN in the weights counts as a difference.
    assert any(not abs(length - 1) < 1e-2 for length in step_lengths(launches(2)[case]))


def test_gradients_were_clipped_and_the_loss_fell(launches):
    """Equal losses of all runs would prove little if nothing were clipped or learned."""
    directory = launches(1)["fp32 stage 0"]
    norms, curve = scalars(directory, "train/gradient_norm"), losses(directory)
    assert sum(norm > CLIPPING for norm in norms.values()) > 0.8 * STEPS
    assert curve[STEPS] < curve[1] - 0.8


@pytest.mark.parametrize("case", AUTOCAST)
def test_autocast_stays_near_fp32(launches, case):
    reference, directory = launches(1)["fp32 stage 0"], launches(2)[case]
    assert_trust_ratios_of_whole_tensors(directory)
    assert 0 < largest_difference(losses(directory), losses(reference)) < 2e-2


@pytest.mark.parametrize("stage", STAGES)
def test_fp16_stays_near_fp32_and_survives_overflow(launches, stage):
    runs = launches(2)
    check_fp16(runs[f"fp16 stage {stage}"], launches(1)["fp32 stage 0"])
    check_overflow(runs[f"fp16 stage {stage} overflow"])


@pytest.mark.gpu
def test_fp16_on_a_gpu(launches):
    runs = launches.launch(1, {"fp32 stage 0": zero(0)} | FP16 | OVERFLOW)
    for stage in STAGES:
        check_fp16(runs[f"fp16 stage {stage}"], runs["fp32 stage 0"])
        check_overflow(runs[f"fp16 stage {stage} overflow"])


def check_fp16(directory: Path, reference: Path) -> None:
    assert scalars(directory, "train/skipped_steps")[STEPS] == 0
    assert_trust_ratios_of_whole_tensors(directory)
    assert 0 < largest_difference(losses(directory), losses(reference)) < 2e-2
    # The norm is that of the gradient, not of the gradient times the loss scale.
    norms, expected = (scalars(run, "train/gradient_norm") for run in (directory, reference))
    assert norms[1] == pytest.approx(expected[1], rel=1e-2)


def check_overflow(directory: Path) -> None:
    """Check that steps that overflow are counted, and do not advance the learning-rate schedule."""
    skipped = scalars(directory, "train/skipped_steps")
    scales = scalars(directory, "train/loss_scale")
    rates = scalars(directory, "train/learning_rate")
    norms = scalars(directory, "train/gradient_norm")
    config = load_config(directory / "config.json")
    factor = schedule_factor("Cosine", len(skipped), **config.scheduler.params)
    assert skipped[1] == 1
    assert 4 < skipped[len(skipped)] < len(skipped)
    for step, so_far in skipped.items():
        was_skipped = so_far > skipped.get(step - 1, 0)
        assert so_far == skipped.get(step - 1, 0) + was_skipped
        assert scales[step] == 2.0 ** (24 - so_far)
        assert rates[step] == pytest.approx(PEAK * factor(step - 1 - skipped.get(step - 1, 0)), rel=1e-6)
        assert (norms[step] == float("inf")) == was_skipped
    assert all(loss < 7 for loss in losses(directory).values())
