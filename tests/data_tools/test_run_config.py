"""The option ``--config``: the datasets, sequence lengths and segment policy that a run needs."""

import json
from pathlib import Path

import pytest

from data_tools.run_config import RunNeeds, read_run_config
from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.reader import load_config
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.utils.errors import UserError
from tests.config.test_deepspeed_sections import configuration
from tests.data_tools.running import run

DS_CONFIGS = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def needs_of_run(path: Path) -> RunNeeds:
    """Return what a run of this configuration opens."""
    config = load_config(path)
    data = config.elc_bert.data
    lengths = {config.elc_bert.training.sequence_length}
    lengths |= {phase.sequence_length for phase in length_schedule(config).phases}
    return RunNeeds([*(each.path for each in data.train), data.dev], sorted(lengths), data.segments)


@pytest.mark.parametrize("path", DS_CONFIGS, ids=lambda path: path.stem)
def test_needs_are_those_of_the_run(path):
    assert read_run_config(path) == needs_of_run(path)


@pytest.mark.parametrize(
    "elc_bert",
    [
        {},
        {"training": {"sequence_length": 64}},
        {"training": {"long_after": 1.0}},
        {"training": {"long_after": 0.0, "sequence_length": 32}},
        {"training": {"long_after": 1}, "data": {"segments": "packed"}},
        {"data": {"train": [{"path": "a", "weight": 1}, {"path": "b", "weight": 2}]}},
        {"data": {"train": ["a"], "dev": "b"}},
    ],
)
def test_defaults_are_those_of_the_run(elc_bert, tmp_path):
    path = configuration(tmp_path)
    content = json.loads(path.read_text())
    for section, values in elc_bert.items():
        content["elc_bert"][section] |= values
    path.write_text(json.dumps(content))
    assert read_run_config(path) == needs_of_run(path)


SECTIONS = {"data": {"train": "a", "dev": "b"}, "training": {}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([], r"run\.json: not the configuration of a run"),
        ({"data": {"train": "a"}, "training": {}}, r"run\.json: not the .* \(KeyError\('dev'\)\)"),
        (
            SECTIONS | {"data": {"train": "a", "dev": "b", "segments": "x"}},
            "= 'x': use one of: reference, packed",
        ),
        (SECTIONS | {"training": {"sequence_length": "long"}}, "not the configuration of a run .ValueError"),
        (SECTIONS | {"training": {"sequence_length": 4}}, "sequence length 4 is too short"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(content, expected, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"elc_bert": content}))
    with pytest.raises(UserError, match=expected):
        read_run_config(path)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    path = tmp_path / "run.json"
    with pytest.raises(UserError, match=r"run\.json: No such file"):
        read_run_config(path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"run\.json:1:2: not valid JSON: "):
        read_run_config(path)


@pytest.mark.parametrize("policy", ["reference", "packed"])
def test_build_and_segments_take_what_a_run_needs_from_its_configuration(
    policy, tiny_text, tiny_tokenizer, tmp_path
):
    train, dev = tmp_path / "train", tmp_path / "dev"
    path = configuration(tmp_path)
    content = json.loads(path.read_text())
    content["elc_bert"]["data"] |= {"train": str(train), "dev": str(dev), "segments": policy}
    content["elc_bert"]["training"] |= {"sequence_length": 16}
    path.write_text(json.dumps(content))
    options = ["--input", tiny_text, "--tokenizer", tiny_tokenizer]
    done = run("build", *options, "--output", train, "--config", path)
    assert done.returncode == 0, done.stderr
    assert [(each.sequence_length, each.policy) for each in IndexedDataset(train).manifest.segments] == [
        (16, policy),
        (64, policy),
    ]
    assert f"segments of 64{', packed' if policy == 'packed' else ''}" in done.stdout

    assert run("build", *options, "--output", dev, "--lengths", "32").returncode == 0
    done = run("segments", "--config", path)
    assert done.returncode == 0, done.stderr
    added = {(each.sequence_length, each.policy) for each in IndexedDataset(dev).manifest.segments}
    assert added == {(32, "reference"), (16, policy), (64, policy)}
    # At 16 tokens, many sentences are cut, of which the policy "reference" warns.
    lines = [line for line in done.stdout.splitlines() if ": warning: " not in line]
    assert len(lines) == 4
    assert len(done.stdout.splitlines()) == (6 if policy == "reference" else 4)


BUILD = ["build", "--input", "a", "--tokenizer", "b", "--output", "c"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["segments", "a"], "--lengths: give the sequence lengths, or --config"),
        (["segments", "a", "--lengths", "32", "--config", "b"], "--lengths: give the sequence lengths, or"),
        (["segments", "--lengths", "32"], "PREFIX: missing; give the datasets, or --config"),
        ([*BUILD, "--lengths", "32", "--config", "d"], "--lengths: not needed with --config"),
    ],
)
def test_lengths_and_config_exclude_each_other(arguments, expected):
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"data_tools: error: {expected}")
