"""Plain text input: which files, and their lines."""

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from elc_bert.errors import UserError


def input_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files among `paths`, and all regular files below its directories, sorted.

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
        else:
            raise UserError(f"{path}: no such file or directory; check the path")
    return files


def _hidden(path: Path, directory: Path) -> bool:
    """Whether a file below a directory is an editor's, downloader's or version control's, not text."""
    return any(part.startswith(".") for part in path.relative_to(directory).parts)


def file_bytes(files: Iterable[Path]) -> int:
    """Their size altogether, in bytes."""
    return sum(path.stat().st_size for path in files)


def read_lines(path: Path) -> Iterator[tuple[str, int]]:
    """Lines of a UTF-8 file without white space at their ends, each with its size in bytes on disk.

    Raises:
        UserError: the file cannot be read, or is not UTF-8 (names the byte offset).
    """
    offset = 0
    try:
        with open(path, "rb") as file:
            for line in file:
                content = line.removeprefix(codecs.BOM_UTF8) if offset == 0 else line
                try:
                    text = content.decode("utf-8")
                except UnicodeDecodeError as error:
                    position = offset + len(line) - len(content) + error.start
                    raise UserError(
                        f"{path}: not UTF-8 at byte {position}; convert it, for example with iconv"
                    ) from None
                yield text.strip(), len(line)
                offset += len(line)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read: {error.strerror}; check the file and its permissions"
        ) from None
