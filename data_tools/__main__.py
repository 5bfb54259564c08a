"""Entry point of ``python -m data_tools <command>``."""

import argparse
import importlib
import sys

from data_tools.options import OneLineParser
from elc_bert.utils.errors import run_single_process

COMMANDS = ("prose", "clean", "tokenizer", "build", "segments", "merge", "split", "inspect", "verify")
"""Modules of this package that define ``HELP``, ``add_arguments(parser)`` and ``run(args)``, in the order
in which a user needs them."""

EPILOG = """\
From BabyLM (or other text) to a dataset in three commands:
  python -m data_tools clean --input babylm_10M --output text
  python -m data_tools tokenizer --input text --vocab-size 6144 --output tokenizer.json
  python -m data_tools build --input text --tokenizer tokenizer.json --output corpus/train \\
      --lengths 128 512

Each command has its own help with examples, for instance:
  python -m data_tools build --help
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parser = OneLineParser(
        prog="python -m data_tools",
        description="Prepare text for pretraining: clean it, train a tokenizer, and build token datasets.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        module = importlib.import_module(f"data_tools.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.HELP[0].upper() + module.HELP[1:] + ".",
            epilog=getattr(module, "EPILOG", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)

    def parse_and_run() -> None:
        args = parser.parse_args(arguments)
        args.run(args)

    return run_single_process(parse_and_run, "data_tools")


if __name__ == "__main__":
    sys.exit(main())
