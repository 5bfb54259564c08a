"""Text input: which files there are, how they are cut into pieces, and what to do about bad ones."""

import argparse
import glob
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from elc_bert.utils.errors import UserError

COMPRESSIONS = (".gz", ".zst", ".xz")
PARQUET = ".parquet"


@dataclass
class Skipped:
    """What was left out of the input, by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)
    """The first case of each reason, as an error would have told it."""

    def add(self, reason: str, message: str, count: int = 1) -> None:
        """Counts something that was left out."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, message)

    def update(self, other: "Skipped") -> None:
        """Adds what was left out of a later part of the input."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def lines(self) -> list[str]:
        """A table for people."""
        return [f"  skipped {n:>8,} x {name} (first: {self.first[name]})" for name, n in self.counts.items()]


def refuse(skipped: Skipped | None, reason: str, message: str) -> None:
    """Says what cannot be used, or counts it.

    Raises:
        UserError: `skipped` is None.
    """
    if skipped is None:
        raise UserError(f"{message}, or leave it out with --on-error skip")
    skipped.add(reason, message)


def cannot_read(name: str, error: BaseException) -> str:
    """What to say of a file that failed to open or to give its content."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
    return f"{name}: cannot read: {reason}; check the file and its permissions"


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of commands that read text of any kind."""
    parser.add_argument(
        "--input", nargs="+", required=True, metavar="PATH", help="text files, directories or globs"
    )
    parser.add_argument(
        "--json-key",
        default="text",
        metavar="KEY",
        help="key of the text in JSON lines, column of it in Parquet (default: text)",
    )
    add_error_argument(parser)


def add_error_argument(parser: argparse.ArgumentParser) -> None:
    """Declares what to do about input that cannot be used."""
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="input that cannot be used: stop and name it (default), or leave it out, count it and go on",
    )


def input_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among `paths`, and all regular files below its directories, sorted; globs are expanded.

    Raises:
        UserError: a path does not exist, or a directory holds no file.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each, path))
            if not found:
                raise UserError(f"{path}: the directory holds no files; put text into it")
            files += found
        elif path.exists():
            files.append(path)
        elif found := sorted(map(Path, glob.glob(str(path), recursive=True))):
            files += [each for each in found if each.is_file()]
        else:
            raise UserError(f"{path}: no such file or directory; check the path")
    return files


def format_of(path: Path) -> str:
    """The suffix that tells what a file holds, whatever compresses it."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


def _hidden(path: Path, directory: Path) -> bool:
    """Whether a file below a directory is an editor's, downloader's or version control's, not text."""
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


class Piece(NamedTuple):
    """A part of one input file that is read by itself."""

    path: str
    begin: int
    """Byte on disk, or row group of a Parquet file. A line belongs to the piece in which it begins."""
    end: int
    size: int
    """Bytes on disk."""
    is_last: bool
    """Whether the file ends with it."""


def pieces_of(path: Path, piece_bytes: int, skipped: Skipped | None = None) -> list[Piece]:
    """Cuts a file into pieces of about `piece_bytes`; a compressed file is one piece.

    Raises:
        UserError: the file cannot be read, and `skipped` is None.
    """
    name = str(path)
    try:
        with open(path, "rb"):
            size = path.stat().st_size  # and it can be opened: better known now than hours later
        if path.suffix == PARQUET:
            return _row_groups(name, piece_bytes)
        step = size if path.suffix in COMPRESSIONS else piece_bytes
        begins = range(0, size, step) if size else [0]
        ends = [*begins[1:], size]
        return [Piece(name, a, b, b - a, b == size) for a, b in zip(begins, ends, strict=True)]
    except (OSError, ValueError) as error:
        refuse(skipped, "unreadable file", cannot_read(name, error))
        return []


def _row_groups(name: str, piece_bytes: int) -> list[Piece]:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(name)
    count = metadata.num_row_groups
    pieces: list[Piece] = []
    begin = size = 0
    for group in range(count):
        size += metadata.row_group(group).total_byte_size
        if size >= piece_bytes or group == count - 1:
            pieces.append(Piece(name, begin, group + 1, size, group == count - 1))
            begin, size = group + 1, 0
    return pieces or [Piece(name, 0, 0, 0, True)]
