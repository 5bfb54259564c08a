"""Formats of input files, which are recognized by content: plain text, JSON lines and Parquet."""

import contextlib
import gzip
import io
import json
import lzma
import os
import re
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

from elc_bert.utils.errors import UserError

TEXT, JSON_LINES, PARQUET = "plain text", "JSON lines", "Parquet"
"""Kinds of content."""
FORMATS = {"auto": None, "text": TEXT, "jsonl": JSON_LINES}
"""Kind of content that each value of ``--format`` stands for. None means that the content decides."""
COMPRESSIONS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".zst": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),  # a frame, or a frame to be skipped
}
"""Pattern of the first bytes of compressed files, by suffix."""
UNREADABLE = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError)
"""Exceptions that a damaged or unsupported file raises while it is read."""

AS_IT_IS = "read it as it is with --format text"
"""End of the error messages for files that could be plain text after all."""
HEAD_BYTES = 1 << 12
"""Number of bytes at the beginning of the content that decide on the format."""
BUFFER_BYTES = 1 << 18
"""Size of the buffer behind a decompressor without a buffer of its own."""
MAX_LINE_BYTES = 1 << 24
"""Maximum length of a line in bytes."""

_JSON_OBJECT = re.compile(rb'\{\s*"(?:[^"\\]|\\.)*"\s*:')
_JSON_ARRAY = re.compile(rb'\[\s*\{\s*"')
_MARKUP = re.compile(rb"<\?xml\b|<!doctype html|<html\b", re.IGNORECASE)
_UNSUPPORTED = {
    "a bzip2 file": re.compile(rb"BZh[1-9]1AY&SY"),
    "a ZIP archive": re.compile(rb"PK\x03\x04"),
    "a tar archive": re.compile(rb".{257}ustar", re.DOTALL),
    "a PDF file": re.compile(rb"%PDF-"),
    "an RTF file": re.compile(rb"\{\\rtf"),
    "an Arrow file": re.compile(rb"ARROW1\0|\xff{4}.{4}\x10\0\0\0", re.DOTALL),
}
"""Pattern of the first bytes of files that are not supported, by description."""


class TextFile(NamedTuple):
    """Input file whose format is known."""

    path: Path
    """Path of the file."""
    kind: str
    """``TEXT``, ``JSON_LINES`` or ``PARQUET``."""
    compression: str
    """Key of ``COMPRESSIONS``, or empty."""
    size: int
    """Size on disk in bytes."""
    relative: Path
    """Path relative to the folder that was given, or the name of the file."""

    @property
    def description(self) -> str:
        """Kind and compression of the file, for people."""
        return f"{self.kind}, {self.compression[1:]}" if self.compression else self.kind


class UnsupportedFormatError(UserError):
    """The content of a file can be read, but it is neither text nor records."""


def unreadable_message(name: str | Path, error: BaseException) -> str:
    """Return the error message for a file that cannot be opened or read."""
    reason = getattr(error, "strerror", None) or str(error).partition("\n")[0].rstrip(".")
    return f"{name}: cannot read: {reason}; check the file and its permissions"


def check_regular(path: Path) -> os.stat_result:
    """Return the status of a file, without opening it, which would wait for the writer of a named pipe.

    Raises:
        UserError: The path is not a regular file, or a broken symbolic link.
    """
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            raise UserError(
                f"{path}: broken symbolic link to {os.readlink(path)}; restore that file, or delete the link"
            ) from None
        raise UserError(unreadable_message(path, error)) from None
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFIFO: "a named pipe", stat.S_IFDIR: "a directory", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise UserError(f"{path}: {kind}, which cannot be read more than once; write its content to a file")
    return status


def recognize(path: Path, choice: str = "auto", relative: Path | None = None) -> TextFile:
    """Return the format of a file, from its first bytes.

    Args:
        path: Path of a regular file.
        choice: Key of ``FORMATS``. Compressed files and Parquet are recognized in any case.
        relative: Path relative to the folder that was given. None stands for the name of the file.

    Raises:
        UserError: The file cannot be read, or its content is neither text nor records.
    """
    status = check_regular(path)
    try:
        with open(path, "rb") as raw:
            first = raw.read(6)
        compression = _compression(path, first)
        with open_content(path, compression) as (content, _):
            head = content.read(HEAD_BYTES)
            kind = _kind(path, compression, head, content, FORMATS[choice])
    except UserError:
        raise
    except UNREADABLE as error:
        raise UserError(unreadable_message(path, error)) from None
    return TextFile(path, kind, compression, status.st_size, relative or Path(path.name))


@contextlib.contextmanager
def open_content(path: Path, compression: str) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Open a file that may be compressed.

    Yields:
        The decompressed content, and the file on disk, whose position shows how much has been read.
    """
    with open(path, "rb") as raw:
        if compression == ".gz":
            with gzip.GzipFile(fileobj=raw) as file:
                yield file, raw  # type: ignore[misc]  # GzipFile lacks members of IO that this module does not use
        elif compression == ".xz":
            with lzma.LZMAFile(raw) as file:
                yield file, raw
        elif compression == ".zst":
            import pyarrow

            with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd") as stream:
                yield io.BufferedReader(stream, BUFFER_BYTES), raw
        else:
            yield raw, raw


def _compression(path: Path, first: bytes) -> str:
    """Return the compression that the first bytes of a file show."""
    for suffix, pattern in COMPRESSIONS.items():
        if pattern.match(first):
            return suffix
    suffix = path.suffix.lower()
    if first and suffix in COMPRESSIONS:
        raise UserError(
            f"{path}: cannot read: not a {suffix} file in spite of its name; copy it again, or rename it"
        )
    return ""


def _suffix(path: Path, compression: str) -> str:
    """Return the suffix that names the format of a file, in lower case, ignoring that of a compression."""
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() if compression and suffix in COMPRESSIONS else suffix


def _kind(path: Path, compression: str, head: bytes, content: IO[bytes], chosen: str | None) -> str:
    """Return the kind of a file from the beginning of its content; the rest is read only if necessary."""
    suffix = _suffix(path, compression)
    if not compression and head.startswith(b"PAR1"):
        return PARQUET
    if suffix == ".parquet":
        raise UserError(f"{path}: cannot read: not a Parquet file in spite of its name; copy it again")
    if chosen is not None:
        return chosen
    for description, pattern in _UNSUPPORTED.items():
        if pattern.match(head):
            raise UnsupportedFormatError(
                f"{path}: {description}, which is not supported; unpack or convert it"
            )
    if suffix in (".jsonl", ".ndjson"):
        return JSON_LINES
    if suffix in (".csv", ".tsv"):
        raise UnsupportedFormatError(
            f"{path}: a table ({suffix}), whose columns would all be read as text; convert it to JSON lines "
            f"or Parquet, or {AS_IT_IS}"
        )
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    is_json = _JSON_OBJECT.match(start)
    if is_json and _is_record(start, content):
        return JSON_LINES
    if is_json or _JSON_ARRAY.match(start):
        raise UnsupportedFormatError(
            f"{path}: JSON, but not one record per line; convert it, for example with: jq -c '.[]', or "
            f"{AS_IT_IS}"
        )
    if suffix == ".json" and start:
        raise UnsupportedFormatError(f"{path}: not JSON lines in spite of its name; {AS_IT_IS}")
    if _MARKUP.match(start):
        raise UnsupportedFormatError(
            f"{path}: HTML or XML, whose tags would be read as text; extract the text, or {AS_IT_IS}"
        )
    if b"\r" in head and b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise UnsupportedFormatError(
            f"{path}: its lines end in CR only, so it would be a single line; convert it: tr '\\r' '\\n'"
        )
    return TEXT


def _is_record(start: bytes, content: IO[bytes]) -> bool:
    """Return True if the first line is a JSON object as a whole."""
    line, newline, _ = start.partition(b"\n")
    if not newline:
        line += content.readline(MAX_LINE_BYTES)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False
