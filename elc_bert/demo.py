"""The demo: from raw text to a trained and evaluated model, in minutes."""

import contextlib
import functools
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elc_bert.config.length_schedule import length_schedule
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.tokenizer_identity import tokenizer_sha256
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.utils.errors import UserError
from elc_bert.utils.machine import available_cores, free_port

CONFIG = Path("ds_configs/demo.json")
"""Configuration of the demo's run, relative to the repository."""
MAX_PROCESSES = 2
"""Maximum number of training processes. The model is so small that more would mostly wait for each other."""


@dataclass(frozen=True)
class Step:
    """One command of the demo."""

    title: str
    command: list[str]
    is_done: Callable[[], bool] = lambda: False
    """Function that returns whether the results of the command exist already."""


def run_demo(repository: Path, overrides: Sequence[str] = (), max_words: int | None = None) -> int:
    """Run the steps that are not done yet, from collecting text to a report on the trained model.

    Args:
        repository: Root directory of a checkout, in which the commands run.
        overrides: Assignments ``KEY=VALUE`` that override keys of the configuration.
        max_words: Largest number of words of text to use. By default, all text that is found.

    Returns:
        0, or the exit status of the first command that failed. The commands after it are not started.

    Raises:
        UserError: The configuration is wrong, or asks for a dataset that the demo does not build.
    """
    start = time.monotonic()
    config_options = ["--deepspeed_config", str(CONFIG)]
    config_options += [word for override in overrides for word in ("--set", override)]
    prose_options = [] if max_words is None else ["--max-words", str(max_words)]
    with contextlib.chdir(repository):  # paths in the configuration are relative to the repository
        config = load_config(CONFIG, overrides)
        try:
            run(plan(config, config_options, prose_options), repository)
        except subprocess.CalledProcessError as error:
            command = display_command(error.cmd, repository)
            print(f"demo: stopped: this command failed: {command}", file=sys.stderr)
            # A negative status is the number of the signal that ended the command.
            return error.returncode if error.returncode > 0 else 128 - error.returncode
    print(f"\ndemo: {time.monotonic() - start:.0f} s in total")
    return 0


def plan(config: RunConfig, config_options: list[str], prose_options: list[str]) -> list[Step]:
    """Return the steps of the demo; all paths and sizes come from the configuration.

    Args:
        config: Configuration of the run.
        config_options: Options with which ``launch/pretrain.py`` reads the same configuration.
        prose_options: Additional options of ``data_tools prose``.

    Raises:
        UserError: The configuration asks for a dataset that the demo does not build.
    """
    data, training = config.elc_bert.data, config.elc_bert.training
    vocab_size = config.elc_bert.model.vocab_size
    lengths = [phase.sequence_length for phase in length_schedule(config).phases]
    folder = data.tokenizer.parent
    if len(data.train) > 1 or data.segments != "reference":
        raise UserError(
            "elc_bert.data: the demo builds one training dataset with reference segments; set train to one "
            "path and segments to reference"
        )
    train = data.train[0].path
    texts = {prefix: folder / f"{name}.txt" for name, prefix in (("train", train), ("dev", data.dev))}
    builds = [
        Step(
            f"encode {text} for sequences of {' and '.join(map(str, lengths))} tokens",
            _data_tools(
                "build", "--overwrite", input=text, tokenizer=data.tokenizer, output=prefix, lengths=lengths
            ),
            functools.partial(_is_built, prefix, lengths, data.tokenizer),
        )
        for prefix, text in texts.items()
    ]
    return [
        Step(
            "collect English prose from the documentation of the installed Python packages",
            _data_tools("prose", *prose_options, output=folder),
            lambda: all(text.is_file() for text in texts.values()),
        ),
        Step(
            f"train a tokenizer of {vocab_size} subwords",
            _data_tools(
                "tokenizer",
                input=texts[train],
                held_out=texts[data.dev],
                vocab_size=vocab_size,
                output=data.tokenizer,
            ),
            lambda: _has_vocabulary(data.tokenizer, vocab_size),
        ),
        *builds,
        Step(
            f"pretrain for {training.max_steps} steps with DeepSpeed",
            [*_launcher(), "launch/pretrain.py", *config_options, "--resume", "auto"],
            lambda: _is_trained(training.output_dir, training.max_steps),
        ),
        Step(
            "report what the model has learned",
            [sys.executable, "launch/report.py", str(training.output_dir)],
        ),
    ]


def _data_tools(
    command: str, *arguments: str, **options: str | int | Path | Sequence[str | int | Path]
) -> list[str]:
    words = [sys.executable, "-m", "data_tools", command]
    for name, value in options.items():
        values = [value] if isinstance(value, str | int | Path) else value
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*words, *arguments]


def _has_vocabulary(tokenizer: Path, vocab_size: int) -> bool:
    return tokenizer.is_file() and load_tokenizer(tokenizer).get_vocab_size() == vocab_size


def _is_built(prefix: Path, lengths: list[int], tokenizer: Path) -> bool:
    """Return whether a dataset was built with this tokenizer and has all segments, which are written last."""
    try:
        manifest = Manifest.load(prefix)
    except (FileNotFoundError, UserError):
        return False
    segmented = {entry.sequence_length for entry in manifest.segments if entry.policy == "reference"}
    return set(lengths) <= segmented and manifest.tokenizer_sha256 == tokenizer_sha256(tokenizer)


def _is_trained(run: Path, max_steps: int) -> bool:
    latest = run / "checkpoints" / "latest"
    return latest.is_file() and latest.read_text(encoding="utf-8").strip() == f"step-{max_steps:06d}"


def _launcher() -> list[str]:
    """Return the command of this environment's deepspeed launcher, with a process per GPU or per core."""
    import torch

    processes = min(MAX_PROCESSES, torch.cuda.device_count() or available_cores())
    deepspeed = Path(sys.executable).with_name("deepspeed")
    port = free_port()  # the default port would collide with another run on this machine
    return [str(deepspeed), "--quiet", "--num_accelerators", str(processes), "--master_port", str(port)]


def display_command(command: Sequence[str], repository: Path) -> str:
    """Return a command as a user would type it in the repository."""
    program = Path(command[0])
    if program.is_relative_to(repository):
        program = program.relative_to(repository)
    return shlex.join([str(program), *command[1:]])


def run(steps: Sequence[Step], repository: Path) -> None:
    """Run the commands that are not done yet, in order.

    Args:
        steps: Steps of the demo.
        repository: Directory in which the commands run.

    Raises:
        subprocess.CalledProcessError: A command failed. Those after it were not started.
    """
    for number, step in enumerate(steps, start=1):
        heading = f"[{number}/{len(steps)}] {step.title}"
        if step.is_done():
            print(f"{heading}: already done", flush=True)
            continue
        print(f"{heading}\n$ {display_command(step.command, repository)}", flush=True)
        start = time.monotonic()
        execute(step.command, repository)
        print(f"[{number}/{len(steps)}] took {time.monotonic() - start:.0f} s\n", flush=True)


def execute(command: Sequence[str], directory: Path) -> None:
    """Run a command in a directory and wait until it ends; see ``run``."""
    with subprocess.Popen(command, cwd=directory) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the command as well; let it end its own processes.
            process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)
