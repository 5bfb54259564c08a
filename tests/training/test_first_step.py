"""The first step of two ranks equals that of plain PyTorch on the whole batch, however it is divided."""

from pathlib import Path
from typing import Any

import pytest

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.data.sampling.blend import Portion
from elc_bert.data.sampling.masking import Masking
from elc_bert.data.sampling.steps import TrainingSteps
from tests.support.launching import NO_DROPOUT, PRETRAIN_EACH, run
from tests.support.plain_step import assert_first_step, plain_step

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(200)]

ONE_STEP: dict[str, Any] = {
    "gradient_clipping": 0.5,
    "scheduler": {"params": {"warmup_proportion": 0.0}},
    "data": {"short_probability": 0.7},
    "model": NO_DROPOUT
    | {"hidden_size": 25, "num_attention_heads": 5, "intermediate_size": 37, "variant": "weighted_output"},
    "training": {"max_steps": 1, "label_smoothing": 0.2, "max_micro_batch_size": 2},
}
"""No size of the model is divisible by the number of ranks, and the ranks predict unequally many tokens."""
SMALL_SUB_GROUPS = {"sub_group_size": 500, "stage3_param_persistence_threshold": 0}
CASES: dict[str, dict[str, Any]] = {
    **{f"stage {stage}": {"zero_optimization": {"stage": stage}} for stage in (0, 1, 2)},
    "stage 3": {"zero_optimization": {"stage": 3, **SMALL_SUB_GROUPS}},
    "unpacked": {"data": {"short_probability": 0.7, "pack": False}},
    "worker": {"data": {"short_probability": 0.7, "workers": 1}},
    "no clipping": {"gradient_clipping": 0.0},
    "no decay": {"optimizer": {"params": {"weight_decay": 0.0}}},
    "other options of LAMB": {"optimizer": {"params": {"betas": [0.5, 0.7], "eps": 0.01, "lr": 0.02}}},
}


@pytest.fixture(scope="module")
def two_ranks(configure, tmp_path_factory) -> dict[str, Path]:
    """Output directories of all cases, run in one launch."""
    folder = tmp_path_factory.mktemp("first-step")
    configs = {
        name: configure(folder / name.replace(" ", "-"), **ONE_STEP | case) for name, case in CASES.items()
    }
    result = run("forked", 2, list(configs.values()), script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    return {name: path.parent / "run" for name, path in configs.items()}


@pytest.mark.parametrize("case", CASES)
def test_the_first_step_equals_plain_pytorch_on_the_whole_batch(two_ranks, tiny_dataset, case):
    (batch,) = TrainingSteps(
        [Portion(tiny_dataset)],
        LengthSchedule(1, 32, 8, 1.0),
        42,
        Masking(short_p=0.7),
        vocab_size=512,
        rank=0,
        world_size=1,
        micro_batch_of=lambda phase: 8,
    )[0]
    config = load_config(two_ranks[case] / "config.json")
    expected = plain_step(config, batch, label_smoothing=0.2)
    assert expected.gradient_norm > 0.5, "the gradient is clipped"
    assert_first_step(two_ranks[case], expected)
