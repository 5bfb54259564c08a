"""Which checkpoints are taken for this run's; saving and loading are tested in test_resume.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from elc_bert.config import RunConfig
from elc_bert.config_file import load_config
from elc_bert.errors import UserError
from elc_bert.files import sha256_of
from elc_bert.training.checkpoint import Checkpoints, differences, run_identity
from elc_bert.training.distributed import World
from elc_bert.training.metrics import Progress

DATA = {"train": "1f", "dev": "2e", "tokenizer": "3d"}


@pytest.fixture
def config(configure, tmp_path) -> Path:
    return configure(tmp_path)


@pytest.fixture
def checkpoint(config: Path) -> Path:
    """A complete checkpoint after step 4 on two devices, with a stand-in for DeepSpeed's files."""
    directory = config.parent / "run" / "checkpoints" / "step-000004"
    directory.mkdir(parents=True)
    (directory / "weights.pt").write_bytes(b"weights")
    checkpoints = of(load_config(config))
    record = {
        "identity": run_identity(load_config(config), DATA),
        "layout": checkpoints._layout(),
        "progress": {"step": 4, "tokens_seen": 1000, "since_log": None},
        "config": load_config(config).model_dump(mode="json"),
        "files": {"weights.pt": sha256_of(directory / "weights.pt")},
    }
    (directory / "run.json").write_text(json.dumps(record))
    (directory.parent / "latest").write_text(directory.name)
    return directory


def of(config: RunConfig, devices: int = 2, data: dict[str, Any] = DATA) -> Checkpoints:
    return Checkpoints(config, World(0, devices, torch.device("cpu")), run_identity(config, data))


def test_the_newest_is_found_and_accepted(config, checkpoint):
    checkpoints = of(load_config(config))
    assert checkpoints.find("auto") == checkpoint
    assert checkpoints.find(str(checkpoint)) == checkpoint
    assert checkpoints.check(checkpoint) == Progress(step=4, tokens_seen=1000)


def test_a_new_run_begins_where_there_is_none(config):
    assert of(load_config(config)).find("auto") is None
    assert of(load_config(config)).find("never") is None


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("elc_bert.model.variant=base", 'model.variant: "zero" -> "base"'),
        ("elc_bert.data.mask_probability=0.2", "data.mask_probability: 0.15 -> 0.2"),
        ("elc_bert.data.segments=packed", 'data.segments: "reference" -> "packed"'),
        ("elc_bert.training.seed=7", "seed: 42 -> 7"),
        ("elc_bert.training.max_steps=30", "schedule.max_steps: 20 -> 30"),
        ("train_batch_size=16", "schedule.train_batch_size: 8 -> 16"),
        ("optimizer.params.lr=0.5", "schedule.optimizer.params.lr: 0.01 -> 0.5"),
        ("scheduler.type=Linear", 'schedule.scheduler.type: "Cosine" -> "Linear"'),
    ],
)
def test_the_identity_must_agree(config, checkpoint, override, difference):
    with pytest.raises(UserError, match="is a checkpoint of another run") as error:
        of(load_config(config, [override])).check(checkpoint)
    assert difference in str(error.value)


def test_the_data_must_be_the_same(config, checkpoint):
    with pytest.raises(UserError, match=r'another run: data\.train: "1f" -> "4c"'):
        of(load_config(config), data=DATA | {"train": "4c"}).check(checkpoint)


BLEND = DATA | {"train": ["1f", "4c"], "blend": {"32": [7, 3]}}


@pytest.mark.parametrize(
    ("data", "difference"),
    [
        (BLEND | {"blend": {"32": [3, 1]}}, r"data\.blend\.32: \[7, 3\] -> \[3, 1\]"),
        (BLEND | {"train": ["4c", "1f"]}, r'data\.train: \["1f", "4c"\] -> \["4c", "1f"\]'),
        (DATA, r'data\.train: \["1f", "4c"\] -> "1f"'),
    ],
)
def test_a_blend_must_be_the_same(config, checkpoint, data, difference):
    record = json.loads((checkpoint / "run.json").read_text())
    record["identity"] = run_identity(load_config(config), BLEND)
    (checkpoint / "run.json").write_text(json.dumps(record))
    parts = [{"path": "elsewhere/a", "weight": 0.7}, {"path": "elsewhere/b", "weight": 0.3}]
    moved = load_config(config, [f"elc_bert.data.train={json.dumps(parts)}"])
    assert of(moved, data=BLEND).check(checkpoint) == Progress(step=4, tokens_seen=1000)
    with pytest.raises(UserError, match=difference):
        of(moved, data=data).check(checkpoint)


def test_everything_else_may_change_and_what_changed_is_printed(config, checkpoint, capsys):
    moved = [
        "elc_bert.data.train=elsewhere/tiny",
        "elc_bert.data.pack=false",
        "elc_bert.training.log_every=5",
        "elc_bert.training.max_micro_batch_size=2",
        "tensorboard.enabled=false",
        "optimizer.params.fused=false",
    ]
    of(load_config(config, moved)).check(checkpoint)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 6
    assert "changed since the checkpoint: elc_bert.training.log_every: 1 -> 5" in printed
    assert "changed since the checkpoint: tensorboard.enabled: true -> false" in printed


def test_the_number_of_devices_matters_to_zero_only(config, checkpoint):
    of(load_config(config), devices=16).check(checkpoint)
    sharded = load_config(config, ["zero_optimization.stage=1"])
    with pytest.raises(UserError, match=r'zero_stage: 0 -> 1; devices: "any" -> 2'):
        of(sharded).check(checkpoint)
    with pytest.raises(UserError, match='precision: "fp32" -> "bf16"'):
        of(load_config(config, ["bf16.enabled=true"])).check(checkpoint)


def test_the_order_in_buffers_must_agree(config, checkpoint):
    """DeepSpeed would put each tensor's state into another one's place."""
    reordered = load_config(config, ["zero_optimization.round_robin_gradients=true"])
    with pytest.raises(UserError, match="round_robin_gradients: null -> true; keep these"):
        of(reordered).check(checkpoint)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1, "layout": 2}', "\0"])
def test_a_damaged_record_is_named(config, checkpoint, content):
    (checkpoint / "run.json").write_text(content)
    with pytest.raises(UserError) as error:
        of(load_config(config)).check(checkpoint)
    assert str(checkpoint / "run.json") in str(error.value)


def test_damaged_and_missing_files_are_named(config, checkpoint):
    (checkpoint / "weights.pt").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"weights\.pt: is damaged; resume from an older checkpoint"):
        of(load_config(config)).check(checkpoint)
    (checkpoint / "weights.pt").unlink()
    with pytest.raises(UserError, match=r"weights\.pt: is missing"):
        of(load_config(config)).check(checkpoint)


def test_differences_name_every_leaf():
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": True}
    after = {"a": 1, "b": {"c": [1, 3], "d": None}, "new": "x"}
    assert differences(before, after) == [
        "b.c: [1, 2] -> [1, 3]",
        "gone: true -> null",
        'new: null -> "x"',
    ]


def test_dropping_old_ones_spares_the_newest_even_below_a_later_one(config):
    """As after --resume DIR from an early checkpoint."""
    checkpoints = of(load_config(config, ["elc_bert.checkpoint.keep=1"]))
    names = ["step-000020", "step-000040", "step-000060", "step-1000000", "step-000020-mine"]
    for name in [*names, ".step-000010.partial"]:
        (checkpoints.directory / name).mkdir(parents=True)
    checkpoints._drop_old(checkpoints.directory / "step-000040")
    left = {path.name for path in checkpoints.directory.iterdir()}
    assert left == {"step-000020-mine", "step-000040", "step-000060", "step-1000000"}
    checkpoints._drop_old(checkpoints.directory / "step-1000000")
    assert {path.name for path in checkpoints.directory.iterdir()} == {"step-000020-mine", "step-1000000"}
