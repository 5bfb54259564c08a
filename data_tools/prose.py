"""The command ``prose``: make a small corpus of English prose from what is installed on this machine.

The source is the documentation of the standard library and of the installed packages: text files, and string
literals of modules, which are parsed but never imported. Only text that reads like English is kept: whole
sentences, without code, tables, parameter lists and markup (see ``prose_filter``). The result depends only on
what is installed, not on the number of cores.
"""

import argparse
import ast
import gc
import hashlib
import multiprocessing
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_tools.progress import progress_bar
from data_tools.prose_filter import paragraphs, prose_or_none
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write
from elc_bert.utils.options import positive_int

HELP = "extract English prose from the Python documentation on this machine, as a small corpus for trials"

EPILOG = """\
The source is the documentation of the Python standard library and of the installed packages. The command
needs no network.

output:
  DIR/train.txt, DIR/dev.txt       plain text, as the commands "tokenizer" and "build" expect: each line is a
                                   paragraph, and an empty line ends a document

example:
  python -m data_tools prose --output text/ --max-words 100000
"""

# ---- from a file to the texts in it ----------------------------------------------------------

TEXT_SUFFIXES = {".rst", ".txt", ".md"}
SKIPPED_DIRECTORIES = {"__pycache__", "test", "tests", "testing", "site-packages", "licenses", "templates"}
SKIPPED_TEXT = re.compile(
    r"licen[cs]e|copying|notice|authors|requirements|top_level|entry_points|cmakelists", re.I
)


def find_documents(roots: dict[str, Path]) -> dict[str, Path]:
    """Return the files that may hold prose, by document name: the label of a root and the relative path."""
    found = {}
    for label, root in roots.items():
        for directory, subdirectories, files in os.walk(root):
            subdirectories[:] = [name for name in subdirectories if name not in SKIPPED_DIRECTORIES]
            for path in (Path(directory, name) for name in files):
                is_text = path.suffix in TEXT_SUFFIXES or path.name == "METADATA"
                is_text = is_text and not SKIPPED_TEXT.search(path.name)
                # Opening a named pipe would wait for its writer.
                if (path.suffix == ".py" or is_text) and path.is_file():
                    found[f"{label}/{path.relative_to(root).as_posix()}"] = path
    return found


def module_texts(source: bytes) -> list[str]:
    """Return the documentation in a module, in reading order.

    It consists of docstrings and of module-level strings of several lines. The latter hold documentation that
    is kept as data, such as pydoc's topics or NumPy's ``add_newdoc``.

    Raises:
        SyntaxError, ValueError, MemoryError, RecursionError: The source is not Python, or cannot be parsed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        return list(statement_texts(ast.parse(source)))


def statement_texts(
    block: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    """Yield the strings that are statements in a block or a nested block.

    In a module, strings of several lines in other statements are included.
    """
    for statement in block.body:
        match statement:
            case ast.Expr(ast.Constant(str() as text)):
                yield text
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from statement_texts(statement)
            case _ if isinstance(block, ast.Module):
                for node in ast.walk(statement):
                    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" in node.value:
                        yield node.value


def document_prose(path: Path) -> list[str] | None:
    """Return the prose paragraphs of one file in reading order, or None if it cannot be read or parsed."""
    try:
        content = path.read_bytes()
        texts = module_texts(content) if path.suffix == ".py" else [content.decode("utf-8")]
        return [
            prose for text in texts for paragraph in paragraphs(text) if (prose := prose_or_none(paragraph))
        ]
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None


# ---- from the documents to the two files -----------------------------------------------------


@dataclass
class OutputFile:
    """One output file, with counts of what was written to it."""

    file: IO[str]
    """File, open for writing."""
    documents: int = 0
    """Number of documents written."""
    paragraphs: int = 0
    """Number of paragraphs written."""
    words: int = 0
    """Number of words written."""

    def write(self, document: list[str], budget: float) -> int:
        """Write paragraphs of a document up to about ``budget`` words, and return the number of words."""
        words_before = self.words
        for index, paragraph in enumerate(document):
            if self.words - words_before >= budget:
                break
            if index == 0:
                self.file.write("\n" if self.documents else "")
                self.documents += 1
            self.file.write(paragraph + "\n")
            self.paragraphs += 1
            self.words += paragraph.count(" ") + 1
        return self.words - words_before


@dataclass(frozen=True)
class Extraction:
    """Result of ``extract``."""

    train: OutputFile
    """Counts of train.txt."""
    dev: OutputFile
    """Counts of dev.txt."""
    unreadable: int
    """Number of files that were skipped because they cannot be read or parsed."""


def digest(text: str) -> bytes:
    """Return a hash of 16 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def extract(
    roots: dict[str, Path], output: Path, max_words: int | None = None, dev_fraction: float = 0.05
) -> Extraction:
    """Write the prose in some directories to train.txt and dev.txt.

    Documents are ordered by the hashes of their names, so that the first ``max_words`` words are a fair
    sample. Other bits of the hash decide whether a document goes to dev.txt. A paragraph that occurs several
    times is written once, where it occurs first.

    Args:
        roots: Directories to search, by label.
        output: Directory of the two files.
        max_words: Number of words after which to stop. None writes all.
        dev_fraction: Share of the documents that goes to dev.txt, at least 0 and below 1.

    Raises:
        UserError: train.txt or dev.txt would be empty. Files that existed before are not changed.
    """
    documents = find_documents(roots)
    names = sorted(documents, key=digest)
    seen: set[bytes] = set()
    budget: float = max_words if max_words is not None else float("inf")
    unreadable = 0
    with (
        # Syntax trees are large and have no cycles, so the garbage collector would only slow the parser down.
        multiprocessing.Pool(initializer=gc.disable) as pool,
        atomic_write(output / "train.txt", "w") as train_file,
        atomic_write(output / "dev.txt", "w") as dev_file,
        progress_bar(len(names), "files", "prose", scale=False) as progress,
    ):
        train, dev = OutputFile(train_file), OutputFile(dev_file)
        results = pool.imap(document_prose, (documents[name] for name in names), chunksize=16)
        files = zip(names, results, strict=True)
        for name, prose in files:
            progress.update()
            if prose is None:
                unreadable += 1
                continue
            unseen = [paragraph for paragraph in dict.fromkeys(prose) if digest(paragraph) not in seen]
            seen.update(map(digest, unseen))
            target = dev if int.from_bytes(digest(name)[8:]) < dev_fraction * 2**64 else train
            budget -= target.write(unseen, budget)
            if budget <= 0:
                break
        if not train.words or (dev_fraction > 0 and not dev.words):
            raise UserError(
                f"{output}: would get {train.words} words in train.txt and {dev.words} in dev.txt, but "
                "neither may be empty; use a larger --max-words, or another --dev-fraction"
            )
    return Extraction(train, dev, unreadable)


# ---- the command -----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``prose``."""
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="directory for train.txt and dev.txt"
    )
    parser.add_argument(
        "--max-words",
        type=positive_int,
        metavar="N",
        help="stop after about this many words (default: use all documentation)",
    )
    parser.add_argument(
        "--dev-fraction",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the documents that goes to dev.txt, at least 0 and below 1 (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Run ``prose`` on the installation of the running interpreter, and print a summary."""
    if not 0 <= args.dev_fraction < 1:
        raise UserError(
            f"--dev-fraction: must be at least 0 and below 1, found {args.dev_fraction}; use, say, 0.05"
        )
    paths = sysconfig.get_paths()
    roots = {"stdlib": Path(paths["stdlib"]), "packages": Path(paths["purelib"])}
    if paths["platlib"] != paths["purelib"]:
        roots["platform"] = Path(paths["platlib"])
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {args.output}: {error.strerror}; choose a directory that can be written to"
        ) from error
    extraction = extract(roots, args.output, args.max_words, args.dev_fraction)
    print(f"{'':<10}{'documents':>12}{'paragraphs':>12}{'words':>12}")
    for name, file in (("train.txt", extraction.train), ("dev.txt", extraction.dev)):
        print(f"{name:<10}{file.documents:>12,}{file.paragraphs:>12,}{file.words:>12,}")
    if extraction.unreadable:
        print(f"skipped {extraction.unreadable} files that could not be read or parsed")
