"""Check a command of the documentation with the parsers that would read it, without doing its work."""

import argparse
import contextlib
import importlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from elc_bert.config.reader import load_config
from tests.docs.pages import REPOSITORY

LAUNCHERS = ("deepspeed", "torchrun", "mpirun", "sbatch")
OWN_SCRIPTS = ("launch", "benchmarks", "examples", "docs")


class CommandError(Exception):
    """A command of the documentation would not start."""


class _Parsed(BaseException):
    """Raised with the parsed options in place of the work. Commands do not catch a ``BaseException``."""

    def __init__(self, options: argparse.Namespace):
        super().__init__()
        self.options = options


def check(command: str) -> None:
    """Check one command line of the shell.

    Raises:
        CommandError: a program, script, option, value, configuration file or key that does not exist.
    """
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # variables before the command
        words = words[1:]
    program, arguments = words[0], words[1:]
    if program == "make":
        _check_make(arguments)
    elif program == "python":
        _check_python(arguments)
    elif program == "deepspeed":
        _check_deepspeed(arguments)
    elif program == "torchrun":
        _check_torchrun(arguments)
    elif program == "mpirun":
        _check_mpirun(arguments)
    elif program == "sbatch":
        _check_sbatch(arguments)
    elif program in OTHER_PROGRAMS:
        OTHER_PROGRAMS[program](arguments)
    else:
        raise CommandError(f"no test knows the program {program}")


def _check_make(arguments: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, is_variable, _ = word.partition("=")
        pattern = rf"^{re.escape(name)} *\?=" if is_variable else rf"^(\S+ )*{re.escape(name)}( \S+)*:(?!=)"
        if not re.search(pattern, makefile, re.MULTILINE):
            raise CommandError(f"Makefile has no {'variable' if is_variable else 'target'} {name}")


def _check_python(arguments: list[str]) -> None:
    if arguments[0] == "-m":
        module, rest = arguments[1], arguments[2:]
        if module == "data_tools":
            main = importlib.import_module("data_tools.__main__").main
            _parse([module, *rest], lambda: main(rest))
        elif module in ("pytest", "pip"):
            _check_paths(rest)
        else:
            raise CommandError(f"no test knows the module {module}")
    else:
        _check_script(arguments[0], arguments[1:])


def _check_script(name: str, arguments: list[str]) -> None:
    script = REPOSITORY / name
    if Path(name).parts[0] not in OWN_SCRIPTS or not script.is_file():
        raise CommandError(f"there is no script {name}")

    def start() -> None:
        with mock.patch.object(sys, "path", [str(script.parent), *sys.path]):
            runpy.run_path(str(script), run_name="__main__")

    options = _parse([name, *arguments], start)
    path = getattr(options, "deepspeed_config", None) or getattr(options, "config", None)
    if path is not None and script.parent.name != "benchmarks" and Path(path).parts[0] == "ds_configs":
        load_config(REPOSITORY / path, getattr(options, "set", []))


def _parse(argv: list[str], start) -> argparse.Namespace:
    """Start a program, let it parse its command line, and stop it there."""
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(parser, args=None, namespace=None):
        raise _Parsed(parse(parser, args, namespace))

    messages = io.StringIO()
    with (
        mock.patch.object(sys, "argv", list(argv)),
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        contextlib.redirect_stderr(messages),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        try:
            start()
        except _Parsed as parsed:
            return parsed.options
        except SystemExit as error:
            if error.code in (0, None) and "--help" in argv:
                return argparse.Namespace()
            raise CommandError(messages.getvalue().strip().splitlines()[-1]) from None
    raise CommandError(f"{argv[0]} parses no command line")


def _check_deepspeed(arguments: list[str]) -> None:
    from deepspeed.launcher.runner import parse_args

    with _system_exit_is_an_error():
        options = parse_args(arguments)
    _check_script(options.user_script, options.user_args)


def _check_torchrun(arguments: list[str]) -> None:
    from torch.distributed.run import parse_args

    with _system_exit_is_an_error():
        options = parse_args(arguments)
    _check_script(options.training_script, options.training_script_args)


def _check_mpirun(arguments: list[str]) -> None:
    match arguments:
        case ["-n", count, "python", *rest] if count.isdigit():
            _check_python(rest)
        case _:
            raise CommandError("write mpirun -n N python ...")


def _check_sbatch(arguments: list[str]) -> None:
    script = REPOSITORY / arguments[0]
    if not script.is_file():
        raise CommandError(f"there is no {arguments[0]}")
    _check_script("launch/pretrain.py", arguments[1:])


def _check_tensorboard(arguments: list[str]) -> None:
    from tensorboard import program

    with _system_exit_is_an_error():
        program.TensorBoard().configure(["tensorboard", *arguments])


def _check_pip(arguments: list[str]) -> None:
    words = re.fullmatch(
        r"install (?:(?:-e|--editable) )?(?:\.|elc-bert)(?:\[([\w,]+)\])?", " ".join(arguments)
    )
    if not words:
        raise CommandError(f"no test knows pip {' '.join(arguments)}")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
    for extra in words[1].split(",") if words[1] else []:
        if extra not in project.get("optional-dependencies", {}):
            raise CommandError(f"pyproject.toml has no extra {extra}")


def _check_paths(arguments: list[str]) -> None:
    for word in arguments:
        if not word.startswith("-") and "/" in word and not (REPOSITORY / word.partition("::")[0]).exists():
            raise CommandError(f"there is no {word}")


def _check_activate(arguments: list[str]) -> None:
    if arguments != [".venv/bin/activate"]:
        raise CommandError(f"no test knows . {' '.join(arguments)}")


OTHER_PROGRAMS = {
    "tensorboard": _check_tensorboard,
    "pip": _check_pip,
    ".": _check_activate,
}


@contextlib.contextmanager
def _system_exit_is_an_error() -> Iterator[None]:
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            yield
    except SystemExit:
        raise CommandError(messages.getvalue().strip().splitlines()[-1]) from None


def command_lines(script: str) -> list[str]:
    """Return the commands of a fenced block, with continued lines joined and comments dropped."""
    joined = re.sub(r"\\\n\s*", "", script)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]
