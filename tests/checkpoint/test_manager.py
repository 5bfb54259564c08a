"""Choice of the checkpoint to resume from. Saving and loading are tested in test_resume.py."""

import contextlib
import itertools
import json
import logging
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from elc_bert.checkpoint.files import (
    newest_first,
    partial_path,
    read_record,
    write_rank,
)
from elc_bert.checkpoint.identity import check_order_is_recorded, differences, run_identity
from elc_bert.checkpoint.load_model import newest_checkpoint
from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.checkpoint.publish import publish
from elc_bert.config.reader import load_config
from elc_bert.config.schema import CheckpointConfig, RunConfig
from elc_bert.distributed.collectives import SharedUserError
from elc_bert.distributed.world import World
from elc_bert.utils.errors import UserError
from tests.checkpoint.records import DATA, PROGRESS, rewrite_record

pytestmark = pytest.mark.usefixtures("single_process_group")


def checkpoints_of(config: RunConfig, data: dict[str, Any] = DATA) -> Checkpoints:
    """Return the checkpoints of a run on one rank that reads the given data."""
    return Checkpoints(config, World(0, 1, torch.device("cpu")), run_identity(config, data))


def find_checkpoint(checkpoints: Checkpoints, resume: str = "auto") -> Path:
    """Return the checkpoint that ``resume`` selects, and check that it is the one after step 4."""
    path, record = checkpoints.find(resume)
    assert record["progress"] == PROGRESS
    return path


def test_resume_auto_finds_the_newest_checkpoint(config, checkpoint):
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert find_checkpoint(checkpoints_of(load_config(config)), str(checkpoint)) == checkpoint


def test_resume_auto_starts_a_new_run_without_checkpoints(config):
    assert checkpoints_of(load_config(config)).find("auto") is None
    assert checkpoints_of(load_config(config)).find("never") is None


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
def test_a_checkpoint_of_a_run_with_another_identity_is_refused(config, checkpoint, override, difference):
    with pytest.raises(UserError, match="is a checkpoint of another run") as error:
        checkpoints_of(load_config(config, [override])).find("auto")
    assert difference in str(error.value)


def test_a_checkpoint_of_a_run_on_other_data_is_refused(config, checkpoint):
    with pytest.raises(UserError, match=r'another run: data\.train: "1f" -> "4c"'):
        checkpoints_of(load_config(config), data=DATA | {"train": "4c"}).find("auto")


def test_the_tokenizer_file_of_an_old_checkpoint_is_ignored(config, checkpoint):
    other_file = DATA | {"tokenizer": "4d"}
    no_file = {name: DATA[name] for name in ("train", "dev")}
    for data in (other_file, no_file):
        assert find_checkpoint(checkpoints_of(load_config(config), data=data)) == checkpoint


BLEND = DATA | {"train": ["1f", "4c"], "blend": {"32": [7, 3]}}


@pytest.mark.parametrize(
    ("data", "difference"),
    [
        (BLEND | {"blend": {"32": [3, 1]}}, r"data\.blend\.32: \[7, 3\] -> \[3, 1\]"),
        (BLEND | {"train": ["4c", "1f"]}, r'data\.train: \["1f", "4c"\] -> \["4c", "1f"\]'),
        (DATA, r'data\.train: \["1f", "4c"\] -> "1f"'),
    ],
)
def test_a_checkpoint_of_a_run_on_another_blend_is_refused(config, checkpoint, data, difference):
    rewrite_record(checkpoint, identity=run_identity(load_config(config), BLEND))
    parts = [{"path": "elsewhere/a", "weight": 0.7}, {"path": "elsewhere/b", "weight": 0.3}]
    moved = load_config(config, [f"elc_bert.data.train={json.dumps(parts)}"])
    assert find_checkpoint(checkpoints_of(moved, data=BLEND)) == checkpoint
    with pytest.raises(UserError, match=difference):
        checkpoints_of(moved, data=data).find("auto")


@pytest.mark.parametrize(
    ("layout", "is_wrong"),
    [
        ({"zero_stage": 1, "round_robin_gradients": True}, True),
        ({"zero_stage": 2, "round_robin_gradients": True, "parameter_alignment": False}, True),
        ({"zero_stage": 2, "round_robin_gradients": True, "parameter_alignment": True}, False),
        ({"zero_stage": 2, "round_robin_gradients": None}, False),
        ({"zero_stage": 3, "round_robin_gradients": True}, False),
    ],
)
def test_a_wrong_order_of_tensors_in_an_earlier_versions_record_is_noticed(layout, is_wrong):
    record = {"layout": layout, "identity": {"schedule": {}}}
    with pytest.raises(UserError, match="recorded a wrong order") if is_wrong else contextlib.nullcontext():
        check_order_is_recorded(Path("step-000004"), record)
    record["identity"]["schedule"]["first_steps"] = {"long": 18}
    check_order_is_recorded(Path("step-000004"), record)


def test_settings_outside_of_the_identity_may_change_and_are_logged(config, checkpoint, caplog):
    caplog.set_level(logging.INFO)
    moved = [
        "elc_bert.data.train=elsewhere/tiny",
        "elc_bert.data.pack=false",
        "elc_bert.training.log_every=5",
        "elc_bert.training.max_micro_batch_size=2",
        "tensorboard.enabled=false",
        "optimizer.params.fused=false",
        "zero_optimization.stage=1",
    ]
    assert find_checkpoint(checkpoints_of(load_config(config, moved))) == checkpoint
    assert len(caplog.messages) == 9
    assert "changed since the checkpoint: layout.zero_stage: 0 -> 1" in caplog.messages
    assert 'changed since the checkpoint: layout.devices: "any" -> 1' in caplog.messages
    assert "changed since the checkpoint: elc_bert.training.log_every: 1 -> 5" in caplog.messages
    assert "changed since the checkpoint: tensorboard.enabled: true -> false" in caplog.messages


def test_a_checkpoint_of_a_version_that_rounded_shares_is_resumed_with_a_warning(config, checkpoint, caplog):
    """Earlier versions rounded 20 * 0.93 up, to 19, and recorded no steps."""
    settings = ["elc_bert.training.long_after=0.93", "scheduler.params.warmup_proportion=0.08"]
    resumed = checkpoints_of(load_config(config, settings))
    identity = run_identity(load_config(config, settings), DATA)
    assert identity["schedule"].pop("first_steps") == {"peak": 1, "long": 18}
    rewrite_record(checkpoint, identity=identity)
    assert find_checkpoint(resumed) == checkpoint
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [message.rpartition("version: ")[2] for message in warnings] == [
        "schedule.first_steps.peak: 2 -> 1",
        "schedule.first_steps.long: 19 -> 18",
    ]
    identity["schedule"]["first_steps"] = {"peak": 2, "long": 18}
    rewrite_record(checkpoint, identity=identity)
    with pytest.raises(UserError, match=r"another run: schedule\.first_steps\.peak: 2 -> 1"):
        resumed.find("auto")


def test_a_checkpoint_of_such_a_version_is_resumed_without_a_warning_if_no_step_moves(
    config, checkpoint, caplog
):
    identity = run_identity(load_config(config), DATA)
    assert identity["schedule"].pop("first_steps") == {"peak": 2, "long": 20}
    rewrite_record(checkpoint, identity=identity)
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1, "layout": 2}', "\0"])
def test_the_error_for_a_damaged_record_names_its_file(config, checkpoint, content):
    (checkpoint / "run.json").write_text(content)
    with pytest.raises(UserError) as error:
        checkpoints_of(load_config(config)).find("auto")
    assert str(checkpoint / "run.json") in str(error.value)


def test_any_changed_byte_of_a_record_is_detected(checkpoint):
    path = checkpoint / "run.json"
    whole = path.read_bytes()
    for offset in random.Random(1).sample(range(len(whole)), 300):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            read_record(checkpoint)
        path.write_bytes(whole[:offset])
        with pytest.raises(UserError, match="is damaged"):
            read_record(checkpoint)
    path.write_bytes(whole)
    assert read_record(checkpoint)["progress"] == PROGRESS


def test_damaged_files_are_named_and_the_previous_checkpoint_is_used(config, checkpoint, caplog):
    newer = checkpoint.with_name("step-000006")
    shutil.copytree(checkpoint, newer)
    (checkpoint.parent / "latest").write_text(newer.name)
    (newer / "weights.pt").write_bytes(b"weighty")
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert f"{newer / 'weights.pt'}: is damaged" in caplog.text
    (newer / "weights.pt").unlink()
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert f"{newer / 'weights.pt'}: cannot be read (No such file" in caplog.text
    shutil.rmtree(newer)
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert "step-000006/run.json: cannot be read" in caplog.text

    with pytest.raises(UserError, match="step-000006: no such checkpoint"):
        checkpoints_of(load_config(config)).find(str(newer))
    (checkpoint / "weights.pt").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"step-000006/run\.json.*; .*step-000004/weights\.pt: is damaged"):
        checkpoints_of(load_config(config)).find("auto")


def test_newest_first_begins_with_latest_and_leaves_out_newer_checkpoints(tmp_path):
    assert newest_first(tmp_path / "none") == []
    for step in (2, 10, 1000000):
        (tmp_path / f"step-{step:06d}").mkdir()
    (tmp_path / ".step-000012.partial").mkdir()
    names = ["step-1000000", "step-000010", "step-000002"]
    for latest, expected in [
        (None, names),
        ("step-1000000", names),
        ("step-000010\n", names[1:]),
        # ``latest`` names a checkpoint that does not exist.
        ("step-000011", ["step-000011", *names[1:]]),
        # ``latest`` is damaged.
        ("", names),
        ("\0", names),
        ("step-00010", names),
        (f"step-{'1' * 300}", names),
    ]:
        if latest is not None:
            (tmp_path / "latest").write_text(latest)
        assert [path.name for path in newest_first(tmp_path)] == expected


@pytest.mark.parametrize("name", ["../..", "..", ".", "../step-000004", "/{}", "a/step-000004", "..\\\\x"])
def test_a_latest_that_leads_out_of_the_directory_is_refused(config, checkpoint, name):
    name = name.replace("{}", str(checkpoint))
    shutil.copytree(checkpoint, checkpoint.parents[1] / checkpoint.name)
    (checkpoint.parent / "latest").write_text(f"{name}\n")
    for resume in ("auto", "never"):
        with pytest.raises(UserError) as error:
            checkpoints_of(load_config(config)).find(resume)
        assert str(error.value).startswith(f"{checkpoint.parent / 'latest'}: names {name[:80]!r}, ")
    with pytest.raises(UserError, match="latest: names"):
        newest_checkpoint(checkpoint.parents[1])
    assert find_checkpoint(checkpoints_of(load_config(config)), str(checkpoint)) == checkpoint


def test_a_damaged_latest_is_reported(config, checkpoint, caplog):
    latest = checkpoint.parent / "latest"
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert newest_checkpoint(checkpoint.parents[1]) == checkpoint
    assert caplog.messages == []
    latest.write_bytes(b"\0\xff")
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert caplog.messages == [f"{latest}: names no checkpoint; trying step-000004 first"]
    with pytest.raises(UserError, match=f"^{latest}: names no checkpoint; "):
        newest_checkpoint(checkpoint.parents[1])
    latest.unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        newest_checkpoint(checkpoint.parents[1])


@pytest.mark.parametrize("setting", ["elc_bert.training.output_dir", "--resume", "below"])
def test_a_name_that_is_too_long_is_a_user_error(config, setting):
    name = "n" * 300
    override = [] if setting == "--resume" else [f"elc_bert.training.output_dir={name}"]
    if setting == "below":
        override[0] += "/run"
    with pytest.raises(SharedUserError) as error:
        checkpoints_of(load_config(config, override)).find(name if setting == "--resume" else "auto")
    assert re.fullmatch(rf"{name}[^ ]*: File name too long; choose a shorter name", str(error.value))


@pytest.mark.parametrize("renamed", [0, 1])
def test_a_kill_during_the_replacement_of_a_checkpoint_leaves_a_valid_one(
    config, checkpoint, monkeypatch, renamed
):
    class Kill(BaseException):
        pass

    def replace(source, target):
        if checkpoint in (source, target) and next(renames) == renamed:
            raise Kill
        rename(source, target)

    rename, renames, partial = os.replace, itertools.count(), partial_path(checkpoint)
    partial.mkdir()
    write_rank(partial, 0, 1, dict, pieces=None)
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Kill):
        publish(checkpoint, read_record(checkpoint), {}, {}, CheckpointConfig(keep=1))
    monkeypatch.undo()
    assert checkpoint.exists() == (renamed == 0)
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint


def test_differences_names_every_key_that_changed():
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "gone": True}
    after = {"a": 1, "b": {"c": [1, 3], "d": None}, "new": "x"}
    assert differences(before, after) == [
        "b.c: [1, 2] -> [1, 3]",
        "gone: true -> null",
        'new: null -> "x"',
    ]


def test_a_resumed_run_that_measures_in_another_way_is_warned(config, checkpoint, caplog):
    changed = load_config(config, ["elc_bert.evaluation.mask_probability=0.5"])
    assert find_checkpoint(checkpoints_of(changed)) == checkpoint
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.endswith("set elc_bert.evaluation.seed=42 and elc_bert.evaluation.mask_probability=0.15")


def test_a_secret_in_an_old_checkpoint_is_not_logged(config, checkpoint, caplog):
    caplog.set_level(logging.INFO)
    record = read_record(checkpoint)
    rewrite_record(checkpoint, config={**record["config"], "comet": {"api_key": "s3cr3t"}})
    assert find_checkpoint(checkpoints_of(load_config(config))) == checkpoint
    assert 'changed since the checkpoint: comet: {"api_key": "(removed)"} -> null' in caplog.messages
