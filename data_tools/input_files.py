"""Text input files: finding them, cutting them into pieces, and counting what is skipped."""

import glob
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from elc_bert.utils.errors import UserError

COMPRESSIONS = (".gz", ".zst", ".xz")
"""Suffixes of compressed files."""
PARQUET = ".parquet"
"""Suffix of Parquet files."""


@dataclass
class Skipped:
    """Input that was skipped, counted by reason."""

    counts: dict[str, int] = field(default_factory=dict)
    """Number of cases for each reason."""
    first: dict[str, str] = field(default_factory=dict)
    """The error message of the first case for each reason."""

    def add(self, reason: str, message: str, count: int = 1) -> None:
        """Count something that was skipped."""
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.first.setdefault(reason, message)

    def update(self, other: "Skipped") -> None:
        """Add the counts of a later part of the input."""
        for reason, count in other.counts.items():
            self.add(reason, other.first[reason], count)

    def lines(self) -> list[str]:
        """Return a table for the terminal, one line per reason."""
        return [f"  skipped {n:>8,} x {name} (first: {self.first[name]})" for name, n in self.counts.items()]


def skip_or_raise(skipped: Skipped | None, reason: str, message: str) -> None:
    """Count input that cannot be used, or raise if nothing may be skipped.

    Args:
        skipped: Counter to add to. None if input that cannot be used is an error.
        reason: Short reason, used as the key of the count.
        message: Error message that names the file and the place in it.

    Raises:
        UserError: ``skipped`` is None.
    """
    if skipped is None:
        raise UserError(f"{message}, or skip it with --on-error skip")
    skipped.add(reason, message)


def unreadable_message(name: str, error: BaseException) -> str:
    """Return the error message for a file that cannot be opened or read."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
    return f"{name}: cannot read: {reason}; check the file and its permissions"


def find_input_files(paths: Iterable[str | Path]) -> list[Path]:
    """Return the files that some paths name.

    A directory stands for all regular files below it, sorted by name, except hidden ones. Glob patterns are
    expanded.

    Raises:
        UserError: A path does not exist, or a directory holds no files.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(each for each in path.rglob("*") if each.is_file() and not _is_hidden(each, path))
            if not found:
                raise UserError(f"{path}: the directory holds no files; put text files into it")
            files += found
        elif path.exists():
            files.append(path)
        elif found := sorted(map(Path, glob.glob(str(path), recursive=True))):
            files += [each for each in found if each.is_file()]
        else:
            raise UserError(f"{path}: no such file or directory; check the path")
    return files


def format_suffix(path: Path) -> str:
    """Return the suffix that names the format of a file, ignoring the suffix of a compression."""
    return path.with_suffix("").suffix if path.suffix in COMPRESSIONS else path.suffix


def _is_hidden(path: Path, directory: Path) -> bool:
    # Hidden files belong to editors, download tools and version control; they are not text.
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


class Piece(NamedTuple):
    """A part of one input file that can be read independently of the others."""

    path: str
    """Path of the input file."""
    begin: int
    """First byte on disk, or first row group of a Parquet file. A line belongs to the piece in which it
    begins."""
    end: int
    """End (exclusive), in the unit of ``begin``."""
    size: int
    """Size in bytes on disk."""
    is_last: bool
    """True for the last piece of its file."""


def file_pieces(path: Path, piece_bytes: int, skipped: Skipped | None = None) -> list[Piece]:
    """Cut a file into pieces of about ``piece_bytes`` bytes. A compressed file is a single piece.

    Raises:
        UserError: The file cannot be read, and ``skipped`` is None.
    """
    name = str(path)
    try:
        # Opening the file now reports an unreadable one at once instead of hours later.
        with open(path, "rb"):
            size = path.stat().st_size
        if path.suffix == PARQUET:
            return _parquet_pieces(name, piece_bytes)
        step = size if path.suffix in COMPRESSIONS else piece_bytes
        begins = range(0, size, step) if size else [0]
        ends = [*begins[1:], size]
        return [Piece(name, a, b, b - a, b == size) for a, b in zip(begins, ends, strict=True)]
    except (OSError, ValueError) as error:
        skip_or_raise(skipped, "unreadable file", unreadable_message(name, error))
        return []


def _parquet_pieces(name: str, piece_bytes: int) -> list[Piece]:
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
