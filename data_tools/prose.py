"""English prose that every Python machine already has, as a small corpus to try things out on.

The source is the documentation of the standard library and of the installed packages: string
literals of modules (parsed, never imported) and text files. What is kept reads like English:
whole sentences, without code, tables, parameter lists and markup (see prose_text). The result is
the same for the same installation, whatever the number of cores.
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

from tqdm import tqdm

from data_tools.prose_text import as_prose, paragraphs
from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

HELP = "extract English prose from the documentation on this machine"

EPILOG = """\
DIR/train.txt and DIR/dev.txt are plain text for the other commands: a line is a paragraph, an empty line
ends a document.

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
    """Files that may hold prose, by document name: the root's label, then the path below the root."""
    found = {}
    for label, root in roots.items():
        for directory, subdirectories, files in os.walk(root):
            subdirectories[:] = [name for name in subdirectories if name not in SKIPPED_DIRECTORIES]
            for path in (Path(directory, name) for name in files):
                is_text = path.suffix in TEXT_SUFFIXES or path.name == "METADATA"
                if path.suffix == ".py" or (is_text and not SKIPPED_TEXT.search(path.name)):
                    found[f"{label}/{path.relative_to(root).as_posix()}"] = path
    return found


def module_texts(source: bytes) -> list[str]:
    """The documentation in a module, in reading order: docstrings and module-level strings of several lines.

    The latter catch documentation kept in data, such as pydoc's topics or NumPy's ``add_newdoc``.

    Raises SyntaxError, ValueError, MemoryError or RecursionError where the source is not Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        return list(statement_texts(ast.parse(source)))


def statement_texts(
    block: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    """The strings that stand alone in a block or a block in it; of a module, those in its expressions too."""
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
    """The prose paragraphs of one file in reading order; None where it cannot be read or parsed."""
    try:
        content = path.read_bytes()
        texts = module_texts(content) if path.suffix == ".py" else [content.decode("utf-8")]
        return [prose for text in texts for paragraph in paragraphs(text) if (prose := as_prose(paragraph))]
    except (OSError, SyntaxError, ValueError, MemoryError, RecursionError):
        return None


# ---- from the documents to the two files -----------------------------------------------------


@dataclass
class Part:
    """One output file and what went into it."""

    file: IO[str]
    documents: int = 0
    paragraphs: int = 0
    words: int = 0

    def write(self, document: list[str], budget: float) -> int:
        """Write a document's paragraphs until `budget` words are reached; how many words that was."""
        words_before = self.words
        for position, paragraph in enumerate(document):
            if self.words - words_before >= budget:
                break
            if position == 0:
                self.file.write("\n" if self.documents else "")
                self.documents += 1
            self.file.write(paragraph + "\n")
            self.paragraphs += 1
            self.words += paragraph.count(" ") + 1
        return self.words - words_before


@dataclass(frozen=True)
class Extraction:
    """What was written, and how many files were left out because they could not be read or parsed."""

    train: Part
    dev: Part
    unreadable: int


def digest(text: str) -> bytes:
    """16 bytes that look random and depend on nothing but the text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def extract(
    roots: dict[str, Path], output: Path, max_words: int | None = None, dev_fraction: float = 0.05
) -> Extraction:
    """Write the prose below `roots` (by label) to train.txt and dev.txt in the directory `output`.

    Documents come in the order of their names' hashes, so that the first `max_words` words are
    a fair sample; other bits of the hash put a document into dev with probability `dev_fraction`.
    A paragraph is written once, where it comes first.

    Raises UserError, and leaves what was there as it was, where train.txt or dev.txt would be empty.
    """
    documents = find_documents(roots)
    names = sorted(documents, key=digest)
    seen: set[bytes] = set()
    budget: float = max_words if max_words is not None else float("inf")
    unreadable = 0
    with (
        # Syntax trees are large and without cycles: collecting garbage would only slow the parser.
        multiprocessing.Pool(initializer=gc.disable) as pool,
        atomic_write(output / "train.txt", "w") as train_file,
        atomic_write(output / "dev.txt", "w") as dev_file,
    ):
        train, dev = Part(train_file), Part(dev_file)
        results = pool.imap(document_prose, (documents[name] for name in names), chunksize=16)
        files = zip(names, results, strict=True)
        for name, prose in tqdm(files, "prose", len(names), unit=" files", disable=None):
            if prose is None:
                unreadable += 1
                continue
            unseen = [paragraph for paragraph in dict.fromkeys(prose) if digest(paragraph) not in seen]
            seen.update(map(digest, unseen))
            part = dev if int.from_bytes(digest(name)[8:]) < dev_fraction * 2**64 else train
            budget -= part.write(unseen, budget)
            if budget <= 0:
                break
        if not train.words or (dev_fraction > 0 and not dev.words):
            raise UserError(
                f"prose: {train.words} words for train.txt and {dev.words} for dev.txt, where neither "
                "may be empty; raise --max-words or change --dev-fraction"
            )
    return Extraction(train, dev, unreadable)


# ---- the command -----------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for train.txt and dev.txt")
    parser.add_argument(
        "--max-words", type=int, metavar="N", help="stop after this many words (default: all)"
    )
    parser.add_argument(
        "--dev-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="share of documents in dev.txt (default: 0.05)",
    )


def run(args: argparse.Namespace) -> None:
    """Extract the prose of the running interpreter's installation and print what was written."""
    if args.max_words is not None and args.max_words < 1:
        raise UserError(f"--max-words {args.max_words}: give a number of words of at least 1")
    if not 0 <= args.dev_fraction < 1:
        raise UserError(
            f"--dev-fraction {args.dev_fraction}: give a share from 0 up to, but not including, 1"
        )
    paths = sysconfig.get_paths()
    roots = {"stdlib": Path(paths["stdlib"]), "packages": Path(paths["purelib"])}
    if paths["platlib"] != paths["purelib"]:
        roots["platform"] = Path(paths["platlib"])
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {args.output}: {error.strerror}; name a directory to write to") from error
    extraction = extract(roots, args.output, args.max_words, args.dev_fraction)
    print(f"{'':<10}{'documents':>12}{'paragraphs':>12}{'words':>12}")
    for name, part in (("train.txt", extraction.train), ("dev.txt", extraction.dev)):
        print(f"{name:<10}{part.documents:>12,}{part.paragraphs:>12,}{part.words:>12,}")
    if extraction.unreadable:
        print(f"left out {extraction.unreadable} files that could not be read or parsed")
