"""A run without segment indexes names all of them at once, and the command that adds them works."""

import shlex
import shutil
import subprocess
import sys

import pytest
import torch

from elc_bert.config.batch_plan import plan_phases
from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments, open_segments
from elc_bert.distributed.world import World
from elc_bert.training.data import open_data
from elc_bert.utils.errors import UserError
from tests.support.launching import REPOSITORY


@pytest.fixture
def datasets(tiny_dataset, second_dataset, tmp_path):
    """Two datasets in a folder whose name has a blank, with indexes for 32 and 128."""
    folder = tmp_path / "a b"
    folder.mkdir()
    for prefix in (tiny_dataset, second_dataset):
        for file in prefix.parent.glob(f"{prefix.name}.*"):
            shutil.copy(file, folder)
    return folder / tiny_dataset.name, folder / second_dataset.name


def open_data_of(config):
    schedule = length_schedule(config)
    return open_data(config, schedule, plan_phases(config, schedule, 1), World(0, 1, torch.device("cpu")))


@pytest.mark.parametrize("policy", ["reference", "packed"])
def test_all_missing_indexes_are_named_with_a_command_that_works(configure, datasets, tmp_path, policy):
    train, dev = datasets
    config = load_config(
        configure(
            tmp_path / "run",
            data={"train": str(train), "dev": str(dev), "segments": policy},
            training={"sequence_length": 16, "long_after": 0.5},
        )
    )
    with pytest.raises(UserError) as error:
        open_data_of(config)
    kind = "" if policy == "reference" else "packed "
    message, _, command = str(error.value).partition("; run: ")
    assert message == (
        f"{train}: no {kind}segment index for sequence lengths 16 and 64; "
        f"{dev}: no {kind}segment index for sequence length 16"
    )
    python, *arguments = shlex.split(command)
    assert python == "python"
    subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, check=True, capture_output=True, timeout=60)
    data = open_data_of(config)
    assert set(data.sequences_per_row) == {16, 64}


def test_indexes_that_exist_are_not_named(configure, datasets, tmp_path):
    """The long sequences of the training dataset are missing only; the held-out text needs none."""
    train, dev = datasets
    changes = {"data": {"train": str(train), "dev": str(dev)}}
    training = {"sequence_length": 16, "long_after": 0.5}
    config = load_config(configure(tmp_path / "run", **changes, training=training))
    for prefix in datasets:
        build_segments(IndexedDataset(prefix), 16)
    with pytest.raises(UserError) as error:
        open_data_of(config)
    assert str(error.value) == (
        f"{train}: no segment index for sequence length 64; run: python -m data_tools segments "
        f"{shlex.quote(str(train))} --lengths 64"
    )
    training["long_after"] = 1.0
    never_long = load_config(configure(tmp_path / "short", **changes, training=training))
    assert set(open_data_of(never_long).sequences_per_row) == {16}
    with pytest.raises(UserError, match=r"no segment index for sequence length 64; run: "):
        open_segments(IndexedDataset(dev), 64)
