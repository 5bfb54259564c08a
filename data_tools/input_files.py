"""Text input files: finding them, cutting them into pieces, and counting what is skipped."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from data_tools.cleaning.record import NAME as CLEANING_RECORD
from data_tools.input_formats import (
    COMPRESSIONS,
    PARQUET,
    UNREADABLE,
    TextFile,
    UnsupportedFormatError,
    check_regular,
    recognize,
    unreadable_message,
)
from data_tools.progress import progress_bar
from elc_bert.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow

LISTED = 10
"""Number of files to list by name."""
OTHER_PROGRAM = "file of another program"
"""Reason why files and folders are left out that programs write next to the text."""
NOT_TEXT = {
    "readme or license": r"readme(\W.*|_.*)?|(licen[cs]e|copying|citation|changelog)(\.\w+)?",
    "checksums": r".+\.(crc|crc32|md5|sha1|sha256|sha512|sfv|asc|sig)|(md5|sha\d*|check)sums?(\.txt)?",
    OTHER_PROGRAM: r"_success|_(started|committed)_\d+|_(common_)?metadata|thumbs\.db|desktop\.ini"
    r"|dataset_infos?\.json|_temporary|_delta_log|__macosx",
    "backup or unfinished file": r".+~|#.+#|.+\.(bak|backup|orig|swp|swo|tmp|temp|part|filepart|crdownload)",
}
"""Names in a folder, in lower case, that are not part of a corpus, by the reason why they are left out."""
SAME_FILE = "the same file as"
"""Beginning of the reason why a file that is given twice is left out."""


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


@dataclass
class Inputs:
    """Files that some paths name."""

    files: list[TextFile] = field(default_factory=list)
    """Files to read, in order."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Files and folders that are left out although they can be read, each with the reason."""
    folders: list[Path] = field(default_factory=list)
    """Folders that were searched with all that is below them."""

    def lines(self) -> list[str]:
        """Return a list, for the terminal, of what is read and of what is left out."""
        size = sum(file.size for file in self.files)
        rows = [f"input files: {len(self.files):,}, {size:,} bytes"]
        rows += _listed([(file.path, f"{file.description}, {file.size:,} bytes") for file in self.files])
        if len(self.files) > LISTED:
            kinds = Counter(file.description for file in self.files)
            rows.append("  in total: " + "; ".join(f"{count:,} x {kind}" for kind, count in kinds.items()))
        return rows + self.left_out_lines()

    def left_out_lines(self) -> list[str]:
        """Return a list, for the terminal, of what is left out."""
        if not self.left_out:
            return []
        rows = [f"left out: {len(self.left_out):,}", *_listed(self.left_out)]
        if len(self.left_out) > LISTED:
            reasons = Counter(
                SAME_FILE + " another" if reason.startswith(SAME_FILE) else reason
                for _, reason in self.left_out
            )
            rows.append("  in total: " + "; ".join(f"{count:,} x {why}" for why, count in reasons.items()))
        return rows


def _listed(rows: list[tuple[Path, str]]) -> list[str]:
    more = len(rows) - LISTED
    return [f"  {path}: {text}" for path, text in rows[:LISTED]] + [f"  ... and {more:,} more"] * (more > 0)


def find_input_files(
    paths: Iterable[str | Path], file_format: str = "auto", skipped: Skipped | None = None
) -> Inputs:
    """Return the files that some paths name, with their formats.

    A folder stands for all files below it, sorted by name. Symbolic links are followed. Glob patterns are
    expanded, and the folders that they match are searched. Hidden files and those of ``NOT_TEXT`` are left
    out unless a path names them. A file that several paths or links name is read once, where it comes first.

    Args:
        paths: Files, folders or glob patterns.
        file_format: Key of ``FORMATS``.
        skipped: Counter for files that cannot be used. None if such a file is an error.

    Raises:
        UserError: A path does not exist or stands for no files, or a file cannot be used and ``skipped`` is
            None.
    """
    inputs = Inputs()
    seen: dict[tuple[int, int], Path] = {}
    found = [each for path in map(Path, paths) for each in _expand(path, inputs, skipped).items()]
    with progress_bar(len(found), "file", "looking at the input", leave=False, delay=1) as progress:
        for path, relative in found:
            progress.update()
            try:
                status = check_regular(path)
                first = seen.setdefault((status.st_dev, status.st_ino), path)
                if first is path:
                    inputs.files.append(recognize(path, file_format, relative))
                else:
                    inputs.left_out.append((path, f"{SAME_FILE} {first}"))
            except UnsupportedFormatError as error:
                skip_or_raise(skipped, "unsupported format", str(error))
            except UserError as error:
                skip_or_raise(skipped, "unreadable file", str(error))
    return inputs


def _expand(path: Path, inputs: Inputs, skipped: Skipped | None) -> dict[Path, Path]:
    """Return the files that a path stands for, each with its path relative to the folder that is searched.

    Those that are left out are added to ``inputs``.
    """
    if path.is_dir():
        matches, kind = [path], "directory"
    elif path.exists():
        return {path: Path(path.name)}
    elif path.is_symlink():
        check_regular(path)
    else:
        matches, kind = sorted(map(Path, glob.glob(str(path), recursive=True))), "pattern"
        if not matches:
            raise UserError(f"{path}: no such file or directory; check the path")
    found: dict[Path, Path] = {}
    for match in matches:
        if match.is_dir():
            root = path if kind == "directory" else match.parent
            inputs.folders.append(match)
            found |= {file: file.relative_to(root) for file in _walk(match, inputs, skipped, ())}
        elif _is_text(match, inputs):
            found[match] = Path(match.name)
    inputs.left_out = list(dict.fromkeys(inputs.left_out))  # "**" matches a folder and also what is in it
    if not found:
        out = f" ({len(inputs.left_out)} are left out)" if inputs.left_out else ""
        raise UserError(
            f"{path}: the {kind} holds no files of text{out}; put text files into it, or name the files"
        )
    return {file: found[file] for file in sorted(found)}


def _walk(
    folder: Path, inputs: Inputs, skipped: Skipped | None, above: tuple[tuple[int, int], ...]
) -> Iterator[Path]:
    """Yield all files below a folder but those that are left out.

    Args:
        folder: Folder to search.
        inputs: Takes the files that are left out.
        skipped: Counter for folders that cannot be read. None if such a folder is an error.
        above: Device and inode of the folders above it, because a link may lead back to one of them.
    """
    try:
        status = folder.stat()
        own = (status.st_dev, status.st_ino)
        if own in above:
            inputs.left_out.append((folder, "link to a folder above it"))
            return
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        skip_or_raise(skipped, "unreadable file", unreadable_message(folder, error))
        return
    for path in (folder / name for name in names):
        if _is_text(path, inputs):
            if path.is_dir():
                yield from _walk(path, inputs, skipped, (*above, own))
            else:
                yield path


def _is_text(path: Path, inputs: Inputs) -> bool:
    """Return True unless the name of a file or folder shows that it is not part of a corpus."""
    name = path.name.lower()
    if Path(name).suffix in COMPRESSIONS:
        name = Path(name).stem
    found = [reason for reason, pattern in NOT_TEXT.items() if re.fullmatch(pattern, name)]
    if found and (not path.is_dir() or found[0] == OTHER_PROGRAM):
        inputs.left_out.append((path, found[0]))
    elif name.startswith("."):
        if name != CLEANING_RECORD:
            inputs.left_out.append((path, "hidden"))
    else:
        return True
    return False


class Piece(NamedTuple):
    """A part of one input file that can be read independently of the others."""

    path: str
    """Path of the input file."""
    kind: str
    """Kind of its content: ``TEXT``, ``JSON_LINES`` or ``PARQUET``."""
    compression: str
    """Compression of the file, a key of ``COMPRESSIONS``, or empty."""
    begin: int
    """First byte on disk, or first row group of a Parquet file. A line belongs to the piece in which it
    begins."""
    end: int
    """End (exclusive), in the unit of ``begin``."""
    size: int
    """Size in bytes on disk."""
    is_last: bool
    """True for the last piece of its file."""


def file_pieces(
    file: TextFile, piece_bytes: int, json_key: str = "text", skipped: Skipped | None = None
) -> list[Piece]:
    """Cut a file into pieces of about ``piece_bytes`` bytes. A compressed file is a single piece.

    Args:
        file: Input file.
        piece_bytes: Approximate size of a piece on disk.
        json_key: Column that holds the text of a Parquet file.
        skipped: Counter for files that cannot be used. None if such a file is an error.

    Raises:
        UserError: The file cannot be used, and ``skipped`` is None.
    """
    name, size = str(file.path), file.size
    if file.kind == PARQUET:
        try:
            return _parquet_pieces(file, piece_bytes, json_key)
        except MissingColumnError as error:
            skip_or_raise(skipped, "no such key", str(error))
        except UNREADABLE as error:
            skip_or_raise(skipped, "unreadable file", unreadable_message(name, error))
        return []
    step = size if file.compression else piece_bytes
    begins = range(0, size, step) if size else [0]
    ends = [*begins[1:], size]
    return [
        Piece(name, file.kind, file.compression, a, b, b - a, b == size)
        for a, b in zip(begins, ends, strict=True)
    ]


class MissingColumnError(UserError):
    """A Parquet file has no column of text of the given name."""


def check_text_column(name: str, schema: "pyarrow.Schema", json_key: str) -> None:
    """Check that a Parquet file has a column of text.

    Raises:
        MissingColumnError: There is no such column, or it holds something else.
    """
    import pyarrow.types as types

    if json_key not in schema.names:
        names = ", ".join(schema.names[:8])
        raise MissingColumnError(
            f"{name}: no column {json_key!r}, the columns are {names}; choose one with --json-key"
        )
    kind = schema.field(json_key).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise MissingColumnError(
            f"{name}: column {json_key!r} holds {kind}, not text; choose another with --json-key"
        )


def _parquet_pieces(file: TextFile, piece_bytes: int, json_key: str) -> list[Piece]:
    import pyarrow.parquet as pq

    name = str(file.path)
    metadata = pq.read_metadata(name)
    check_text_column(name, metadata.schema.to_arrow_schema(), json_key)
    count = metadata.num_row_groups
    pieces: list[Piece] = []
    begin = size = 0
    for group in range(count):
        size += metadata.row_group(group).total_byte_size
        if size >= piece_bytes or group == count - 1:
            pieces.append(Piece(name, PARQUET, "", begin, group + 1, size, group == count - 1))
            begin, size = group + 1, 0
    return pieces or [Piece(name, PARQUET, "", 0, 0, 0, True)]
