"""Whether a token dataset is intact."""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import Manifest, SegmentsEntry
from elc_bert.data.format.segments import open_segments, segment_files, segments_command, segments_of
from elc_bert.data.format.vocabulary import check_tokenizer, load_tokenizer
from elc_bert.utils.errors import UserError

HELP = "check every byte of a dataset against its index, manifest, tokenizer and policies"

EPILOG = """\
Checks that the files have the format's structure and are those that were written (checksums), that
sentences, documents and segments lie where they should, that every token id is in the vocabulary, and
that segments are what their policy gives. Exits with 1 if anything is wrong and says what, in each file
the first place of each kind. Memory does not grow with the dataset.

A dataset built elsewhere, which has no manifest, is checked as far as it describes itself.

examples:
  python -m data_tools verify corpus/train corpus/dev --tokenizer tokenizer.json
  python -m data_tools verify corpus/train --fast
"""

BYTES_AT_ONCE = 1 << 22
ENTRIES_AT_ONCE = 1 << 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `verify`."""
    parser.add_argument("prefix", nargs="+", type=Path, metavar="PREFIX", help="datasets, without .bin")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FILE", help="the tokenizer.json they were built with"
    )
    parser.add_argument("--fast", action="store_true", help="leave out checksums and token ids")


def run(args: argparse.Namespace) -> None:
    """Runs `verify` and prints what was found.

    Raises:
        UserError: a dataset is not intact, or the tokenizer is none.
    """
    if args.tokenizer is not None:
        load_tokenizer(args.tokenizer)
    problems = 0
    for prefix in args.prefix:
        with tqdm(
            total=_bytes_to_read(prefix, args.fast),
            unit="B",
            unit_scale=True,
            desc=prefix.name,
            disable=None,
            leave=False,
        ) as progress:
            report = verify(prefix, args.tokenizer, fast=args.fast, progress=progress.update)
        print("\n".join(report.problems) if report.problems else report.table())
        problems += len(report.problems)
    if problems:
        raise UserError(f"problems found: {problems}; the lines above say what to do about each")


@dataclass
class Report:
    """What `verify` found in one dataset."""

    prefix: Path
    problems: list[str] = field(default_factory=list)
    """One line each: file, what is wrong and where, what to do."""
    checked: list[tuple[str, str]] = field(default_factory=list)
    """What was found right, and how much of it."""
    not_checked: list[tuple[str, str]] = field(default_factory=list)
    """What was left out, and why."""

    def table(self) -> str:
        """All that is no problem, in a few lines."""
        rows = [*self.checked, *((name, f"not checked: {why}") for name, why in self.not_checked)]
        return "\n".join([f"{self.prefix}: intact", *(f"  {name:<24}{text}" for name, text in rows)])


def verify(
    prefix: Path,
    tokenizer: Path | None = None,
    *,
    fast: bool = False,
    progress: Callable[[int], object] = lambda size: None,
) -> Report:
    """Checks a dataset; what is wrong with it is in the report, never raised.

    Args:
        prefix: path of the dataset without `.bin`.
        tokenizer: that it was built with, if that is to be checked.
        fast: without checksums and token ids.
        progress: called with the number of bytes read since it was called before.

    Raises:
        UserError: the tokenizer's file is none.
    """
    return _Verification(prefix, tokenizer, fast, progress).report


class _Verification:
    """Each check returns what it found right, or raises or adds problems."""

    def __init__(self, prefix: Path, tokenizer: Path | None, fast: bool, progress: Callable[[int], object]):
        self.report = Report(prefix)
        self.prefix = prefix
        self.progress = progress
        self.manifest: Manifest | None = None
        self.dataset: IndexedDataset | None = None
        self.vocab_size = load_tokenizer(tokenizer).get_vocab_size() if tokenizer else None
        self._check("structure", self._structure)
        self._check("manifest", self._manifest)
        if self.dataset:
            self._check("sentences", self._sentences, self.dataset)
            self._check("documents", self._documents, self.dataset)
            for entry in self.manifest.segments if self.manifest else ():
                self._check(f"segments of {entry.sequence_length}", self._segments, self.dataset, entry)
        if tokenizer is None:
            self.report.not_checked.append(("tokenizer", "give it with --tokenizer"))
        elif self.dataset:
            self._check("tokenizer", self._tokenizer, self.dataset, tokenizer)
        if fast:
            self.report.not_checked.append(("checksums, token ids", "left out by --fast"))
        else:
            self._check("token ids", self._tokens)
            self._check("checksums", self._checksums)

    def _check(self, name: str, check: Callable[..., str | None], *arguments) -> None:
        try:
            found = check(*arguments)
        except UserError as error:
            self._problem(str(error))
        except OSError as error:
            self._problem(f"{error.filename}: cannot be read: {error.strerror}; copy or build it again")
        else:
            if found is not None:
                self.report.checked.append((name, found))

    def _problem(self, message: str) -> None:
        if message not in self.report.problems:
            self.report.problems.append(message)

    def _structure(self) -> str:
        self.dataset = IndexedDataset(self.prefix)
        tokens = self.dataset.tokens
        return f"{tokens.nbytes:,} bytes of tokens as {tokens.dtype}"

    def _manifest(self) -> str | None:
        path = Manifest.path(self.prefix)
        strays = {each.name for each in segment_files(self.prefix)}
        try:
            self.manifest = Manifest.load(self.prefix)
        except FileNotFoundError:
            self.report.not_checked.append(("manifest", "there is none; the dataset was built elsewhere"))
        else:
            strays -= {entry.file for entry in self.manifest.segments}
            if path.read_bytes() != self.manifest.sealed().encode():
                self._problem(f"{path}: not as it was written; copy or build the dataset again")
            for problem in self.dataset.contradictions(self.manifest) if self.dataset else ():
                self._problem(problem)
        for name in sorted(strays):
            self._problem(
                f"{path.with_name(name)}: not in {path.name}; remove it, or copy the manifest again"
            )
        return f"{len(self.manifest.segments)} segment indexes" if self.manifest else None

    def _sentences(self, dataset: IndexedDataset) -> str:
        end = 0
        for first, last in _parts(len(dataset.lengths), ENTRIES_AT_ONCE):
            offsets, lengths = dataset.spans(first, last)
            ends = offsets + lengths
            is_apart = offsets != np.append(end, ends[:-1])
            if is_apart.any():
                bad = int(is_apart.argmax())
                raise UserError(
                    f"{self.prefix}.idx: sentence {first + bad} begins at token {offsets[bad]}, not where "
                    "the one before it ends, and so cannot be in segments; build the dataset again"
                )
            end = int(ends[-1])
            dataset.release()
            self.progress(12 * (last - first))
        if end != dataset.num_tokens:
            raise UserError(
                f"{self.prefix}.bin: holds {dataset.num_tokens} tokens, but the sentences of .idx end after "
                f"{end}; copy or build the dataset again"
            )
        return f"{len(dataset.lengths):,}, on end"

    def _documents(self, dataset: IndexedDataset) -> str:
        count = len(dataset.documents) - 1
        for first, last in _parts(count, ENTRIES_AT_ONCE):
            dataset.documents_between(first, last)
            dataset.release()
            self.progress(8 * (last - first))
        return f"{count:,}, in order"

    def _segments(self, dataset: IndexedDataset, entry: SegmentsEntry) -> str:
        length, policy = entry.sequence_length, entry.policy
        index = open_segments(dataset, length, policy)
        mend = f"build it again with: {segments_command(self.prefix, length, policy)} --overwrite"
        count = tokens = 0
        for part in segments_of(dataset, length, policy):
            known = part[: len(index) - count]
            offsets, lengths = index(np.arange(count, count + len(known)))
            is_other = (offsets != known["offset"]) | (lengths != known["length"])
            if is_other.any():
                bad = int(is_other.argmax())
                raise UserError(
                    f"{index.path}: segment {count + bad} is {lengths[bad]} tokens from {offsets[bad]} on, "
                    f"but {known['length'][bad]} from {known['offset'][bad]} by policy {policy}; {mend}"
                )
            count += len(part)
            tokens += int(lengths.sum())
            self.progress(part.nbytes)
        if count != len(index):
            raise UserError(f"{index.path}: {len(index)} segments, but {count} by policy {policy}; {mend}")
        if tokens != entry.tokens:
            raise UserError(f"{index.path}: {tokens} tokens, but the manifest says {entry.tokens}; {mend}")
        return f"{count:,}, as policy {policy} gives"

    def _tokenizer(self, dataset: IndexedDataset, tokenizer: Path) -> str:
        check_tokenizer(dataset, tokenizer)
        return f"{tokenizer}, {self.vocab_size:,} subwords"

    def _tokens(self) -> str:
        """Token ids and the checksum of `.bin`, which is read once for both."""
        path = with_suffix(self.prefix, ".bin")
        dtype = self.dataset.tokens.dtype if self.dataset else np.dtype("u1")
        size = self.vocab_size or (self.manifest.vocab_size if self.manifest else None)
        if size is None:
            self.report.not_checked.append(("vocabulary", "its size is unknown; give --tokenizer"))
        place = wrong = 0
        first_wrong = ""
        for block in self._read(path, self.manifest.bin_sha256 if self.manifest else None):
            tokens = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
            if self.dataset and (tokens.min(initial=0) < 0 or (size and tokens.max(initial=0) >= size)):
                is_wrong = (tokens < 0) | (tokens >= (size or np.inf))
                at = int(is_wrong.argmax())
                first_wrong = first_wrong or f"{tokens[at]} at place {place + at}"
                wrong += int(is_wrong.sum())
            place += len(tokens)
        if wrong:
            of = f"of {size}" if size else "of any size"
            raise UserError(
                f"{path}: token id {first_wrong}, one of {wrong} that are in no vocabulary {of}; copy or "
                "build it again, or give the tokenizer that it was built with"
            )
        return f"{place:,}, " + (f"all below {size:,}" if size else "none negative")

    def _checksums(self) -> str | None:
        if self.manifest is None:
            self.report.not_checked.append(("checksums", "there is no manifest"))
            return None
        files = {with_suffix(self.prefix, ".idx"): self.manifest.idx_sha256}
        files |= {self.prefix.with_name(entry.file): entry.sha256 for entry in self.manifest.segments}
        for path, expected in files.items():
            if expected is not None:
                for _ in self._read(path, expected):
                    pass
        return f"of {sum(map(bool, [*files.values(), self.manifest.bin_sha256]))} files"

    def _read(self, path: Path, expected: str | None) -> Iterator[memoryview]:
        """A file block by block; in the end its checksum is compared."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; copy or build it again")
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield buffer[:size]
                sha256.update(buffer[:size])
                self.progress(size)
        if expected not in (None, sha256.hexdigest()):
            self._problem(
                f"{path}: not the file that the manifest was made for (sha256); copy or build it again"
            )


def _parts(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Neighbouring ranges that make up [0, count)."""
    for first in range(0, count, size):
        yield first, min(first + size, count)


def _bytes_to_read(prefix: Path, fast: bool) -> int:
    """What `verify` goes through: the tables, and without `fast` all files once more."""
    tables = [with_suffix(prefix, ".idx"), *segment_files(prefix)]
    files = tables if fast else [*tables, *tables, with_suffix(prefix, ".bin")]
    return sum(each.stat().st_size for each in files if each.is_file())
