"""The command ``segments``: add segment indexes to a dataset."""

import argparse
from pathlib import Path

from data_tools.options import add_lengths, add_overwrite, add_policy, add_run_config
from data_tools.progress import progress_bar
from data_tools.run_config import RunNeeds, read_run_config
from elc_bert.data.format.coverage import unread_share, unread_warning
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.segments import build_segments
from elc_bert.utils.errors import UserError

HELP = "add segment indexes for further sequence lengths to datasets"

EPILOG = """\
A segment index says which slice of the tokens makes up each sample of a sequence length T. A sample is
[CLS], a segment of at most T - 2 tokens, and [SEP]. The tokens do not change. A segment index that exists
already and is intact is kept, unless --overwrite is given.

policies:
  reference   Fill a segment with whole sentences of one document until the next sentence would exceed
              T - 2 tokens. Cut that sentence to fit, and begin the next segment with the whole of it. No
              segment mixes documents, and every sentence of up to T - 2 tokens is in some segment as a
              whole. The rest of a longer sentence is never read; the command prints the share of such
              tokens. Segments overlap, and the last segment of a document is short.
  packed      Cut the tokens into segments of exactly T - 2 tokens, across sentences and documents. There
              is no padding, and every token is in one segment only.

examples:
  python -m data_tools segments corpus/train corpus/dev --lengths 128 512
  python -m data_tools segments --config ds_configs/strict_small.json
  python -m data_tools segments corpus/train --lengths 512 --policy packed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``segments``."""
    parser.add_argument(
        "prefix",
        type=Path,
        nargs="*",
        metavar="PREFIX",
        help="path of each dataset, without the suffix .bin (default with --config: those of the run)",
    )
    add_lengths(parser, default_text="those of --config")
    add_run_config(parser, "use the datasets, sequence lengths and policy of this run's configuration")
    add_policy(parser, "how to cut the tokens into segments")
    add_overwrite(parser, "segment indexes that exist already")


def run(args: argparse.Namespace) -> None:
    """Run ``segments`` and print the number of segments for each sequence length."""
    if (args.lengths is None) == (args.config is None):
        raise UserError("--lengths: give the sequence lengths, or --config with the configuration of a run")
    if args.config is None and not args.prefix:
        raise UserError("PREFIX: missing; give the datasets, or --config with the configuration of a run")
    needs = RunNeeds(args.prefix, args.lengths, args.policy)
    if args.config is not None:
        needs = read_run_config(args.config)
    for dataset in [IndexedDataset(prefix) for prefix in args.prefix or needs.datasets]:
        for length in needs.lengths:
            name = f"{needs.policy} segments of {length}"
            with progress_bar(dataset.num_tokens, "token", name, leave=False) as progress:
                entry = build_segments(dataset, length, needs.policy, args.overwrite, progress.update)
            filled = entry.tokens / entry.count / (length - 2)
            unread = unread_share(entry, dataset.num_tokens)
            print(
                f"{dataset.prefix}: {entry.count:,} {name} ({filled:.0%} filled; {unread:.2%} of the "
                "tokens in none of them)"
            )
            if warning := unread_warning(dataset.prefix, entry, dataset.num_tokens):
                print(warning)
