"""Command-line options that several entry points share.

The entry points are scripts of a checkout and, installed, the package ``elc_bert_launch``. They import this
module by its installed name, which works in both cases.
"""

import argparse
from pathlib import Path

REFERENCE_VARIANTS = ("base", "zero", "normalized", "weighted_output")
"""Variants that a checkpoint of the reference implementation can have."""
MODEL_HELP = "a run, one of its checkpoints, an export, a published ELC-BERT, or the reference's model.bin"
"""Help text for an argument that names a model."""


def command_line(
    description: str, epilog: str | None = None, prog: str | None = None
) -> argparse.ArgumentParser:
    """Return a parser that prints the description and the epilog as they are, without filling lines."""
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_config_options(
    parser: argparse.ArgumentParser, flag: str = "--deepspeed_config", default: Path | None = None
) -> None:
    """Add the options that name the run's configuration file and override its keys.

    Args:
        parser: Parser to add them to.
        flag: Name of the option for the file; its value is stored as ``config``.
        default: File used if the option is missing. By default the option is required.
    """
    parser.add_argument(
        flag,
        dest="config",
        type=Path,
        required=default is None,
        default=default,
        metavar="FILE",
        help="configuration of the run, in JSON" + (f" (default: {default})" if default else ""),
    )
    add_set_option(parser)


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--set``, which overrides keys of a configuration file."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the configuration, as in elc_bert.training.max_steps=200; may be repeated",
    )


def add_model_options(parser: argparse.ArgumentParser, metavar: str = "MODEL") -> None:
    """Add the argument that names a model, and the options for what its files do not say."""
    parser.add_argument("model", type=Path, metavar=metavar, help=MODEL_HELP)
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="tokenizer.json (default: the model's own)"
    )
    parser.add_argument(
        "--variant",
        choices=REFERENCE_VARIANTS,
        help="variant of a model of the reference implementation, whose files do not always say which it is",
    )


def add_local_rank(parser: argparse.ArgumentParser) -> None:
    """Accept ``--local_rank``, which the deepspeed launcher passes; the rank is read from the environment."""
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
