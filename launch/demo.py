"""From raw text to a trained and evaluated model, in minutes; see ``--help``."""

import argparse
import functools
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elc_bert.config.length_schedule import LengthSchedule
from elc_bert.config.reader import load_config
from elc_bert.config.schema import RunConfig
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.vocabulary import load_tokenizer, tokenizer_sha256
from elc_bert.utils.errors import UserError, run_single_process
from elc_bert.utils.machine import available_cores, free_port

ROOT = Path(__file__).resolve().parents[1]
CONFIG = Path("ds_configs/demo.json")
MAX_PROCESSES = 2
"""The model is so small that more of them would mostly wait for each other."""


@dataclass(frozen=True)
class Step:
    """One command, and whether what it makes is there already."""

    title: str
    command: list[str]
    is_done: Callable[[], bool] = lambda: False


def plan(config: RunConfig, config_arguments: list[str], prose_arguments: list[str]) -> list[Step]:
    """The steps of the demo; all paths and sizes come from the configuration.

    Args:
        config: the run.
        config_arguments: options with which launch/pretrain.py comes to that configuration.
        prose_arguments: further options of ``data_tools prose``.

    Raises:
        UserError: the configuration asks for what the demo does not make.
    """
    data, training = config.elc_bert.data, config.elc_bert.training
    vocab_size = config.elc_bert.model.vocab_size
    schedule = LengthSchedule(
        training.max_steps, training.sequence_length, config.train_batch_size, training.long_after
    )
    lengths = [phase.sequence_length for phase in schedule.phases]
    folder = data.tokenizer.parent
    if len(data.train) > 1 or data.segments != "reference":
        raise UserError(
            "elc_bert.data: the demo builds one training dataset, with reference segments; set train to one "
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
            _data_tools("prose", *prose_arguments, output=folder),
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
            [*_launcher(), "launch/pretrain.py", *config_arguments, "--resume", "auto"],
            lambda: _is_trained(training.output_dir, training.max_steps),
        ),
        Step("see what it has learned", [sys.executable, "launch/report.py", str(training.output_dir)]),
    ]


def _data_tools(command: str, *arguments: str, **options: Any) -> list[str]:
    words = [sys.executable, "-m", "data_tools", command]
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return [*words, *arguments]


def _has_vocabulary(tokenizer: Path, vocab_size: int) -> bool:
    return tokenizer.is_file() and load_tokenizer(tokenizer).get_vocab_size() == vocab_size


def _is_built(prefix: Path, lengths: list[int], tokenizer: Path) -> bool:
    """Whether a dataset has all its segments, which are written last, and is of this tokenizer."""
    try:
        manifest = Manifest.load(prefix)
    except (FileNotFoundError, UserError):
        return False
    cut = {entry.sequence_length for entry in manifest.segments if entry.policy == "reference"}
    return set(lengths) <= cut and manifest.tokenizer_sha256 == tokenizer_sha256(tokenizer)


def _is_trained(run: Path, max_steps: int) -> bool:
    latest = run / "checkpoints" / "latest"
    return latest.is_file() and latest.read_text(encoding="utf-8").strip() == f"step-{max_steps:06d}"


def _launcher() -> list[str]:
    """The deepspeed launcher of this environment: a process for each GPU, or for each of two cores."""
    import torch

    processes = min(MAX_PROCESSES, torch.cuda.device_count() or available_cores())
    deepspeed = Path(sys.executable).with_name("deepspeed")
    port = free_port()  # several runs may share this machine
    return [str(deepspeed), "--quiet", "--num_accelerators", str(processes), "--master_port", str(port)]


def as_typed(command: list[str]) -> str:
    """A command as one would type it in the repository."""
    program = Path(command[0])
    if program.is_relative_to(ROOT):
        program = program.relative_to(ROOT)
    return shlex.join([str(program), *command[1:]])


def run(steps: list[Step]) -> None:
    """Take the steps that are not done, in order.

    Raises:
        subprocess.CalledProcessError: a command failed; those after it were not started.
    """
    for number, step in enumerate(steps, start=1):
        heading = f"[{number}/{len(steps)}] {step.title}"
        if step.is_done():
            print(f"{heading}: done already", flush=True)
            continue
        print(f"{heading}\n$ {as_typed(step.command)}", flush=True)
        start = time.monotonic()
        execute(step.command)
        print(f"[{number}/{len(steps)}] took {time.monotonic() - start:.0f} s\n", flush=True)


def execute(command: list[str]) -> None:
    """Run a command to its end; see ``run``."""
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            # Ctrl-C reached the command as well: let it end its own processes.
            process.wait()
            raise
    if status:
        raise subprocess.CalledProcessError(status, command)


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py",
        description="Collect text, train a tokenizer, encode the text, pretrain a small ELC-BERT with "
        "DeepSpeed, and say what it has learned. Steps that are done are skipped: after an interruption "
        "the same command goes on where it stopped.",
        epilog="To begin anew, remove data/demo and runs/demo.",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"override a key of {CONFIG}, as in elc_bert.model.variant=base; may be repeated",
    )
    parser.add_argument("--max-words", type=int, metavar="N", help="use no more words of text (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    arguments = parse_arguments(argv)
    overrides = [word for override in arguments.set for word in ("--set", override)]
    prose = [] if arguments.max_words is None else ["--max-words", str(arguments.max_words)]
    start = time.monotonic()

    def command() -> None:
        os.chdir(ROOT)  # paths in the configuration are relative to the repository
        config = load_config(CONFIG, arguments.set)
        run(plan(config, ["--deepspeed_config", str(CONFIG), *overrides], prose))
        print(f"\ndemo: {time.monotonic() - start:.0f} s in all")

    try:
        return run_single_process(command, "demo.py")
    except subprocess.CalledProcessError as error:
        print(f"demo.py: stopped: this command failed: {as_typed(error.cmd)}", file=sys.stderr)
        # A negative status is the number of the signal that ended the command.
        return error.returncode if error.returncode > 0 else 128 - error.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
