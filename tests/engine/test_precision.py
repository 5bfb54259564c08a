"""All parts of a run agree on its precision, however the configuration spells it."""

import re
from pathlib import Path

import pytest
import torch

from elc_bert.checkpoint.files import read_record
from elc_bert.config.reader import load_config
from elc_bert.engine.checkpoint_reader import load_state
from elc_bert.planner.devices import DEVICES
from elc_bert.planner.plan import Machine, as_text, make_plan
from elc_bert.training.setup import DTYPES
from tests.support.launching import PRETRAIN_EACH, run

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

SPELLINGS = [
    ("bf16", True, "bf16"),
    ("bf16", "True", "bf16"),
    ("bf16", False, "fp32"),
    ("bf16", "False", "fp32"),
    ("fp16", "False", "fp32"),
    ("torch_autocast", "True", "bf16 autocast"),
    ("torch_autocast", "False", "fp32"),
]
"""Section, value of ``enabled``, and the precision that it stands for."""
WEIGHTS = {"bf16": torch.bfloat16, "fp32": torch.float32, "bf16 autocast": torch.float32}


@pytest.fixture(scope="module")
def runs(configure, tmp_path_factory) -> list[tuple[Path, str]]:
    """Configuration and start table of a run of one step for each spelling, all in one launch."""
    folder = tmp_path_factory.mktemp("precision")
    configs = [
        configure(folder / str(number), **{section: {"enabled": value}}, training={"max_steps": 1})
        for number, (section, value, _) in enumerate(SPELLINGS)
    ]
    result = run("forked", 1, configs, script=PRETRAIN_EACH)
    assert result.status == 0, result.output
    rows = re.findall(r"^ +precision +(.*), ZeRO stage 0$", result.stdout, re.MULTILINE)
    return list(zip(configs, rows, strict=True))


@pytest.mark.parametrize("number", range(len(SPELLINGS)))
def test_table_weights_checkpoint_and_planner_agree(runs, number):
    path, in_table = runs[number]
    expected = SPELLINGS[number][2]
    checkpoint = path.parent / "run" / "checkpoints" / "step-000001"
    weights = load_state(checkpoint / "mp_rank_00_model_states.pt")["module"]
    assert {tensor.dtype for tensor in weights.values() if tensor.is_floating_point()} == {WEIGHTS[expected]}
    assert in_table == expected
    record = read_record(checkpoint)
    assert record["layout"]["precision"] == expected
    section, value, _ = SPELLINGS[number]
    assert record["config"][section] == {"enabled": value in (True, "True")}
    config = load_config(path)
    assert config.precision == expected
    assert DTYPES[config.precision] == (torch.float32 if expected == "fp32" else torch.bfloat16)
    plan = as_text(make_plan(config, Machine(DEVICES["A100-80"], 1, 300.0, 0.4, "fused")))
    assert re.search(rf"precision +{expected}, ZeRO stage 0", plan)
    assert load_config(path.parent / "run" / "config.json").precision == expected
