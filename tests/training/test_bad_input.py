"""Every user error ends the whole launch within seconds, with one line that says what to do."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from elc_bert.checkpoint.files import read_record, with_checksum
from elc_bert.utils.machine import free_port
from tests.support.launching import PRETRAIN, Result, finish, run, spawn

pytestmark = [pytest.mark.launcher, pytest.mark.timeout(600)]

AT_ONCE = 3
"""Number of launches that run at the same time, each with two ranks."""
WITH_DEEPSPEED = ("unknown_key", "truncated_bin", "resuming_another_model")
"""Mistakes that are tested with DeepSpeed's launcher. They end before and after the ranks connect."""
SECONDS = 60


@dataclass
class Mistake:
    """Arguments of a user's mistake, and facts that the error message must contain."""

    arguments: list[Any]
    expected: list[str]


class UserFolder:
    """Folder with a valid dataset, tokenizer, configuration and finished run, which a test may damage."""

    def __init__(self, folder: Path, dataset: Path, tokenizer: Path, finished: Path, configure: Callable):
        self.folder = folder
        self.dataset = folder / dataset.name
        self.tokenizer = folder / tokenizer.name
        folder.mkdir()
        for file in dataset.parent.glob(f"{dataset.name}.*"):
            shutil.copy(file, folder)
        shutil.copy(tokenizer, folder)
        self.run = folder / "run"
        shutil.copytree(finished / "run", self.run)
        self.checkpoint = self.run / "checkpoints" / "step-000004"
        self._configure = configure

    def file(self, suffix: str) -> Path:
        return self.dataset.with_name(self.dataset.name + suffix)

    def config(self, **changes: Any) -> Path:
        data = {"train": str(self.dataset), "tokenizer": str(self.tokenizer)} | changes.pop("data", {})
        training = FINISHED["training"] | changes.pop("training", {})
        return self._configure(self.folder, data=data, training=training, **changes)

    def new_run(self, **changes: Any) -> list[Any]:
        shutil.rmtree(self.run)
        return ["--deepspeed_config", self.config(**changes)]

    def resume(self, which: Any = "auto", **changes: Any) -> list[Any]:
        return ["--deepspeed_config", self.config(**changes), "--resume", which]

    def resume_unsafe(self, **changes: Any) -> list[Any]:
        """Return arguments that resume from a checkpoint that would run code when it is unpickled."""
        weights = self.checkpoint / "mp_rank_00_model_states.pt"
        torch.save({"module": RunsCode(self.folder / "was-run")}, weights)
        record = read_record(self.checkpoint)
        record["files"][weights.name] = hashlib.sha256(weights.read_bytes()).hexdigest()
        (self.checkpoint / "run.json").write_text(with_checksum(record))
        return self.resume(**changes)


FINISHED: dict[str, Any] = {"training": {"max_steps": 4}, "checkpoint": {"every": 2}}
MISTAKES: dict[str, Callable[[UserFolder], Mistake]] = {}


def mistake(function: Callable[[UserFolder], Mistake]) -> Callable[[UserFolder], Mistake]:
    MISTAKES[function.__name__] = function
    return function


# Mistakes in the configuration.


@mistake
def missing_config(user):
    path = user.folder / "none.json"
    return Mistake(["--deepspeed_config", path], [str(path), "no such configuration file"])


@mistake
def config_is_a_directory(user):
    return Mistake(
        ["--deepspeed_config", user.folder], [str(user.folder), "cannot be read", "Is a directory"]
    )


@mistake
def config_is_not_json(user):
    path = user.config()
    path.write_text('{"train_batch_size": 8,,}')
    return Mistake(["--deepspeed_config", path], [f"{path}:1:24", "not valid JSON"])


@mistake
def unknown_key(user):
    arguments = user.new_run(model={"hiden_size": 24})
    return Mistake(
        arguments, [str(arguments[1]), "unknown key elc_bert.model.hiden_size", "did you mean hidden_size?"]
    )


@mistake
def heads_do_not_divide_the_hidden_size(user):
    return Mistake(
        user.new_run(model={"num_attention_heads": 5}),
        ["hidden_size 24 is not divisible by num_attention_heads 5", "2, 3, 4, 6"],
    )


@mistake
def batch_that_cannot_be_met(user):
    return Mistake(
        user.new_run(train_batch_size=8, train_micro_batch_size_per_gpu=3),
        ["train_micro_batch_size_per_gpu: 3 does not divide the 4 sequences", "possible: 1, 2, 4"],
    )


@mistake
def infinite_numbers_and_an_empty_path(user):
    return Mistake(
        user.new_run(
            gradient_clipping=float("inf"),
            optimizer={"params": {"lr": float("nan")}},
            training={"output_dir": ""},
        ),
        [
            "gradient_clipping = Infinity: input should be a finite number",
            "optimizer.params.lr = NaN: input should be a finite number",
            "elc_bert.training.output_dir: must name a file or folder",
        ],
    )


@mistake
def schedule_of_deepspeed_with_parameters_of_this_project(user):
    return Mistake(
        user.new_run(scheduler={"type": "WarmupLR"}),
        ["scheduler.params.warmup_proportion: unknown for WarmupLR", "did you mean warmup_"],
    )


@mistake
def optimizer_of_pytorch_with_an_unknown_parameter(user):
    return Mistake(
        user.new_run(optimizer={"type": "AdamW", "params": {"weight_dekay": 0.1}}),
        ["optimizer.params.weight_dekay: unknown for AdamW; did you mean weight_decay?"],
    )


@mistake
def precision_that_is_left_to_hugging_face(user):
    return Mistake(
        user.new_run(bf16={"enabled": "auto"}),
        ['bf16.enabled = "auto": only Hugging Face\'s Trainer can fill this in; give true or false'],
    )


@mistake
def section_of_deepspeed_without_an_effect(user):
    return Mistake(
        user.new_run(activation_checkpointing={"cpu_checkpointing": True}),
        ["activation_checkpointing: has no effect", "set elc_bert.training.activation_checkpointing instead"],
    )


@mistake
def lamb_with_offload_to_nvme(user):
    offload = {"device": "nvme", "nvme_path": str(user.folder)}
    return Mistake(
        user.new_run(zero_optimization={"stage": 3, "offload_optimizer": offload}),
        [
            "zero_optimization.offload_optimizer.device: does not work with optimizer.type Lamb",
            "set it to cpu",
        ],
    )


@mistake
def monitor_that_is_not_installed(user):
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    return Mistake(user.new_run(wandb={"enabled": True}), ["wandb.enabled", "pip install wandb"])


@mistake
def output_that_cannot_be_written(user):
    file = user.folder / "file"
    file.touch()
    return Mistake(
        user.new_run(training={"output_dir": str(file / "run")}),
        ["elc_bert.training.output_dir", f"cannot write to {file / 'run'}", "Not a directory"],
    )


# Mistakes in the data.


@mistake
def missing_dataset(user):
    return Mistake(
        user.new_run(data={"train": str(user.folder / "none")}),
        [str(user.folder / "none.idx"), "No such file", "python -m data_tools build"],
    )


@mistake
def truncated_bin(user):
    os.truncate(user.file(".bin"), user.file(".bin").stat().st_size - 2)
    return Mistake(user.new_run(), [str(user.file(".bin")), "truncated", "build the dataset again"])


@mistake
def truncated_idx(user):
    os.truncate(user.file(".idx"), user.file(".idx").stat().st_size - 8)
    return Mistake(user.new_run(), [str(user.file(".idx")), "truncated", "build the dataset again"])


@mistake
def missing_segment_index(user):
    return Mistake(
        user.new_run(training={"sequence_length": 64}),
        [f"{user.dataset}: no segment index for sequence length 64", "--lengths 64"],
    )


@mistake
def missing_segment_indexes_of_two_datasets_and_lengths(user):
    for file in user.folder.glob(f"{user.dataset.name}.*"):
        shutil.copy(file, user.folder / file.name.replace(user.dataset.name, "held_out", 1))
    held_out = user.folder / "held_out"
    return Mistake(
        user.new_run(data={"dev": str(held_out)}, training={"sequence_length": 64, "long_after": 0.5}),
        [
            f"{user.dataset}: no segment index for sequence lengths 64 and 256",
            f"{held_out}: no segment index for sequence length 64",
            f"python -m data_tools segments {user.dataset} {held_out} --lengths 64 256",
        ],
    )


@mistake
def missing_tokenizer(user):
    user.tokenizer.unlink()
    return Mistake(user.new_run(), [str(user.tokenizer), "cannot read the tokenizer"])


@mistake
def tokenizer_of_another_size(user):
    content = json.loads(user.tokenizer.read_text())
    last = max(content["model"]["vocab"], key=content["model"]["vocab"].get)
    del content["model"]["vocab"][last]
    user.tokenizer.write_text(json.dumps(content))
    return Mistake(user.new_run(), [str(user.tokenizer), "511 subwords", "a vocabulary of 512"])


@mistake
def another_tokenizer_of_the_same_size(user):
    content = json.loads(user.tokenizer.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    user.tokenizer.write_text(json.dumps(content), encoding="utf-8")
    return Mistake(user.new_run(), [str(user.tokenizer), "not the tokenizer that", "sha256"])


@mistake
def model_of_another_vocabulary(user):
    return Mistake(
        user.new_run(model={"vocab_size": 600}), ["elc_bert.model.vocab_size is 600", "512 subwords"]
    )


# Mistakes in resuming a run.


@mistake
def starting_over_a_run(user):
    return Mistake(user.resume("never"), [str(user.run), "holds a run already", "--resume auto"])


@mistake
def resuming_from_nowhere(user):
    return Mistake(user.resume(user.folder / "none"), [str(user.folder / "none"), "no such checkpoint"])


@mistake
def resuming_another_model(user):
    return Mistake(
        user.resume(model={"hidden_size": 48}, training={"seed": 1}),
        [str(user.checkpoint), "another run", "model.hidden_size: 24 -> 48", "seed: 42 -> 1"],
    )


@mistake
def resuming_a_truncated_checkpoint(user):
    weights = user.checkpoint / "mp_rank_00_model_states.pt"
    os.truncate(weights, weights.stat().st_size // 2)
    return Mistake(
        user.resume(user.checkpoint), [str(weights), "is damaged", "resume from another checkpoint"]
    )


@mistake
def resuming_where_every_checkpoint_is_damaged(user):
    for step in (2, 4):
        (user.checkpoint.with_name(f"step-{step:06d}") / "model.json").unlink()
    return Mistake(
        user.resume(), ["step-000004/model.json: cannot be read", "step-000002/model.json: cannot be"]
    )


@mistake
def resuming_a_checkpoint_that_would_run_code(user):
    """The recorded hash of the checkpoint is valid, so only the loader can refuse it."""
    return Mistake(user.resume_unsafe(), [str(user.checkpoint), "is not loaded because that could run code"])


@mistake
def resuming_in_another_layout_a_checkpoint_that_would_run_code(user):
    return Mistake(
        user.resume_unsafe(zero_optimization={"stage": 1}),
        [str(user.checkpoint), "is not loaded because that could run code"],
    )


class RunsCode:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_would_be_noticed(tmp_path):
    """Unpickling without protection creates the file, so the tests above could notice it."""
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "was-run")))
    assert (tmp_path / "was-run").exists()


@dataclass
class Answer:
    """Result of a launch with a mistake."""

    user_folder: UserFolder
    expected: list[str]
    before: dict[str, str]
    result: Result


@pytest.fixture(scope="module")
def answers(configure, tiny_dataset, tiny_tokenizer, tmp_path_factory) -> Iterator[dict[str, Future[Answer]]]:
    """Results of all mistakes by name. A few launches run at the same time."""
    folder = tmp_path_factory.mktemp("mistakes")
    finished = run("python", 1, ["--deepspeed_config", configure(folder / "finished", **FINISHED)])
    assert finished.status == 0, finished.output

    def make(name: str) -> Answer:
        user = UserFolder(folder / name, tiny_dataset, tiny_tokenizer, folder / "finished", configure)
        made = MISTAKES[name](user)
        before = contents(user.folder)
        launcher = "deepspeed" if name in WITH_DEEPSPEED else "forked"
        return Answer(user, made.expected, before, run(launcher, 2, made.arguments))

    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(make, name) for name in MISTAKES}


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file by path, and an empty string for every directory."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("name", MISTAKES)
def test_a_user_error_ends_the_launch_with_one_line(answers, name):
    answer = answers[name].result()
    result = answer.result
    assert len(result.errors) == 1, result.output
    for part in answer.expected:
        assert part in result.errors[0]
    assert result.status != 0
    assert "Traceback" not in result.output
    assert "terminate called" not in result.output
    assert result.seconds < SECONDS
    assert contents(answer.user_folder.folder) == answer.before, "no file may be created, changed or removed"


def test_a_port_in_use_is_reported(configure, tmp_path):
    with socket.create_server(("127.0.0.1", port := free_port())):
        command = [
            Path(sys.executable).with_name("deepspeed"),
            "--num_accelerators",
            2,
            "--master_port",
            port,
        ]
        result = finish(spawn([*command, PRETRAIN, "--deepspeed_config", configure(tmp_path)]))
    assert result.status == 1
    (error,) = result.errors
    assert re.search(rf"MASTER_PORT: port {port} of .* is in use, .*--master_port \d+ before", error)
    assert "Traceback" not in result.output
