"""A run resumes with another number of devices, ZeRO stage or micro-batch, with equal losses."""

import itertools
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from elc_bert.checkpoint.reshard import SavedState
from elc_bert.engine.checkpoint_reader import allowed_classes
from tests.support.launching import NO_DROPOUT, PRETRAIN_EACH, largest_difference, losses, run

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(400)]

BF16 = {"bf16": {"enabled": True}}
RUN: dict[str, Any] = {
    "train_batch_size": 24,
    "model": {"hidden_size": 25, "num_attention_heads": 5, "intermediate_size": 37, **NO_DROPOUT},
    "training": {"max_steps": 40, "long_after": 0.9},
    "checkpoint": {"every": 20},
}
"""Settings of every run. No size is divisible by the ranks, and sequences become longer at step 36."""
ADAMW = {"optimizer": {"type": "AdamW", "params": {"lr": 0.003, "torch_adam": True}}}


def zero(stage: int, **settings: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage, **settings}}


SUB_GROUPS = zero(3, sub_group_size=500, stage3_param_persistence_threshold=0)
"""ZeRO stage 3 with every parameter partitioned and each parameter group divided into sub-groups."""
REORDERED = zero(2, round_robin_gradients=True)
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}
SOURCES = {
    "stage 1": zero(1),
    "stage 0": zero(0),
    "stage 2 reordered": REORDERED,
    "stage 2 reordered and aligned": zero(2, round_robin_gradients=True, parameter_alignment=True),
    "stage 3 sub-groups": SUB_GROUPS,
    "AdamW stage 1": ADAMW | zero(1),
    "bf16 stage 1": BF16 | zero(1),
}
"""Changes of ``RUN`` for the uninterrupted runs on two ranks, by name of the run."""
FOUR_MICRO_BATCHES = {"train_micro_batch_size_per_gpu": 6}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "1 rank, stage 0": ("stage 1", 1, zero(0) | {"train_micro_batch_size_per_gpu": 12}),
    "3 ranks, stage 2": ("stage 1", 3, zero(2)),
    "2 ranks, stage 3": ("stage 1", 2, zero(3)),
    "1 rank, stage 1, accumulation 4": ("stage 1", 1, zero(1) | FOUR_MICRO_BATCHES),
    "stage 0 to stage 2 on 3 ranks": ("stage 0", 3, zero(2)),
    "stage 2 reordered to stage 1 on 3 ranks": ("stage 2 reordered", 3, zero(1)),
    "stage 3 to stage 3 on 3 ranks": ("stage 3 sub-groups", 3, zero(3, **OFFLOAD)),
    "stage 3 to stage 0 on 1 rank": ("stage 3 sub-groups", 1, zero(0)),
    "AdamW to stage 3 on 3 ranks": ("AdamW stage 1", 3, ADAMW | zero(3)),
    "AdamW to stage 0 on 1 rank": ("AdamW stage 1", 1, ADAMW | zero(0)),
    "bf16 to stage 2 on 3 ranks": ("bf16 stage 1", 3, BF16 | zero(2)),
    "bf16 to stage 3": ("bf16 stage 1", 2, BF16 | zero(3)),
    "bf16 to stage 0 on 1 rank": ("bf16 stage 1", 1, BF16 | zero(0)),
}
"""Resumed runs by name: the run whose checkpoint is used, the number of ranks, and changes of ``RUN``."""


@pytest.fixture(scope="module")
def sources(configure, tmp_path_factory) -> dict[str, Path]:
    """Output directories of the uninterrupted runs, each with a checkpoint of step 20, by name."""
    folder = tmp_path_factory.mktemp("sources")
    configs = {
        name: configure(folder / name.replace(" ", "-"), **RUN, **case) for name, case in SOURCES.items()
    }
    result = run("forked", 2, list(configs.values()), timeout=300, script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.fixture(scope="module")
def resumed(configure, sources, tmp_path_factory) -> dict[str, Path]:
    """Output directories of the runs resumed from step 20, by name. Each number of ranks takes one launch."""
    folder = tmp_path_factory.mktemp("resumed")
    configs = {}
    for name, (source, _, changes) in CASES.items():
        configs[name] = configure(folder / name.replace(" ", "-"), **RUN, **changes)
        checkpoints = configs[name].parent / "run" / "checkpoints"
        shutil.copytree(sources[source] / "checkpoints" / "step-000020", checkpoints / "step-000020")
    for ranks in (1, 2, 3):
        paths = [configs[name] for name, case in CASES.items() if case[1] == ranks]
        arguments = [*paths, "--resume", "auto"]
        result = run("forked", ranks, arguments, timeout=300, script=PRETRAIN_EACH)
        assert result.status == 0, result.output
        assert result.stdout.count("after step 20, from") == len(paths)
        assert "changed since the checkpoint: layout." in result.stdout
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.mark.parametrize("case", CASES)
def test_losses_of_a_resumed_run_equal_those_of_the_uninterrupted_run(sources, resumed, case):
    source = CASES[case][0]
    expected = {step: loss for step, loss in losses(sources[source]).items() if step > 20}
    assert len(expected) == 20
    # In bf16, a sum that is divided differently among ranks is rounded differently, even without resuming.
    assert largest_difference(losses(resumed[case]), expected) < (2e-3 if "bf16" in case else 1e-5)


@pytest.mark.parametrize("source", ["stage 1", "stage 2 reordered and aligned", "stage 3 sub-groups"])
def test_ds_to_universal_converts_a_checkpoint_to_the_same_state(sources, source, tmp_path, capsys):
    """DeepSpeed's universal checkpoint holds bit-identical tensors. Stage 0 cannot be converted to one.

    With reordering alone the tool of DeepSpeed 0.19.8 mixes up tensors (see ``engine.zero_layout``).
    """
    from deepspeed.checkpoint import ds_to_universal

    checkpoint = sources[source] / "checkpoints" / "step-000020"
    arguments = Namespace(
        input_folder=str(checkpoint),
        output_folder=str(tmp_path / "universal"),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    ds_to_universal.main(arguments)
    capsys.readouterr()
    saved = SavedState(checkpoint)
    # A tied matrix is stored under two names, and its moments under the first one only.
    names = {path.parent.name for path in (tmp_path / "universal" / "zero").glob("*/exp_avg.pt")}
    assert len(names) > 20
    for name, key in itertools.product(names, ("fp32", "exp_avg", "exp_avg_sq")):
        with torch.serialization.safe_globals(allowed_classes()):
            theirs = torch.load(tmp_path / "universal" / "zero" / name / f"{key}.pt", weights_only=True)
        # With ZeRO 3, the file holds a tensor, otherwise a dict with the tensor.
        theirs = theirs["param"] if isinstance(theirs, dict) else theirs
        assert torch.equal(theirs.flatten(), saved.whole(name, key)), (name, key)
