"""The command ``clean``: turn raw corpora into clean text."""

import argparse
import contextlib
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_tools.cleaning.parallel import Cleaned, cleaned_files, make_chunks
from data_tools.cleaning.rules import RULES, corpus_name
from data_tools.input_files import (
    COMPRESSIONS,
    PARQUET,
    Skipped,
    find_input_files,
    format_suffix,
    skip_or_raise,
    unreadable_message,
)
from data_tools.options import add_on_error, add_overwrite, add_text_input, add_workers
from data_tools.text_reader import JSON_LINES, read_lines
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.machine import available_cores

HELP = "clean raw text, with special rules for each corpus of BabyLM 2023"

EPILOG = """\
input:
  Plain text in UTF-8, which may be compressed (.gz, .zst, .xz). A directory stands for all files below it.
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
  exist already are skipped, so to resume an interrupted command, run it again.

examples:
  python -m data_tools clean --input babylm_10M --output babylm_10M_clean
  python -m data_tools clean --input babylm_dev/gutenberg.dev --output clean --overwrite

  Subtitles under other names, skipping and counting input that is not UTF-8:
  python -m data_tools clean --input subtitles/ --corpus open_subtitles --on-error skip --output clean
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``clean``."""
    add_text_input(parser)
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
    reports = clean(
        args.input,
        args.output,
        corpus=args.corpus,
        workers=args.workers,
        skip_errors=args.on_error == "skip",
        overwrite=args.overwrite,
    )
    print(summary(args.output, reports))


@dataclass
class Report:
    """Record of what was done with one input file."""

    source: Path
    """Path of the input file."""
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


def clean(
    inputs: Iterable[str | Path],
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
        inputs: Text files or directories.
        output: Directory for the cleaned files. They keep their paths relative to an input directory.
        corpus: Key of ``RULES`` to apply to all files. None determines it from the name of each file.
        workers: Number of worker processes. With 1, this process does the work.
        skip_errors: Skip and count input that cannot be used, instead of raising an error.
        overwrite: Replace output files that exist already. Without it they are skipped.

    Returns:
        A report for each file.

    Raises:
        UserError: The input is missing, cannot be used, or would be overwritten by the output.
    """
    if workers < 1:
        raise UserError(f"--workers: must be at least 1, found {workers}")
    reports = _plan_outputs(inputs, output, corpus, skip_errors)
    if not overwrite:
        for report in reports:
            report.note = "exists already" if report.target.exists() else ""
    to_do = [report for report in reports if not report.note]
    with tqdm(
        total=sum(report.source.stat().st_size for report in to_do),
        unit="B",
        unit_scale=True,
        desc="clean",
        disable=None,
    ) as progress:
        chunks = (
            chunk for report in to_do for chunk in make_chunks(report.corpus, _lines_of(report, progress))
        )
        with contextlib.closing(cleaned_files(chunks, workers)) as files:
            for report, results in zip(to_do, files, strict=False):
                _write(report, results)
    return reports


def _plan_outputs(
    inputs: Iterable[str | Path], output: Path, corpus: str | None, skip_errors: bool
) -> list[Report]:
    """Return a report for each input file, with the path of its output."""
    reports: dict[Path, Report] = {}
    for path in map(Path, inputs):
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"--output {output}: is inside the input {path}; choose a directory outside of it"
            )
        for source in find_input_files([path]):
            target = output / (source.relative_to(path) if path.is_dir() else source.name)
            if target.suffix in COMPRESSIONS:
                target = target.with_suffix("")
            if target.resolve() == source.resolve():
                raise UserError(
                    f"--output {output}: would replace the input {source}; choose another directory"
                )
            if target in reports:
                raise UserError(
                    f"{target}: would be the output of both {source} and {reports[target].source}; clean "
                    "them one at a time, with different --output"
                )
            reports[target] = Report(
                source, target, corpus or corpus_name(source), Skipped() if skip_errors else None
            )
    return list(reports.values())


def _lines_of(report: Report, progress: tqdm) -> Iterator[str]:
    """Yield the raw lines of a file, and count them in its report."""
    source = report.source
    if format_suffix(source) in (*JSON_LINES, PARQUET):
        report.note = "skipped"
        skip_or_raise(
            report.skipped, "not plain text", f"{source}: not a plain text file; extract its text first"
        )
        return
    try:
        for line, size in read_lines(source, report.skipped):
            report.lines_in += 1
            progress.update(size)
            yield line
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        report.note = "skipped"
        skip_or_raise(report.skipped, "unreadable file", unreadable_message(str(source), error))


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
                skip_or_raise(report.skipped, "empty file", f"{report.source}: {problem}; remove it")
        if report.note:
            raise _UnusableFileError


def summary(output: Path, reports: list[Report]) -> str:
    """Return a table of the files: lines and words before and after cleaning, and skipped input."""
    width = max(len(str(report.target.relative_to(output))) for report in reports)
    columns = ("lines in", "lines out", "words in", "words out")
    rows = [f"{output!s:<{width + 4}}{'cleaned as':<18}" + "".join(f"{name:>13}" for name in columns)]
    for report in reports:
        counts = (report.lines_in, report.lines_out, report.words_in, report.words_out)
        row = f"  {report.target.relative_to(output)!s:<{width + 2}}{report.corpus:<18}"
        rows.append(row + (report.note or "".join(f"{count:>13,}" for count in counts)))
        rows += report.skipped.lines() if report.skipped else []
    return "\n".join(rows)
