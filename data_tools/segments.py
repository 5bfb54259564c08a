"""Segment indexes for further sequence lengths."""

import argparse
from pathlib import Path

from elc_bert.data.indexed import IndexedDataset
from elc_bert.data.segments import build_segments

HELP = "add segment indexes for further sequence lengths to a dataset"

EPILOG = """\
A segment index says where the samples of one sequence length lie in the token stream. The tokens
stay as they are. An index that is there and valid stays too, unless --overwrite.

example:
  python -m data_tools segments corpus/train --lengths 128 512
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `segments`."""
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="the dataset, without .bin")
    parser.add_argument("--lengths", nargs="+", type=int, required=True, metavar="T", help="sequence lengths")
    parser.add_argument("--overwrite", action="store_true", help="write indexes again that are there")


def run(args: argparse.Namespace) -> None:
    """Runs `segments` and prints how many there are."""
    dataset = IndexedDataset(args.prefix)
    for length in args.lengths:
        entry = build_segments(dataset, length, overwrite=args.overwrite)
        filled = entry.tokens / entry.count / (length - 2)
        print(f"{args.prefix}: {entry.count:,} segments of {length} ({filled:.0%} filled)")
