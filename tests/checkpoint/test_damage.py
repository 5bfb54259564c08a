"""Damage to any file of a checkpoint is detected and named, and the previous checkpoint is used."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from elc_bert.checkpoint.files import read_record
from elc_bert.checkpoint.manager import Checkpoints
from elc_bert.config.reader import load_config
from elc_bert.distributed.world import World
from tests.support.launching import run, scalars

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(300)]

RUN = {"zero_optimization": {"stage": 2}, "training": {"max_steps": 8}, "checkpoint": {"every": 4}}


@pytest.fixture(scope="module")
def finished_run(configure, tmp_path_factory) -> Path:
    """Output directory of a run on two ranks, with checkpoints of steps 4 and 8."""
    config = configure(tmp_path_factory.mktemp("damage"), **RUN)
    result = run("forked", 2, ["--deepspeed_config", config])
    assert result.status == 0, result.output
    return config.parent / "run"


def truncate(path: Path, draw: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def flip_a_bit(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def delete(path: Path, draw: random.Random) -> None:
    path.unlink()


DAMAGES: list[Callable[[Path, random.Random], None]] = [truncate, flip_a_bit, delete]


def test_damage_to_any_file_is_detected(finished_run, single_process_group, caplog):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed of the damage: {seed}")  # pytest shows this line if the test fails
    draw = random.Random(seed)
    directory = finished_run / "checkpoints"
    newest = directory / "step-000008"
    config = load_config(finished_run / "config.json")
    checkpoints = Checkpoints(config, World(0, 1, torch.device("cpu")), read_record(newest)["identity"])
    path, _ = checkpoints.find("auto")
    assert path == newest
    whole = shutil.copytree(newest, finished_run / "whole")
    names = sorted(file.name for file in newest.iterdir())
    assert len(names) == 8, "weights, model, run, and two files of each rank"
    for name in names:
        for damage in DAMAGES:
            for _ in range(1 if damage is delete else 5):
                damage(newest / name, draw)
                caplog.clear()
                path, record = checkpoints.find("auto")
                assert path == directory / "step-000004", (seed, name, damage)
                assert record["progress"]["step"] == 4
                (first, *_) = caplog.messages
                assert first.startswith(f"{newest / name}: ")
                assert "resuming from step-000004" in first
                shutil.copy(whole / name, newest)
    path, _ = checkpoints.find("auto")
    assert path == newest


def test_stall_and_write_times_of_checkpoints_are_logged(finished_run):
    for tag in ("checkpoint/stall_seconds", "checkpoint/write_seconds"):
        assert len(scalars(finished_run, tag)) == 2
        assert all(seconds > 0 for seconds in scalars(finished_run, tag).values())
