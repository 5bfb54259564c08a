"""Options that several commands share, and the parser that all commands use."""

import argparse

import pytest

from data_tools import options
from data_tools.__main__ import COMMANDS, main
from elc_bert.data.format.segments import POLICY


def rejected(capsys, *arguments: str) -> str:
    """Run a command in this process, check that it exits with status 2, and return its message."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "segments"])
def test_a_missing_option_is_one_line_that_names_the_help(capsys, name):
    message = rejected(capsys, name)
    assert "required: " in message
    assert f'"python -m data_tools {name} --help"' in message


@pytest.mark.parametrize("arguments", [("segments",), ("segments", "--lengths", "64")])
def test_segments_needs_datasets_and_lengths_or_a_configuration(capsys, arguments):
    assert main(list(arguments)) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--config" in message
    assert ("PREFIX: missing" if "64" in arguments else "--lengths: give") in message


def test_an_unknown_command_is_one_line_with_all_commands(capsys):
    message = rejected(capsys, "tokenise")
    assert all(repr(name) in message for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        (("segments", "d", "--lengths", "64", "0"), "--lengths", "0"),
        (("merge", "--input", "a", "--output", "b", "--lengths", "x"), "--lengths", "x"),
        (("clean", "--input", "a", "--output", "b", "--workers", "-2"), "--workers", "-2"),
        (("split", "d", "--output-train", "a", "--output-dev", "b", "--seed", "-1"), "--seed", "-1"),
        (("inspect", "d", "--policy", "greedy"), "--policy", "greedy"),
        (("tokenizer", "--input", "a", "--output", "b", "--vocab-size", "0"), "--vocab-size", "0"),
    ],
)
def test_a_bad_value_is_one_line_with_option_and_value(capsys, arguments, option, value):
    message = rejected(capsys, *arguments)
    assert f"argument {option}: " in message
    assert repr(value) in message


def test_lengths_are_required_unless_there_is_a_default():
    parser = argparse.ArgumentParser(exit_on_error=False)
    options.add_lengths(parser, default=[128, 512], default_text="128 512")
    options.add_policy(parser, "policy")
    args = parser.parse_args([])
    assert (args.lengths, args.policy) == ([128, 512], POLICY)
    parser = options.OneLineParser()
    options.add_lengths(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([])
