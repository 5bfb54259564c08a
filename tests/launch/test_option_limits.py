"""Every numeric option of every entry point and benchmark refuses what is no useful number."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = [
    path
    for folder in ("launch", "benchmarks")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem != "options" and "parse_args(" in path.read_text(encoding="utf-8")
]
NO_NUMBERS = ("nan", "inf", "-inf", "1e400", "-1", "", "x", "True")


class Parsed(Exception):  # noqa: N818
    """Carries the parser of a program."""


def parser_of(program: Path, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """Return the parser that a program builds."""

    def parse_args(self, *_):
        raise Parsed(self)

    name = f"program_{program.stem}"
    monkeypatch.syspath_prepend(program.parent)  # benchmarks import each other
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    spec = importlib.util.spec_from_file_location(name, program)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    with pytest.raises(Parsed) as parsed:
        (getattr(module, "main", None) or module.parse_arguments)([])
    return parsed.value.args[0]


def numeric_options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [option for command in action.choices.values() for option in numeric_options(command)]
        elif action.type not in (None, Path) and action.help != argparse.SUPPRESS:
            found.append(action)
    return found


def accepted(parser: argparse.ArgumentParser, option: argparse.Action, text: str) -> object:
    """Return the value that an option takes for a text, or None if it refuses the text."""
    try:
        value = parser._get_value(option, text)
        parser._check_value(option, value)
    except argparse.ArgumentError:
        return None
    return value


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_numeric_options_refuse_what_is_no_useful_number(program, monkeypatch):
    parser = parser_of(program, monkeypatch)
    for option in numeric_options(parser):
        for text in NO_NUMBERS:
            assert accepted(parser, option, text) is None, (option.option_strings, text)
        huge = accepted(parser, option, "9" * 40)
        assert huge is None or isinstance(huge, float), option.option_strings


def test_the_walk_finds_the_numeric_options(monkeypatch):
    assert len(PROGRAMS) >= 14
    parser = parser_of(ROOT / "launch" / "plan.py", monkeypatch)
    names = {option.option_strings[0] for option in numeric_options(parser)}
    assert names == {"--devices", "--peak", "--memory", "--interconnect", "--mfu"}
