"""Command-line options that several commands share, and the parser that all commands use."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from data_tools.input_formats import FORMATS
from elc_bert.data.format.policies import POLICIES
from elc_bert.data.format.segments import POLICY
from elc_bert.data.format.vocabulary import OPTIONAL_ROLES, ROLES, SpecialNames
from elc_bert.utils.errors import UserError
from elc_bert.utils.options import positive_int


class OneLineParser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, without the usage of all options."""

    def error(self, message: str) -> NoReturn:
        """Print the message and where to find help, and exit with status 2."""
        self.exit(2, f'{self.prog}: error: {message}; for help, run "{self.prog} --help"\n')


def add_dataset(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Add the positional argument for an existing dataset, or for several of them."""
    parser.add_argument(
        "prefix",
        type=Path,
        nargs="+" if several else None,
        metavar="PREFIX",
        help=f"path of {'each dataset' if several else 'the dataset'}, without the suffix .bin",
    )


def add_text_input(parser: argparse.ArgumentParser) -> None:
    """Add ``--input`` for text files."""
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help="text files, directories, or glob patterns in quotes",
    )


def add_format(parser: argparse.ArgumentParser) -> None:
    """Add ``--format``, the format of the text input."""
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="auto",
        help="format of the input. auto: each file is recognized by its content (default); text: plain text, "
        "even if it looks like a table, JSON or HTML; jsonl: one JSON object per line",
    )


def add_json_key(parser: argparse.ArgumentParser) -> None:
    """Add ``--json-key``, the field of a record that holds its text."""
    parser.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="key (JSON lines) or column (Parquet) that holds the text (default: %(default)s)",
    )


def add_on_error(parser: argparse.ArgumentParser) -> None:
    """Add ``--on-error``, which decides what happens to input that cannot be used."""
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="what to do with input that cannot be used: stop with an error that names it, or skip it, "
        "continue, and report how much was skipped (default: %(default)s)",
    )


def add_dataset_output(parser: argparse.ArgumentParser) -> None:
    """Add ``--output`` for a dataset to write."""
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        metavar="PREFIX",
        help="path of the dataset to write, without the suffix .bin",
    )


def add_overwrite(parser: argparse.ArgumentParser, existing: str) -> None:
    """Add ``--overwrite``.

    Args:
        parser: Parser of the command.
        existing: Description of what the option replaces.
    """
    parser.add_argument("--overwrite", action="store_true", help=f"replace {existing}")


def add_lengths(
    parser: argparse.ArgumentParser,
    *,
    default: Sequence[int] | None = None,
    default_text: str | None = None,
) -> None:
    """Add ``--lengths``, the sequence lengths to create segment indexes for.

    Args:
        parser: Parser of the command.
        default: Lengths to use where the option is absent.
        default_text: Description of the default in the help text. Without it the option is required.
    """
    ending = "" if default_text is None else f" (default: {default_text})"
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=positive_int,
        required=default_text is None,
        default=default,
        metavar="T",
        help=f"sequence lengths to create segment indexes for{ending}",
    )


def add_run_config(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--config``, the configuration of a run.

    Args:
        parser: Parser of the command.
        meaning: Help text.
    """
    parser.add_argument("--config", type=Path, metavar="FILE", help=meaning)


def add_policy(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add ``--policy``.

    Args:
        parser: Parser of the command.
        meaning: Help text, to which the default is appended.
    """
    parser.add_argument(
        "--policy", choices=POLICIES, default=POLICY, help=f"{meaning} (default: %(default)s)"
    )


def add_tokenizer(parser: argparse.ArgumentParser, meaning: str, *, required: bool = False) -> None:
    """Add ``--tokenizer``.

    Args:
        parser: Parser of the command.
        meaning: Help text.
        required: True if the command cannot run without a tokenizer.
    """
    parser.add_argument("--tokenizer", required=required, type=Path, metavar="FILE", help=meaning)


def add_special_tokens(parser: argparse.ArgumentParser) -> None:
    """Add ``--special-tokens``, for tokenizers that this project did not train."""
    parser.add_argument(
        "--special-tokens",
        nargs="+",
        default=[],
        metavar="ROLE=NAME",
        help="names of the tokenizer's special tokens if they are not the usual ones, for the roles "
        f"{', '.join(ROLES)}, such as 'cls=<s>' 'mask=<mask>'; an empty name means that there is none",
    )


def special_names(assignments: Sequence[str]) -> SpecialNames:
    """Return the names given by ``--special-tokens``.

    Raises:
        UserError: A role is unknown, or a role that is required has no name.
    """
    names: dict[str, str | None] = {}
    for assignment in assignments:
        role, separator, name = assignment.partition("=")
        if role not in ROLES or not separator or not (name or role in OPTIONAL_ROLES):
            raise UserError(
                f"--special-tokens {assignment}: must be ROLE=NAME with one of the roles {', '.join(ROLES)}, "
                f"where only {' and '.join(OPTIONAL_ROLES)} may have no name; for example: 'mask=<mask>'"
            )
        names[role] = name or None
    return SpecialNames.from_mapping(names)


def add_workers(parser: argparse.ArgumentParser, default: int | None, meaning: str) -> None:
    """Add ``--workers``.

    Args:
        parser: Parser of the command.
        default: Number of worker processes where the option is absent.
        meaning: Help text, which names the default.
    """
    parser.add_argument("--workers", type=positive_int, default=default, metavar="N", help=meaning)
