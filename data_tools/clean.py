"""Raw corpora to clean text."""

import argparse
import contextlib
import lzma
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_tools.cleaning.parallel import Cleaned, chunks_of, cleaned_files
from data_tools.cleaning.rules import RULES, corpus_of
from data_tools.reading import JSON_LINES, read_lines
from data_tools.text import (
    COMPRESSIONS,
    PARQUET,
    Skipped,
    add_error_argument,
    cannot_read,
    format_of,
    input_files,
    refuse,
)
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.machine import available_cores

HELP = "clean raw text, each corpus of BabyLM 2023 by rules of its own"

EPILOG = """\
input:
  Plain UTF-8, also compressed (.gz, .zst, .xz). A directory stands for all files below it. A file's name
  up to the first dot says which corpus it is of, as in aochildes.train, gutenberg.dev and cbt.txt;
  --corpus says so where names do not.

  aochildes, bnc_spoken            tokens joined ("is n't it ?" to "isn't it?"), capital, quotes around
  open_subtitles, qed, switchboard leading dashes off, quotes around what is said
  cbt                              brackets and quotes instead of -LRB- and ``, tokens joined
  children_stories                 indentation becomes [TAB]
  gutenberg                        hard-wrapped lines joined to paragraphs
  simple_wikipedia                 footnote marks and articles of one sentence on a place dropped
  wikipedia                        links, files, categories and footnote marks resolved or dropped
  everything else                  encodings, punctuation and white space put right, nothing more

written:
  A file of the same name below the output directory. A line is a paragraph and an empty line ends a
  document, as `tokenizer` and `build` expect. Each file appears when it is complete; one that is there
  already is left alone, so that a command that was interrupted goes on where it stopped.

examples:
  python -m data_tools clean --input babylm_10M --output babylm_10M_clean
  python -m data_tools clean --input babylm_dev/gutenberg.dev --output clean --overwrite

  subtitles under other names, leaving out and counting what is not UTF-8:
  python -m data_tools clean --input subtitles/ --corpus open_subtitles --on-error skip --output clean
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `clean`."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="text files, directories or globs"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="directory to write to")
    parser.add_argument(
        "--corpus", choices=RULES, metavar="NAME", help="treat all input as this one: " + ", ".join(RULES)
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        metavar="N",
        help="processes (default: all cores, %(default)s)",
    )
    add_error_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there already")


def run(args: argparse.Namespace) -> None:
    """Runs `clean` and prints what became of each file."""
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
    """One file and what became of it."""

    source: Path
    target: Path
    corpus: str
    skipped: Skipped | None
    """What of it was left out; None where everything must be usable."""
    lines_in: int = 0
    lines_out: int = 0
    words_in: int = 0
    words_out: int = 0
    note: str = ""
    """Why nothing was written."""


def clean(
    inputs: Iterable[str | Path],
    output: Path,
    *,
    corpus: str | None = None,
    workers: int = 1,
    skip_errors: bool = False,
    overwrite: bool = False,
) -> list[Report]:
    """Cleans files into the directory `output`; each appears there when it is complete.

    Args:
        inputs: text files or directories.
        output: directory for the cleaned files, which keep their paths below an input directory.
        corpus: a key of `RULES` for all files; by default each file's name tells.
        workers: processes that clean.
        skip_errors: leave out and count what cannot be used, instead of raising.
        overwrite: replace files that are there already, which are otherwise left alone.

    Raises:
        UserError: the input is missing, or is or would become the output, or cannot be used.
    """
    if workers < 1:
        raise UserError(f"--workers is {workers}; use at least 1")
    reports = _plan(inputs, output, corpus, skip_errors)
    if not overwrite:
        for report in reports:
            report.note = "there already" if report.target.exists() else ""
    to_do = [report for report in reports if not report.note]
    with tqdm(
        total=sum(report.source.stat().st_size for report in to_do),
        unit="B",
        unit_scale=True,
        desc="clean",
        disable=None,
    ) as progress:
        chunks = (
            chunk for report in to_do for chunk in chunks_of(report.corpus, _lines_of(report, progress))
        )
        with contextlib.closing(cleaned_files(chunks, workers)) as files:
            for report, results in zip(to_do, files, strict=False):
                _write(report, results)
    return reports


def _plan(inputs: Iterable[str | Path], output: Path, corpus: str | None, skip_errors: bool) -> list[Report]:
    """Which file is to be written for which."""
    reports: dict[Path, Report] = {}
    for path in map(Path, inputs):
        if path.is_dir() and output.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--output {output}: lies in the input {path}; choose a directory outside it")
        for source in input_files([path]):
            target = output / (source.relative_to(path) if path.is_dir() else source.name)
            if target.suffix in COMPRESSIONS:
                target = target.with_suffix("")
            if target.resolve() == source.resolve():
                raise UserError(f"--output {output}: would replace the input {source}; choose another")
            if target in reports:
                raise UserError(
                    f"{source} and {reports[target].source} would both become {target}; clean them one by one"
                )
            reports[target] = Report(
                source, target, corpus or corpus_of(source), Skipped() if skip_errors else None
            )
    return list(reports.values())


def _lines_of(report: Report, progress: tqdm) -> Iterator[str]:
    """The raw lines of a file, counted."""
    source = report.source
    if format_of(source) in (*JSON_LINES, PARQUET):
        report.note = "left out"
        refuse(report.skipped, "not plain text", f"{source}: not plain text; extract its text first")
        return
    try:
        for line, size in read_lines(source, report.skipped):
            report.lines_in += 1
            progress.update(size)
            yield line
    except UserError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        report.note = "left out"
        refuse(report.skipped, "unreadable file", cannot_read(str(source), error))


class _Unusable(Exception):
    """A file that is to be left out."""


def _write(report: Report, results: Iterable[Cleaned]) -> None:
    """Writes one cleaned file, or nothing where it cannot be used."""

    def cleaned_lines() -> Iterator[str]:
        for cleaned in results:
            report.words_in += cleaned.words_in
            yield from cleaned.lines

    report.target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(_Unusable), atomic_write(report.target, "w") as file:
        for line in RULES[report.corpus].choose(cleaned_lines()):
            file.write(line + "\n")
            report.lines_out += 1
            report.words_out += len(line.split())
        if not report.words_out and not report.note:
            report.note = "left out"
            if not (report.skipped and report.skipped.counts):
                problem = "nothing is left after cleaning" if report.words_in else "holds no text"
                refuse(report.skipped, "empty file", f"{report.source}: {problem}; remove it")
        if report.note:
            raise _Unusable


def summary(output: Path, reports: list[Report]) -> str:
    """A table of the files: lines and words before and after, and what was skipped."""
    width = max(len(str(report.target.relative_to(output))) for report in reports)
    columns = ("lines in", "lines out", "words in", "words out")
    rows = [f"{output!s:<{width + 4}}{'cleaned as':<18}" + "".join(f"{name:>13}" for name in columns)]
    for report in reports:
        counts = (report.lines_in, report.lines_out, report.words_in, report.words_out)
        row = f"  {report.target.relative_to(output)!s:<{width + 2}}{report.corpus:<18}"
        rows.append(row + (report.note or "".join(f"{count:>13,}" for count in counts)))
        rows += report.skipped.lines() if report.skipped else []
    return "\n".join(rows)
