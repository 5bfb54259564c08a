"""The command ``clean``: turn raw corpora into clean text."""

import argparse
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.cleaning.parallel import Cleaned, cleaned_files, make_chunks
from data_tools.cleaning.record import Origin, load_record, save_record
from data_tools.cleaning.rules import RULES, corpus_name
from data_tools.input_files import Inputs, Skipped, find_input_files, skip_or_raise
from data_tools.input_formats import COMPRESSIONS, TEXT, UNREADABLE, TextFile, unreadable_message
from data_tools.options import add_format, add_on_error, add_overwrite, add_text_input, add_workers
from data_tools.progress import progress_bar
from data_tools.text_reader import read_lines
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.machine import available_cores

if TYPE_CHECKING:
    from tqdm import tqdm

HELP = "clean raw text, with special rules for each corpus of BabyLM 2023"

EPILOG = """\
input:
  Plain text in UTF-8, which may be compressed (gz, zst, xz). A directory stands for all files below it,
  except those that the command lists as left out.
  The name of a file up to the first dot says which corpus it belongs to, as in aochildes.train,
  gutenberg.dev and cbt.txt. For other file names, use --corpus.

  aochildes, bnc_spoken            join tokens ("is n't it ?" to "isn't it?"), capitalize, add quotes
  open_subtitles, qed, switchboard remove leading dashes, put speech in quotes
  cbt                              replace -LRB- and `` by brackets and quotes, join tokens
  children_stories                 replace indentation by [TAB]
  gutenberg                        join hard-wrapped lines to paragraphs
  simple_wikipedia                 drop footnote marks, and one-sentence articles about places
  wikipedia                        resolve links, drop files, categories and footnote marks
  everything else                  only fix encodings, and normalize punctuation and white space

output:
  A file of the same name below the output directory. Each line is a paragraph and an empty line ends a
  document, as the commands "tokenizer" and "build" expect. A file appears when it is complete. Files that
  exist already are skipped, so to resume an interrupted command, run it again. The hidden file .clean.json
  records how each file was made; a file that was made by other rules, or from an input that has changed
  since, is an error unless you add --overwrite.

examples:
  python -m data_tools clean --input babylm_10M --output babylm_10M_clean
  python -m data_tools clean --input babylm_dev/gutenberg.dev --output clean --overwrite

  Subtitles under other names, skipping and counting input that is not UTF-8:
  python -m data_tools clean --input subtitles/ --corpus open_subtitles --on-error skip --output clean
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``clean``."""
    add_text_input(parser)
    add_format(parser)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--corpus",
        choices=RULES,
        metavar="NAME",
        help="apply the rules of this corpus to all input files; one of: " + ", ".join(RULES),
    )
    add_workers(parser, available_cores(), "worker processes (default: one for each core, %(default)s)")
    add_on_error(parser)
    add_overwrite(parser, "output files that exist already")


def run(args: argparse.Namespace) -> None:
    """Run ``clean`` and print a table of the files."""
    skipped = Skipped()
    skips = args.on_error == "skip"
    inputs = find_input_files(args.input, args.format, skipped if skips else None)
    for line in inputs.left_out_lines():
        print(line, flush=True)
    reports = clean(
        inputs,
        args.output,
        corpus=args.corpus,
        workers=args.workers,
        skip_errors=skips,
        overwrite=args.overwrite,
    )
    print("\n".join([summary(args.output, reports), *skipped.lines()]))


@dataclass(eq=False)
class Report:
    """Record of what was done with one input file."""

    source: TextFile
    """Input file."""
    target: Path
    """Path of the cleaned file."""
    corpus: str
    """Corpus whose rules apply, a key of ``RULES``."""
    skipped: Skipped | None
    """Input that was skipped. None if input that cannot be used is an error."""
    lines_in: int = 0
    """Number of lines read."""
    lines_out: int = 0
    """Number of lines written."""
    words_in: int = 0
    """Number of words read."""
    words_out: int = 0
    """Number of words written."""
    note: str = ""
    """Reason why nothing was written, or empty."""
    is_written: bool = False
    """True once the output file is complete."""


def clean(
    inputs: Inputs,
    output: Path,
    *,
    corpus: str | None = None,
    workers: int = 1,
    skip_errors: bool = False,
    overwrite: bool = False,
) -> list[Report]:
    """Clean files and write the results below the directory ``output``.

    A cleaned file appears when it is complete.

    Args:
        inputs: Text files, from ``find_input_files``.
        output: Directory for the cleaned files. They keep their paths relative to an input directory.
        corpus: Key of ``RULES`` to apply to all files. None determines it from the name of each file.
        workers: Number of worker processes. With 1, this process does the work.
        skip_errors: Skip and count input that cannot be used, instead of raising an error.
        overwrite: Replace output files that exist already. Without it they are skipped if they were made from
            the same input by the same rules.

    Returns:
        A report for each file.

    Raises:
        UserError: The input cannot be used, or would be overwritten by the output, or an output file exists
            that was made from other input or by other rules.
    """
    if workers < 1:
        raise UserError(f"--workers: must be at least 1, found {workers}")
    reports = _plan_outputs(inputs, output, corpus, skip_errors)
    to_do = reports if overwrite else _not_cleaned_yet(reports, output)
    with (
        _recorded(to_do, output, overwrite),
        progress_bar(sum(report.source.size for report in to_do), "B", "clean") as progress,
    ):
        chunks = (
            chunk for report in to_do for chunk in make_chunks(report.corpus, _lines_of(report, progress))
        )
        with contextlib.closing(cleaned_files(chunks, workers)) as files:
            for report, results in zip(to_do, files, strict=False):
                _write(report, results)
    return reports


def _plan_outputs(inputs: Inputs, output: Path, corpus: str | None, skip_errors: bool) -> list[Report]:
    """Return a report for each input file, with the path of its output."""
    for folder in inputs.folders:
        if output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"--output {output}: is inside the input {folder}; choose a directory outside of it"
            )
    reports: dict[Path, Report] = {}
    for source in inputs.files:
        target = output / source.relative
        if source.compression and target.suffix.lower() in COMPRESSIONS:
            target = target.with_suffix("")
        if target.resolve() == source.path.resolve():
            raise UserError(
                f"--output {output}: would replace the input {source.path}; choose another directory"
            )
        if target in reports:
            raise UserError(
                f"{target}: would be the output of both {source.path} and {reports[target].source.path}; "
                "clean them one at a time, with different --output"
            )
        reports[target] = Report(
            source, target, corpus or corpus_name(source.path), Skipped() if skip_errors else None
        )
    return list(reports.values())


def _not_cleaned_yet(reports: list[Report], output: Path) -> list[Report]:
    """Return the reports of files whose output does not exist, and note in the others that it exists.

    Raises:
        UserError: An output was made from other input or by other rules.
    """
    record = load_record(output)
    for report in reports:
        if not report.target.exists():
            continue
        known = record.get(str(report.target.relative_to(output)))
        now = Origin.of(report.source.path, report.corpus)
        if known is not None and known.corpus != now.corpus:
            raise UserError(
                f"{report.target}: exists already and was cleaned as {known.corpus}, not as {now.corpus}; "
                "replace it with --overwrite, or choose another --output"
            )
        if known is not None and known != now:
            raise UserError(
                f"{report.target}: exists already, but {report.source.path} has changed since; "
                "clean it again with --overwrite, or choose another --output"
            )
        report.note = "exists already"
        if known is None:
            report.corpus = "unknown rules"
    return [report for report in reports if not report.note]


@contextlib.contextmanager
def _recorded(to_do: list[Report], output: Path, overwrite: bool) -> Iterator[None]:
    """Record the origins of the files that the block writes.

    The record must also be right if this process is killed. Files that do not exist yet are therefore
    recorded before they are written, and files that are replaced are recorded afterwards.
    """
    if not to_do:
        yield
        return
    origins = {report: Origin.of(report.source.path, report.corpus) for report in to_do}
    names = {report: str(report.target.relative_to(output)) for report in to_do}
    record: dict[str, Origin] = {}
    try:
        record = load_record(output)
    except UserError:
        if not overwrite:
            raise
    record |= {names[report]: origin for report, origin in origins.items()}
    existing = [report for report in to_do if report.target.exists()]
    replaced = {names[report] for report in existing}
    save_record(output, {name: origin for name, origin in record.items() if name not in replaced})
    try:
        yield
    finally:
        unfinished = {names[report] for report in existing if not report.is_written}
        save_record(output, {name: origin for name, origin in record.items() if name not in unfinished})


def _lines_of(report: Report, progress: "tqdm") -> Iterator[str]:
    """Yield the raw lines of a file, and count them in its report."""
    source = report.source
    if source.kind != TEXT:
        report.note = "skipped"
        skip_or_raise(
            report.skipped,
            "not plain text",
            f"{source.path}: {source.kind}, not plain text; extract its text first",
        )
        return
    try:
        for line, size in read_lines(source, report.skipped):
            report.lines_in += 1
            progress.update(size)
            yield line
    except UserError:
        raise
    except UNREADABLE as error:
        report.note = "skipped"
        skip_or_raise(report.skipped, "unreadable file", unreadable_message(source.path, error))


class _UnusableFileError(Exception):
    """The file cannot be used and must be skipped."""


def _write(report: Report, results: Iterable[Cleaned]) -> None:
    """Write one cleaned file, or nothing if the input cannot be used."""

    def cleaned_lines() -> Iterator[str]:
        for cleaned in results:
            report.words_in += cleaned.words_in
            yield from cleaned.lines

    report.target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(_UnusableFileError), atomic_write(report.target, "w") as file:
        for line in RULES[report.corpus].run_after(cleaned_lines()):
            file.write(line + "\n")
            report.lines_out += 1
            report.words_out += len(line.split())
        if not report.words_out and not report.note:
            report.note = "skipped"
            if not (report.skipped and report.skipped.counts):
                problem = "no text is left after cleaning" if report.words_in else "the file holds no text"
                skip_or_raise(report.skipped, "empty file", f"{report.source.path}: {problem}; leave it out")
        if report.note:
            raise _UnusableFileError
    report.is_written = not report.note


def summary(output: Path, reports: list[Report]) -> str:
    """Return a table of the files: lines and words before and after cleaning, and skipped input."""
    width = max((len(str(report.target.relative_to(output))) for report in reports), default=0)
    width = max(width, len(str(output)) - 2)
    columns = ("lines in", "lines out", "words in", "words out")
    rows = [f"{output!s:<{width + 4}}{'cleaned as':<18}" + "".join(f"{name:>13}" for name in columns)]
    for report in reports:
        counts = (report.lines_in, report.lines_out, report.words_in, report.words_out)
        row = f"  {report.target.relative_to(output)!s:<{width + 2}}{report.corpus:<18}"
        rows.append(row + (report.note or "".join(f"{count:>13,}" for count in counts)))
        rows += report.skipped.lines() if report.skipped else []
    return "\n".join(rows)
