"""The command ``segments``: add segment indexes to a dataset."""

import argparse

from data_tools.options import add_dataset, add_lengths, add_overwrite, add_policy
from data_tools.progress import progress_bar
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments

HELP = "add segment indexes for further sequence lengths to a dataset"

EPILOG = """\
A segment index says which slice of the tokens makes up each sample of a sequence length T. A sample is
[CLS], a segment of at most T - 2 tokens, and [SEP]. The tokens do not change. A segment index that exists
already and is intact is kept, unless --overwrite is given.

policies:
  reference   Fill a segment with whole sentences of one document until the next sentence would exceed
              T - 2 tokens. Cut that sentence to fit, and begin the next segment with the whole of it. No
              segment mixes documents, and every sentence of up to T - 2 tokens is in some segment as a
              whole. Segments overlap, and the last segment of a document is short.
  packed      Cut the tokens into segments of exactly T - 2 tokens, across sentences and documents. There
              is no padding, and every token is in one segment only.

examples:
  python -m data_tools segments corpus/train --lengths 128 512
  python -m data_tools segments corpus/train --lengths 512 --policy packed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``segments``."""
    add_dataset(parser)
    add_lengths(parser)
    add_policy(parser, "how to cut the tokens into segments")
    add_overwrite(parser, "segment indexes that exist already")


def run(args: argparse.Namespace) -> None:
    """Run ``segments`` and print the number of segments for each sequence length."""
    dataset = IndexedDataset(args.prefix)
    for length in args.lengths:
        name = f"{args.policy} segments of {length}"
        with progress_bar(dataset.num_tokens, "token", name, leave=False) as progress:
            entry = build_segments(dataset, length, args.policy, args.overwrite, progress.update)
        filled = entry.tokens / entry.count / (length - 2)
        print(f"{args.prefix}: {entry.count:,} {name} ({filled:.0%} filled)")
