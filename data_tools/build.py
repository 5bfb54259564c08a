"""The command ``build``: encode text as a token dataset."""

import argparse
import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_tools.build_tasks import Task, plan_tasks, tasks_of_rank
from data_tools.dataset_output import new_dataset, summary
from data_tools.encode_worker import (
    COUNTS,
    Encoding,
    Part,
    WorkerStoppedError,
    encode_in_worker,
    init_worker,
)
from data_tools.input_files import Inputs, Skipped, find_input_files
from data_tools.join_parts import join_parts
from data_tools.languages import language_note
from data_tools.mpi_ranks import Ranks
from data_tools.options import (
    add_dataset_output,
    add_format,
    add_json_key,
    add_lengths,
    add_on_error,
    add_overwrite,
    add_run_config,
    add_special_tokens,
    add_text_input,
    add_tokenizer,
    add_workers,
    special_names,
)
from data_tools.progress import progress_bar
from data_tools.run_config import read_run_config
from data_tools.sentences import LIBRARIES, sentence_splitter
from data_tools.worker_pool import SPAWN_CONTEXT, WORKER_KILLED, interrupts_blocked, make_worker_pool
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import Manifest
from elc_bert.data.format.segments import POLICY, build_segments, check_sequence_length
from elc_bert.data.format.vocabulary import USUAL_NAMES, SpecialNames, load_tokenizer
from elc_bert.data.format.writer import token_dtype
from elc_bert.utils.errors import UserError, describe_expected

HELP = "encode text as a token dataset with segment indexes"

EPILOG = """\
input:
  Plain text in UTF-8: each line is a paragraph; an empty line or the end of a file ends a document.
  JSON lines, Parquet: each record is a document. Its text is the value of --json-key.
  All formats but Parquet may be compressed (gz, zst, xz). Formats are recognized by content. A directory
  stands for all files below it, sorted by name, except those that the command lists as left out.

output:
  PREFIX.bin, PREFIX.idx           the tokens, in the format of Megatron-LM and GPT-NeoX
  PREFIX.segments-T.npy            segment index: position of each sample of sequence length T in the tokens
  PREFIX.json                      counts, checksums, input files, and versions of the tools
  PREFIX.inputs.jsonl              input files, if there are more than 100

examples:
  python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train
  python -m data_tools build --input 'shards/*.jsonl.zst' --json-key content \\
      --tokenizer tokenizer.json --output corpus/train --lengths 128 512
  python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train \\
      --config ds_configs/strict_small.json

  On several nodes, with the input divided among the ranks (PREFIX must be on a shared file system):
  mpirun -n 8 python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train

  From text that already has one sentence per line and [PAR] at the end of each paragraph:
  python -m data_tools build --input segmented.txt --sentences lines --tokenizer tokenizer.json \\
      --output corpus/train

To resume a build that was interrupted or failed, run the same command again. Finished parts are kept in the
hidden folder .NAME.build next to the output until the build succeeds. The dataset is bit-identical for any
number of ranks and workers.
"""

UPDATE_SECONDS = 0.5
"""Interval between updates of the progress bar."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``build``."""
    add_text_input(parser)
    add_format(parser)
    add_json_key(parser)
    add_on_error(parser)
    add_tokenizer(parser, "tokenizer.json to encode the text with", required=True)
    add_special_tokens(parser)
    add_dataset_output(parser)
    add_lengths(parser, default_text="those of --config, else 128 512")
    add_run_config(parser, "use the sequence lengths and the segment policy of this run's configuration")
    parser.add_argument(
        "--sentences",
        choices=(*LIBRARIES, "lines"),
        default="split",
        help="how to find sentences. split: with the package sentencex (default); punkt: with NLTK, which "
        "must be installed with its data; lines: every line is a sentence",
    )
    parser.add_argument(
        "--language",
        default="en",
        metavar="CODE",
        help="ISO 639 code of the language, for finding sentences (default: %(default)s)",
    )
    add_workers(parser, None, "worker processes of each rank (default: one for each core that it may use)")
    add_overwrite(parser, "an existing dataset of the same name")


def run(args: argparse.Namespace) -> None:
    """Run ``build`` and print a summary of the dataset."""
    if args.lengths is not None and args.config is not None:
        raise UserError("--lengths: not needed with --config, which has the sequence lengths; remove one")
    needs = None if args.config is None else read_run_config(args.config)
    lengths, policy = args.lengths or [128, 512], POLICY
    if needs is not None:
        lengths, policy = needs.lengths, needs.policy
    with Ranks() as ranks:
        manifest, skipped = build_dataset(
            args.input,
            args.tokenizer,
            args.output,
            lengths=lengths if policy == POLICY else (),
            sentences=args.sentences,
            language=args.language,
            file_format=args.format,
            json_key=args.json_key,
            names=special_names(args.special_tokens),
            skip=args.on_error == "skip",
            workers=args.workers,
            overwrite=args.overwrite,
            ranks=ranks,
            announce=lambda inputs: print(*inputs.lines(), sep="\n", flush=True),
        )
        if ranks.rank == 0:
            if args.sentences == "split" and (note := language_note(args.language)):
                print(note)
            if policy != POLICY:
                dataset = IndexedDataset(args.output)
                for length in lengths:
                    build_segments(dataset, length, policy)
                manifest = dataset.manifest
            print("\n".join([summary(args.output, manifest), *skipped.lines()]))


def build_dataset(
    inputs: Iterable[str | Path],
    tokenizer_path: Path,
    prefix: Path,
    *,
    lengths: Iterable[int] = (),
    sentences: str = "split",
    language: str = "en",
    file_format: str = "auto",
    json_key: str = "text",
    names: SpecialNames = USUAL_NAMES,
    skip: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    ranks: Ranks | None = None,
    announce: Callable[[Inputs], object] = lambda inputs: None,
) -> tuple[Manifest, Skipped]:
    """Encode text as the dataset ``prefix``. Its files appear only when the build has succeeded.

    Args:
        inputs: Text files, directories or glob patterns.
        tokenizer_path: Path of the tokenizer's JSON file.
        prefix: Path of the dataset without ``.bin``. Its directory is created.
        lengths: Sequence lengths to create segment indexes for.
        sentences: Key of ``data_tools.sentences.LIBRARIES``, or ``lines``.
        language: ISO 639 code of the language.
        file_format: Key of ``data_tools.input_formats.FORMATS``.
        json_key: Key or column that holds the text of a record.
        names: Names of the tokenizer's special tokens.
        skip: Skip and count input that cannot be used, instead of stopping.
        workers: Number of worker processes on each rank. None starts one for each core.
        overwrite: Replace a dataset of the same name.
        ranks: Ranks that share the work. None lets this process find them.
        announce: Function that is called on the first rank with the files that are read and left out, before
            any of them is encoded.

    Returns:
        The manifest of the dataset, and the input that was skipped.

    Raises:
        UserError: The input, the tokenizer or the output cannot be used.
    """
    ranks = ranks or Ranks()
    cores = ranks.cores_per_rank()
    lengths = list(lengths)
    with contextlib.ExitStack() as output:

        def prepare() -> tuple[Path, list[Task], Encoding, Skipped]:
            _check_options(lengths, workers, sentences, language)
            unusable = Skipped()
            found = find_input_files(inputs, file_format, unusable if skip else None)
            size = load_tokenizer(tokenizer_path, names).get_vocab_size()
            encoding = Encoding(
                str(tokenizer_path), token_dtype(size).str, sentences, language, json_key, skip, names
            )
            staged = output.enter_context(new_dataset(prefix, overwrite))
            tasks = plan_tasks(found.files, encoding, staged.parent, unusable)
            announce(found)
            return staged, tasks, encoding, unusable

        staged, tasks, encoding, unusable = ranks.run_on_first(prepare)
        _encode(tasks, encoding, ranks, workers or cores, prefix)
        return ranks.run_on_first(lambda: join_parts(tasks, encoding, staged, lengths, unusable))


def _check_options(lengths: list[int], workers: int | None, sentences: str, language: str) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"--workers: must be at least 1, found {workers}")
    for length in lengths:
        check_sequence_length(length)
    sentence_splitter(sentences, language)


def _encode(tasks: list[Task], encoding: Encoding, ranks: Ranks, workers: int, prefix: Path) -> None:
    """Encode this rank's share of the input, except for parts that are finished already."""
    todo: dict[Part, Task] = {}
    counts_before = dict.fromkeys(COUNTS, 0)
    for task in tasks_of_rank(tasks, ranks.rank, ranks.size):
        found = task.part.summary()
        if found is not None and (encoding.skip or found.is_complete):
            counts_before = {name: counts_before[name] + found.counts[name] for name in COUNTS}
        else:
            todo[task.part] = task
    progress = SPAWN_CONTEXT.Array("q", [*counts_before.values(), 0])
    pool = make_worker_pool(min(workers, max(len(todo), 1)), init_worker, (encoding, progress))
    with interrupts_blocked():
        futures = [pool.submit(encode_in_worker, task.pieces, part) for part, task in todo.items()]
    try:
        _wait_for_workers(futures, progress, ranks, prefix, sum(task.size for task in tasks))
    finally:
        progress[-1] = 1
        pool.shutdown(cancel_futures=True)


def _wait_for_workers(
    futures: list[Future[None]], progress: Any, ranks: Ranks, prefix: Path, total: int
) -> None:
    """Wait for the workers of all ranks and show their progress. Stop all ranks if a worker fails."""
    pending = set(futures)
    tokens_before = None
    with progress_bar(total, "B", prefix.name, shown=ranks.rank == 0) as bar:
        while True:
            done, pending = wait(pending, timeout=UPDATE_SECONDS, return_when=FIRST_EXCEPTION)
            states = ranks.gather((list(progress)[:-1], len(pending), _error_message(done)))
            sums = map(sum, zip(*(each for each, _, _ in states), strict=True))
            counts = dict(zip(COUNTS, sums, strict=True))
            if tokens_before is None:
                tokens_before = counts["tokens"]
                bar.initial = counts["size"]
            elapsed = bar.format_dict["elapsed"] or 1
            speed = (counts["tokens"] - tokens_before) / elapsed
            numbers = {name: tqdm.format_sizeof(number) for name, number in counts.items()}
            bar.set_postfix_str(
                f"{numbers['documents']} documents, {numbers['sequences']} sentences, "
                f"{numbers['tokens']} tokens, {numbers['words']} words, {tqdm.format_sizeof(speed)} tokens/s",
                refresh=False,
            )
            bar.update(counts["size"] - bar.n)
            ranks.stop_if_any([message for _, _, message in states])
            if not any(waiting for _, waiting, _ in states):
                return


def _error_message(done: set[Future[None]]) -> str | None:
    """Return the error message of a task that failed for a reason other than a bug, or None.

    Raises:
        Exception: A task failed for any other reason.
    """
    for future in done:
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            return WORKER_KILLED
        if error is not None and (message := describe_expected(error)):
            return message
        if error is not None and not isinstance(error, WorkerStoppedError):
            raise error
    return None
