"""Reader of text input: yields the paragraphs in a piece of a file.

The formats are those of ``data_tools.input_formats``. Input that cannot be used is an error, or is skipped
and counted if the caller passes a ``Skipped``.
"""

import codecs
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from data_tools.input_files import Piece, Skipped, check_text_column, file_pieces, skip_or_raise
from data_tools.input_formats import (
    JSON_LINES,
    MAX_LINE_BYTES,
    PARQUET,
    UNREADABLE,
    TextFile,
    open_content,
    unreadable_message,
)
from elc_bert.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow

BLOCK_BYTES = 1 << 18
"""Number of bytes to read at a time."""
MAX_ROWS_AT_ONCE, PARQUET_BYTES_AT_ONCE = 256, 1 << 22
"""Number of rows of a Parquet file to read at a time, and their approximate size if they are long."""
UNREADABLE_FILE = "unreadable file"
"""Reason why a file is skipped as a whole, with all that was read of it before."""
END_OF_DOCUMENT = ""
"""Marker in a list of paragraphs. Paragraphs are never empty."""


class Block(NamedTuple):
    """Consecutive paragraphs of a piece."""

    paragraphs: list[str]
    """Paragraphs without leading and trailing white space, and ``END_OF_DOCUMENT`` where a document ends."""
    size: int
    """Number of bytes on disk that they were read from."""


def read_piece(piece: Piece, json_key: str = "text", skipped: Skipped | None = None) -> Iterator[Block]:
    """Yield the paragraphs of a piece.

    In plain text, a line is a paragraph and an empty line ends a document. In JSON lines and Parquet, a
    record is a document and each line of its text is a paragraph. The end of a file also ends a document.

    Args:
        piece: Piece to read.
        json_key: Key or column that holds the text of a record.
        skipped: Counter for input that cannot be used. None if such input is an error.

    Raises:
        UserError: The input cannot be used and ``skipped`` is None. The message names the file
            and the position in it.
    """
    has_text = False
    skipped_before = sum(skipped.counts.values()) if skipped else 0
    try:
        if piece.kind == PARQUET:
            blocks = _read_parquet(piece, json_key, skipped)
        elif piece.kind == JSON_LINES:
            blocks = _read_json_lines(piece, json_key, skipped)
        else:
            blocks = (
                Block([line.strip() for line in lines], size) for _, lines, size in _lines(piece, skipped)
            )
        for block in blocks:
            has_text = has_text or any(block.paragraphs)
            yield block
    except UNREADABLE as error:
        if isinstance(error, UserError):
            raise
        skip_or_raise(skipped, UNREADABLE_FILE, unreadable_message(piece.path, error))
    newly_skipped = sum(skipped.counts.values()) - skipped_before if skipped else 0
    if piece.begin == 0 and piece.is_last and not has_text and not newly_skipped:
        skip_or_raise(skipped, "empty file", f"{piece.path}: the file holds no text; leave it out")
    if piece.is_last:
        yield Block([END_OF_DOCUMENT], 0)


def read_paragraphs(
    files: Iterable[TextFile],
    json_key: str = "text",
    skipped: Skipped | None = None,
    progress: Callable[[int], object] = lambda size: None,
) -> Iterator[str]:
    """Yield the paragraphs of some files in order, without markers for the ends of documents.

    Nothing of an unreadable file is yielded. If input may be skipped, every file is therefore read twice.

    Args:
        files: Files to read.
        json_key: Key or column that holds the text of a record.
        skipped: Counter for input that cannot be used. None if such input is an error.
        progress: Function that is called with the number of bytes on disk read since its last call.
    """
    for file in files:
        rest = file.size
        pieces = file_pieces(file, 1 << 62, json_key, skipped)
        if skipped is not None and not all(_is_readable(piece, json_key, skipped) for piece in pieces):
            continue
        for piece in pieces:
            for block in read_piece(piece, json_key, skipped):
                yield from filter(None, block.paragraphs)
                step = min(block.size, rest)  # pieces of Parquet have their uncompressed sizes
                progress(step)
                rest -= step


def _is_readable(piece: Piece, json_key: str, skipped: Skipped) -> bool:
    """Return True if a piece can be read to its end. Otherwise it is counted as skipped."""
    try:
        if piece.kind == PARQUET:
            for _ in _parquet_batches(piece, json_key):
                pass
        else:
            with open_content(Path(piece.path), piece.compression) as (file, _):
                while file.read(BLOCK_BYTES):
                    pass
    except UNREADABLE as error:
        skipped.add(UNREADABLE_FILE, unreadable_message(piece.path, error))
        return False
    return True


def read_lines(file: TextFile, skipped: Skipped | None = None) -> Iterator[tuple[str, int]]:
    """Yield the lines of a plain text file, compressed or not, without their line ends.

    Yields:
        Each line, and its size in bytes on disk.
    """
    for piece in file_pieces(file, 1 << 62, skipped=skipped):
        for _, lines, size in _lines(piece, skipped):
            share = size / max(len(lines), 1)
            for number, line in enumerate(lines):
                yield line.removesuffix("\r"), int((number + 1) * share) - int(number * share)


def _lines(piece: Piece, skipped: Skipped | None) -> Iterator[tuple[int, list[str], int]]:
    """Yield blocks of lines of a text piece: offset of the block in the text, lines, bytes on disk."""
    path = Path(piece.path)
    end = 1 << 63 if piece.compression else piece.end
    with open_content(path, piece.compression) as (file, raw):
        offset = 0
        if piece.begin:
            raw.seek(piece.begin - 1)
            offset = piece.begin - 1 + _skip_rest_of_line(raw)
        position = raw.tell()
        while offset < end and (block := file.read(min(BLOCK_BYTES, end - offset))):
            begin, offset = offset, offset + len(block)
            if not block.endswith(b"\n"):
                last = block.rfind(b"\n") + 1
                rest = file.readline(MAX_LINE_BYTES + 1 - (len(block) - last))
                offset += len(rest)
                block += rest
                if len(block) - last > MAX_LINE_BYTES:
                    skip_or_raise(
                        skipped,
                        "line too long",
                        f"{path}: the line at byte {begin + last} is longer than {MAX_LINE_BYTES >> 20} MiB; "
                        "insert line breaks",
                    )
                    if not block.endswith(b"\n"):
                        offset += _skip_rest_of_line(file)
                    block = block[:last]
            size = raw.tell() - position
            position += size
            yield from _decode(path, begin, block, size, skipped)


def _skip_rest_of_line(file: IO[bytes]) -> int:
    """Skip to the next line and return the number of bytes skipped."""
    size = 0
    while part := file.readline(MAX_LINE_BYTES):
        size += len(part)
        if part.endswith(b"\n"):
            break
    return size


def _decode(
    path: Path, offset: int, block: bytes, size: int, skipped: Skipped | None
) -> Iterator[tuple[int, list[str], int]]:
    """Yield the lines of a block in the form of ``_lines``, one by one if some of them are not valid text."""
    if offset == 0 and block.startswith(codecs.BOM_UTF8):
        offset, block = len(codecs.BOM_UTF8), block[len(codecs.BOM_UTF8) :]
    with contextlib.suppress(UnicodeDecodeError):
        text = block.decode("utf-8")
        if "\0" not in text:
            yield offset, text.removesuffix("\n").split("\n") if text else [], size
            return
    yield offset, [], size
    for line in block.removesuffix(b"\n").split(b"\n"):
        try:
            text = line.decode("utf-8")
            if (nul := line.find(b"\0")) < 0:
                yield offset, [text], 0
            else:
                where = f"{path}: NUL byte at byte {offset + nul}"
                skip_or_raise(skipped, "NUL byte", f"{where}, so this is not text; leave out the file")
        except UnicodeDecodeError as error:
            where = f"{path}: not UTF-8 at byte {offset + error.start}"
            skip_or_raise(skipped, "not UTF-8", f"{where}; convert it, for example with iconv")
        offset += len(line) + 1


def _read_json_lines(piece: Piece, json_key: str, skipped: Skipped | None) -> Iterator[Block]:
    for offset, lines, size in _lines(piece, skipped):
        paragraphs: list[str] = []
        for line in lines:
            if line.strip():
                where = f"{piece.path}: the record at byte {offset}"
                paragraphs += _record(line, json_key, where, skipped)
            offset += len(line.encode()) + 1
        yield Block(paragraphs, size)


def _record(line: str, json_key: str, where: str, skipped: Skipped | None) -> list[str]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        skip_or_raise(
            skipped, "not JSON", f"{where} is not valid JSON: {error}; fix it, or use --format text"
        )
        return []
    text = record.get(json_key) if isinstance(record, dict) else None
    if not isinstance(text, str):
        keys = ", ".join(list(record)[:8]) if isinstance(record, dict) else f"none ({line[:20]!r})"
        skip_or_raise(
            skipped,
            "no such key",
            f"{where} has no text under {json_key!r}, its keys are {keys}; choose one with --json-key",
        )
        return []
    return _document(text, where, skipped)


def _read_parquet(piece: Piece, json_key: str, skipped: Skipped | None) -> Iterator[Block]:
    done = 0
    for first, rows, column in _parquet_batches(piece, json_key):
        paragraphs: list[str] = []
        before = done
        for text in _texts(column):
            where = f"{piece.path}: row {first + done}"
            if isinstance(text, UnicodeDecodeError):
                skip_or_raise(skipped, "not UTF-8", f"{where} is not UTF-8 at byte {text.start}; convert it")
            else:
                paragraphs += _document(text, where, skipped)
            done += 1
        yield Block(paragraphs, piece.size * done // rows - piece.size * before // rows)


def _parquet_batches(piece: Piece, json_key: str) -> Iterator[tuple[int, int, "pyarrow.Array"]]:
    """Yield the number of the first row of a piece, its number of rows, and each part of its text column."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(piece.path) as file:
        check_text_column(piece.path, file.schema_arrow, json_key)
        groups = range(piece.begin, piece.end)
        rows = sum(file.metadata.row_group(group).num_rows for group in groups)
        first = sum(file.metadata.row_group(group).num_rows for group in range(piece.begin))
        at_once = max(1, min(MAX_ROWS_AT_ONCE, rows * PARQUET_BYTES_AT_ONCE // max(piece.size, 1)))
        for batch in file.iter_batches(batch_size=at_once, row_groups=groups, columns=[json_key]):
            yield first, rows, batch.column(0)


def _texts(column: "pyarrow.Array") -> Iterator[str | UnicodeDecodeError]:
    """Yield the texts of a column, empty for null, or the error for each one that is not UTF-8."""
    for value in column:
        try:
            yield value.as_py() or ""
        except UnicodeDecodeError as error:
            yield error


def _document(text: str, where: str, skipped: Skipped | None) -> list[str]:
    """Return the paragraphs of a document that is one string, with the marker for its end."""
    if "\0" in text:
        skip_or_raise(skipped, "NUL byte", f"{where} has a NUL character in its text; delete that character")
        return []
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        skip_or_raise(
            skipped, "not UTF-8", f"{where} has a lone surrogate at character {error.start}; fix it"
        )
        return []
    paragraphs = [line for line in map(str.strip, text.split("\n")) if line]
    if not paragraphs:
        skip_or_raise(skipped, "empty document", f"{where} has an empty text; leave it out")
        return []
    if size > MAX_LINE_BYTES and max(len(line.encode()) for line in paragraphs) > MAX_LINE_BYTES:
        skip_or_raise(
            skipped,
            "line too long",
            f"{where} has a line longer than {MAX_LINE_BYTES >> 20} MiB in its text; insert line breaks",
        )
        return []
    return [*paragraphs, END_OF_DOCUMENT]
