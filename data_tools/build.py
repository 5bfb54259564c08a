"""Text to token dataset."""

import argparse
import contextlib
from collections.abc import Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_tools.encoding import COUNTS, Encoding, Part, Stopped, encode_in_worker, start_worker
from data_tools.output import new_dataset, summary
from data_tools.plan import Task, plan_parts, share, versions_of
from data_tools.ranks import Ranks
from data_tools.sentences import LIBRARIES, sentence_finder
from data_tools.text import Skipped, add_input_arguments, input_files
from data_tools.workers import CONTEXT, KILLED, interrupts_blocked, worker_pool
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import InputFile, Manifest
from elc_bert.data.format.segments import build_segments, check_sequence_length
from elc_bert.data.format.vocabulary import load_tokenizer, tokenizer_sha256
from elc_bert.data.format.writer import IndexedDatasetWriter, token_dtype
from elc_bert.utils.errors import UserError, told

HELP = "encode text as a token dataset, with its segments"

EPILOG = """\
text:
  Plain UTF-8 text: a line is a paragraph, an empty line ends a document, and so does a file.
  .jsonl, .ndjson, .parquet: a record is a document, its text is under --json-key.
  All but Parquet also as .gz, .zst, .xz. A directory stands for all files below it, sorted by name.

written:
  PREFIX.bin, PREFIX.idx           the tokens, in the format of Megatron-LM and GPT-NeoX
  PREFIX.segments-T.npy            where the samples of sequence length T lie in them
  PREFIX.json                      counts, checksums, and what they were made from and with

examples:
  python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train
  python -m data_tools build --input 'shards/*.jsonl.zst' --json-key content \\
      --tokenizer tokenizer.json --output corpus/train --lengths 128 512

  on several nodes, whose ranks share the input; PREFIX must be on a file system that all of them see:
  mpirun -n 8 python -m data_tools build --input text/ --tokenizer tokenizer.json --output corpus/train

  with one sentence on each line and [PAR] at the ends of paragraphs already:
  python -m data_tools build --input segmented.txt --sentences lines --tokenizer tokenizer.json \\
      --output corpus/train

A build that was stopped or failed goes on with the same command: finished parts are kept until then in
the hidden folder .NAME.build beside the output. The result is the same to the byte for any number of
ranks and workers.
"""

UPDATE_SECONDS = 0.5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `build`."""
    add_input_arguments(parser)
    parser.add_argument("--tokenizer", required=True, type=Path, metavar="FILE", help="the tokenizer.json")
    parser.add_argument("--output", required=True, type=Path, metavar="PREFIX", help="dataset to write")
    parser.add_argument(
        "--lengths",
        nargs="+",
        type=int,
        default=[128, 512],
        metavar="T",
        help="sequence lengths to cut segments for (default: 128 512)",
    )
    parser.add_argument(
        "--sentences",
        choices=(*LIBRARIES, "lines"),
        default="split",
        help="split: find the sentences of each line (default); punkt: with NLTK, if it and its data are "
        "installed; lines: every line is one",
    )
    parser.add_argument(
        "--language", default="en", metavar="CODE", help="whose sentences to find, ISO 639 (default: en)"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes of each rank (default: all cores it may use)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset of the same name")


def run(args: argparse.Namespace) -> None:
    """Runs `build` and prints a summary."""
    with Ranks() as ranks:
        manifest, skipped = build_dataset(
            args.input,
            args.tokenizer,
            args.output,
            lengths=args.lengths,
            sentences=args.sentences,
            language=args.language,
            json_key=args.json_key,
            skip=args.on_error == "skip",
            workers=args.workers,
            overwrite=args.overwrite,
            ranks=ranks,
        )
        if ranks.rank == 0:
            print("\n".join([summary(args.output, manifest), *skipped.lines()]))


def build_dataset(
    inputs: Iterable[str | Path],
    tokenizer_path: Path,
    prefix: Path,
    *,
    lengths: Iterable[int] = (),
    sentences: str = "split",
    language: str = "en",
    json_key: str = "text",
    skip: bool = False,
    workers: int | None = None,
    overwrite: bool = False,
    ranks: Ranks | None = None,
) -> tuple[Manifest, Skipped]:
    """Encodes text as the dataset `prefix`, whose files appear only when all is well.

    Args:
        inputs: text files, directories or globs.
        tokenizer_path: the tokenizer's JSON file.
        prefix: path of the dataset without `.bin`; its directory is created.
        lengths: sequence lengths to cut segments for.
        sentences: a key of `data_tools.sentences.LIBRARIES`, or `lines`.
        language: ISO 639 code.
        json_key: where records have their text.
        skip: count and leave out what cannot be used, instead of stopping.
        workers: processes that encode, on each rank; by default one for each core.
        overwrite: replace a dataset of the same name.
        ranks: those that share the work; by default this process alone.

    Raises:
        UserError: the input, the tokenizer or the output cannot be used; says why.
    """
    ranks = ranks or Ranks()
    cores = ranks.cores()
    lengths = list(lengths)
    with contextlib.ExitStack() as output:

        def prepare() -> tuple[Path, list[Task], Encoding, Skipped]:
            _check_options(lengths, workers, sentences, language)
            files = input_files(inputs)
            size = load_tokenizer(tokenizer_path).get_vocab_size()
            encoding = Encoding(
                str(tokenizer_path), token_dtype(size).str, sentences, language, json_key, skip
            )
            staged = output.enter_context(new_dataset(prefix, overwrite))
            unreadable = Skipped()
            tasks = plan_parts(files, encoding, staged.parent, unreadable)
            return staged, tasks, encoding, unreadable

        staged, tasks, encoding, unreadable = ranks.first(prepare)
        _encode(tasks, encoding, ranks, workers or cores, prefix)
        return ranks.first(lambda: _join(tasks, encoding, staged, lengths, unreadable))


def _check_options(lengths: list[int], workers: int | None, sentences: str, language: str) -> None:
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}; use at least 1")
    for length in lengths:
        check_sequence_length(length)
    sentence_finder(sentences, language)


def _encode(tasks: list[Task], encoding: Encoding, ranks: Ranks, workers: int, prefix: Path) -> None:
    """Encodes this rank's share of the input, as far as the parts are not there already."""
    todo: dict[Part, Task] = {}  # a part occurs twice where the same files were given twice
    counts_before = dict.fromkeys(COUNTS, 0)
    for task in share(tasks, ranks.rank, ranks.size):
        found = task.part.summary()
        if found is not None and (encoding.skip or not found.skipped.counts):
            counts_before = {name: counts_before[name] + found.counts[name] for name in COUNTS}
        else:
            todo[task.part] = task
    progress = CONTEXT.Array("q", [*counts_before.values(), 0])
    pool = worker_pool(min(workers, max(len(todo), 1)), start_worker, (encoding, progress))
    with interrupts_blocked():
        futures = [pool.submit(encode_in_worker, task.pieces, part) for part, task in todo.items()]
    try:
        _watch(futures, progress, ranks, prefix, sum(task.size for task in tasks))
    finally:
        progress[-1] = 1
        pool.shutdown(cancel_futures=True)


def _watch(futures: list[Future[None]], progress: Any, ranks: Ranks, prefix: Path, total: int) -> None:
    """Waits for all ranks' workers and shows how far they are; stops all when one cannot go on."""
    pending = set(futures)
    tokens_before = None
    with tqdm(
        total=total, unit="B", unit_scale=True, desc=prefix.name, disable=True if ranks.rank else None
    ) as bar:
        while True:
            done, pending = wait(pending, timeout=UPDATE_SECONDS, return_when=FIRST_EXCEPTION)
            states = ranks.gather((list(progress)[:-1], len(pending), _failure(done)))
            sums = map(sum, zip(*(each for each, _, _ in states), strict=True))
            counts = dict(zip(COUNTS, sums, strict=True))
            if tokens_before is None:
                tokens_before = counts["tokens"]
                bar.initial = counts["size"]
            bar.update(counts["size"] - bar.n)
            elapsed = bar.format_dict["elapsed"] or 1
            speed = (counts["tokens"] - tokens_before) / elapsed
            numbers = {name: tqdm.format_sizeof(number) for name, number in counts.items()}
            bar.set_postfix_str(
                f"{numbers['documents']} documents, {numbers['sequences']} sentences, "
                f"{numbers['tokens']} tokens, {numbers['words']} words, {tqdm.format_sizeof(speed)} tokens/s"
            )
            ranks.stop_on([message for _, _, message in states])
            if not any(waiting for _, waiting, _ in states):
                return


def _failure(done: set[Future[None]]) -> str | None:
    """The mistake that ended a task, if one did.

    Raises:
        Exception: one that is no mistake of the user's.
    """
    for future in done:
        error = future.exception()
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, OSError):
            return told(error)
        if isinstance(error, BrokenProcessPool):
            return KILLED
        if error is not None and not isinstance(error, Stopped):
            raise error
    return None


def _join(
    tasks: list[Task], encoding: Encoding, staged: Path, lengths: list[int], skipped: Skipped
) -> tuple[Manifest, Skipped]:
    """Puts the parts together as the dataset `staged`, with manifest and segments."""
    words = 0
    inputs: dict[str, InputFile] = {}
    with (
        tqdm(total=len(tasks), unit="part", desc="joining", disable=None, leave=False) as bar,
        IndexedDatasetWriter(staged, np.dtype(encoding.dtype)) as writer,
    ):
        for part in (task.part for task in tasks):
            found = part.summary()
            assert found is not None
            writer.add(
                part.array("tokens", encoding.dtype), part.array("lengths", "<i4"), part.array("ends", "<i8")
            )
            words += found.counts["words"]
            skipped.update(found.skipped)
            for path, sha256 in found.sha256.items():
                inputs[path] = InputFile(path=path, bytes=Path(path).stat().st_size, sha256=sha256)
            bar.update()
    written = writer.written
    if written.tokens == 0:
        raise UserError("the input holds no text that can be used; nothing was written")
    Manifest(
        sequences=written.sequences,
        documents=written.documents,
        tokens=written.tokens,
        words=words,
        vocab_size=load_tokenizer(encoding.tokenizer).get_vocab_size(),
        tokenizer_sha256=tokenizer_sha256(encoding.tokenizer),
        bin_sha256=written.bin_sha256,
        idx_sha256=written.idx_sha256,
        versions=versions_of(encoding),
        inputs=list(inputs.values()),
        skipped=skipped.counts,
    ).save(staged)
    dataset = IndexedDataset(staged)
    for length in lengths:
        build_segments(dataset, length)
    return dataset.manifest, skipped
