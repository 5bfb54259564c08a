"""Segment indexes for further sequence lengths and policies."""

import argparse
from pathlib import Path

from tqdm import tqdm

from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import POLICIES, POLICY, build_segments

HELP = "add segment indexes for further sequence lengths to a dataset"

EPILOG = """\
A segment index says where the samples of one sequence length T lie in the token stream; a sample is
[CLS], at most T - 2 tokens, and [SEP]. The tokens stay as they are. An index that is there and valid
stays too, unless --overwrite.

policies:
  reference   Whole sentences of one document until the next one would exceed T - 2 tokens; what still
              fits of that one is added, and the next sample begins with all of it. No sample mixes
              documents, and every sentence is in one sample in full if it is short enough. Samples
              overlap, and the last one of a document is short.
  packed      Every T - 2 tokens of the stream, whatever sentences and documents they cut. No padding
              and no token twice.

examples:
  python -m data_tools segments corpus/train --lengths 128 512
  python -m data_tools segments corpus/train --lengths 512 --policy packed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `segments`."""
    parser.add_argument("prefix", type=Path, metavar="PREFIX", help="the dataset, without .bin")
    parser.add_argument("--lengths", nargs="+", type=int, required=True, metavar="T", help="sequence lengths")
    parser.add_argument(
        "--policy",
        choices=POLICIES,
        default=POLICY,
        help="how to cut the token stream (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="write indexes again that are there")


def run(args: argparse.Namespace) -> None:
    """Runs `segments` and prints how many there are."""
    dataset = IndexedDataset(args.prefix)
    for length in args.lengths:
        name = f"{args.policy} segments of {length}"
        with tqdm(
            total=dataset.num_tokens, unit="token", unit_scale=True, desc=name, disable=None, leave=False
        ) as progress:
            entry = build_segments(dataset, length, args.policy, args.overwrite, progress.update)
        filled = entry.tokens / entry.count / (length - 2)
        print(f"{args.prefix}: {entry.count:,} {name} ({filled:.0%} filled)")
