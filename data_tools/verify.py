"""The command ``verify``: check that a token dataset is intact."""

import argparse
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_tools.options import add_dataset, add_tokenizer
from data_tools.progress import progress_bar
from elc_bert.data.format.coverage import Coverage, unread_share, unread_warning
from elc_bert.data.format.indexed import IndexedDataset, with_suffix
from elc_bert.data.format.manifest import INPUTS_SUFFIX, Manifest, SegmentsEntry
from elc_bert.data.format.segments import iter_segments, open_segments, segment_files, segments_command
from elc_bert.data.format.vocabulary import check_tokenizer, load_tokenizer
from elc_bert.utils.errors import UserError

HELP = "check that a dataset is intact: index, manifest, token ids, segments, and checksums"

EPILOG = """\
Checks that the files have the right format and the checksums in the manifest, that sentences, documents and
segments are in order, that every token id is in the vocabulary, and that the segments are those that their
policy produces. If anything is wrong, the command prints the first problem of each kind in each file and
exits with status 1. Memory does not grow with the size of the dataset.

A dataset that Megatron-LM or GPT-NeoX wrote has no manifest. The checks that need one are then skipped.

examples:
  python -m data_tools verify corpus/train corpus/dev --tokenizer tokenizer.json
  python -m data_tools verify corpus/train --fast
"""

BYTES_AT_ONCE = 1 << 22
"""Number of bytes to read at a time."""
ENTRIES_AT_ONCE = 1 << 18
"""Number of entries of a table to read at a time."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``verify``."""
    add_dataset(parser, several=True)
    add_tokenizer(
        parser, "tokenizer.json that the datasets were built with, to check that it is the right one"
    )
    parser.add_argument("--fast", action="store_true", help="do not check token ids and checksums")


def run(args: argparse.Namespace) -> None:
    """Run ``verify`` and print the results.

    Raises:
        UserError: A dataset is not intact, or the tokenizer cannot be loaded.
    """
    if args.tokenizer is not None:
        load_tokenizer(args.tokenizer, None)
    problems = 0
    for prefix in args.prefix:
        with progress_bar(_bytes_to_read(prefix, args.fast), "B", prefix.name, leave=False) as progress:
            report = verify(prefix, args.tokenizer, fast=args.fast, progress=progress.update)
        print("\n".join(report.problems) if report.problems else report.table())
        problems += len(report.problems)
    if problems:
        raise UserError(f"problems found: {problems}; see the lines above for how to fix each")


@dataclass
class Report:
    """Results of ``verify`` for one dataset."""

    prefix: Path
    """Path of the dataset without ``.bin``."""
    problems: list[str] = field(default_factory=list)
    """Problems, one line each: file, what is wrong, what to do."""
    checked: list[tuple[str, str]] = field(default_factory=list)
    """Checks that passed, with a summary of what was checked."""
    not_checked: list[tuple[str, str]] = field(default_factory=list)
    """Checks that were skipped, with the reason."""

    warnings: list[str] = field(default_factory=list)
    """Facts about an intact dataset that the user should know."""

    def table(self) -> str:
        """Return a table of the checks that passed or were skipped."""
        rows = [*self.checked, *((name, f"not checked: {why}") for name, why in self.not_checked)]
        return "\n".join(
            [f"{self.prefix}: intact", *(f"  {name:<24}{text}" for name, text in rows), *self.warnings]
        )


def verify(
    prefix: Path,
    tokenizer: Path | None = None,
    *,
    fast: bool = False,
    progress: Callable[[int], object] = lambda size: None,
) -> Report:
    """Check a dataset. Problems of the dataset are reported, not raised.

    Args:
        prefix: Path of the dataset without ``.bin``.
        tokenizer: Tokenizer file that the dataset should have been built with. None skips this check.
        fast: Skip token ids and checksums.
        progress: Function that is called with the number of bytes read since its last call.

    Raises:
        UserError: The tokenizer cannot be loaded.
    """
    return _Verification(prefix, tokenizer, fast, progress).report


class _Verification:
    """One run of ``verify``, which fills ``report``.

    A check returns a summary of what it found to be right, or None. It adds problems to the report, or raises
    them as ``UserError``.
    """

    def __init__(
        self, prefix: Path, tokenizer: Path | None, fast: bool, progress: Callable[[int], object]
    ) -> None:
        self.report = Report(prefix)
        self.prefix = prefix
        self.progress = progress
        self.manifest: Manifest | None = None
        self.dataset: IndexedDataset | None = None
        self.vocab_size = load_tokenizer(tokenizer, None).get_vocab_size() if tokenizer else None
        self._check("structure", self._structure)
        self._check("manifest", self._manifest)
        if self.dataset:
            self._check("sentences", self._sentences, self.dataset)
            self._check("documents", self._documents, self.dataset)
            for entry in self.manifest.segments if self.manifest else ():
                self._check(f"segments of {entry.sequence_length}", self._segments, self.dataset, entry)
        if tokenizer is None:
            self.report.not_checked.append(("tokenizer", "needs --tokenizer"))
        elif self.dataset:
            self._check("tokenizer", self._tokenizer, self.dataset, tokenizer)
        if fast:
            self.report.not_checked.append(("checksums, token ids", "skipped by --fast"))
        else:
            self._check("token ids", self._tokens)
            self._check("checksums", self._checksums)

    def _check(self, name: str, check: Callable[..., str | None], *arguments: object) -> None:
        try:
            found = check(*arguments)
        except UserError as error:
            self._problem(str(error))
        except OSError as error:
            self._problem(
                f"{error.filename}: cannot be read: {error.strerror}; copy it again, or rebuild the dataset"
            )
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
        unlisted = {each.name for each in segment_files(self.prefix)}
        try:
            self.manifest = Manifest.load(self.prefix)
        except FileNotFoundError:
            self.report.not_checked.append(
                ("manifest", "does not exist; the dataset was built by another program")
            )
        else:
            unlisted -= {entry.file for entry in self.manifest.segments}
            if path.read_bytes() != self.manifest.to_json().encode():
                self._problem(
                    f"{path}: changed since it was written; copy the file again, or rebuild the dataset"
                )
            for problem in self.dataset.manifest_mismatches(self.manifest) if self.dataset else ():
                self._problem(problem)
        for name in sorted(unlisted):
            self._problem(
                f"{path.with_name(name)}: not listed in {path.name}; remove it, or copy the manifest again"
            )
        return f"{len(self.manifest.segments)} segment indexes" if self.manifest else None

    def _sentences(self, dataset: IndexedDataset) -> str:
        end = 0
        for first, last in _ranges(dataset.num_sentences, ENTRIES_AT_ONCE):
            offsets, lengths = dataset.spans(first, last)
            ends = offsets + lengths
            has_gap = offsets != np.append(end, ends[:-1])
            if has_gap.any():
                bad = int(has_gap.argmax())
                raise UserError(
                    f"{self.prefix}.idx: sentence {first + bad} begins at token {offsets[bad]}, not at the "
                    "end of the previous sentence, so it cannot be part of segments; rebuild the dataset"
                )
            end = int(ends[-1])
            dataset.release()
            self.progress(12 * (last - first))
        if end != dataset.num_tokens:
            raise UserError(
                f"{self.prefix}.bin: holds {dataset.num_tokens} tokens, but the sentences in .idx end after "
                f"{end}; copy the files again, or rebuild the dataset"
            )
        return f"{dataset.num_sentences:,}, contiguous"

    def _documents(self, dataset: IndexedDataset) -> str:
        count = dataset.num_documents
        for first, last in _ranges(count, ENTRIES_AT_ONCE):
            dataset.documents_between(first, last)
            dataset.release()
            self.progress(8 * (last - first))
        return f"{count:,}, in order"

    def _segments(self, dataset: IndexedDataset, entry: SegmentsEntry) -> str:
        length, policy = entry.sequence_length, entry.policy
        index = open_segments(dataset, length, policy)
        fix = f"rebuild it with: {segments_command(self.prefix, length, policy)} --overwrite"
        count = tokens = 0
        coverage = Coverage()
        for part in iter_segments(dataset, length, policy):
            known = part[: len(index) - count]
            offsets, lengths = index(np.arange(count, count + len(known)))
            differs = (offsets != known["offset"]) | (lengths != known["length"])
            if differs.any():
                bad = int(differs.argmax())
                raise UserError(
                    f"{index.path}: segment {count + bad} has {lengths[bad]} tokens from position "
                    f"{offsets[bad]}, but policy {policy} gives {known['length'][bad]} from "
                    f"{known['offset'][bad]}; {fix}"
                )
            count += len(part)
            tokens += int(lengths.sum())
            coverage.add(offsets, lengths)
            self.progress(part.nbytes)
        if count != len(index):
            raise UserError(
                f"{index.path}: holds {len(index)} segments, but policy {policy} gives {count}; {fix}"
            )
        if tokens != entry.tokens:
            raise UserError(
                f"{index.path}: holds {tokens} tokens, but the manifest says {entry.tokens}; {fix}"
            )
        unread = dataset.num_tokens - coverage.covered
        if entry.unread not in (None, unread):
            raise UserError(
                f"{index.path}: leaves out {unread} tokens, but the manifest says {entry.unread}; {fix}"
            )
        known_entry = entry.model_copy(update={"unread": unread})
        if warning := unread_warning(self.prefix, known_entry, dataset.num_tokens):
            self.report.warnings.append(warning)
        share = unread_share(known_entry, dataset.num_tokens)
        return f"{count:,}, as policy {policy} requires; {share:.2%} of the tokens in none of them"

    def _tokenizer(self, dataset: IndexedDataset, tokenizer: Path) -> str:
        check_tokenizer(dataset, tokenizer)
        return f"{tokenizer}, {self.vocab_size:,} subwords"

    def _tokens(self) -> str:
        """Check the token ids and the checksum of ``.bin``, which is read once for both."""
        path = with_suffix(self.prefix, ".bin")
        dtype = self.dataset.tokens.dtype if self.dataset else np.dtype("u1")
        size = self.vocab_size or (self.manifest.vocab_size if self.manifest else None)
        if size is None:
            self.report.not_checked.append(("vocabulary", "its size is unknown; needs --tokenizer"))
        position = wrong = 0
        first_wrong = ""
        for block in self._read(path, self.manifest.bin_sha256 if self.manifest else None):
            tokens = np.frombuffer(block[: len(block) // dtype.itemsize * dtype.itemsize], dtype)
            if self.dataset and (tokens.min(initial=0) < 0 or (size and tokens.max(initial=0) >= size)):
                is_wrong = (tokens < 0) | (tokens >= (size or np.inf))
                at = int(is_wrong.argmax())
                first_wrong = first_wrong or f"{tokens[at]} at position {position + at}"
                wrong += int(is_wrong.sum())
            position += len(tokens)
        if wrong:
            valid = f"the vocabulary has {size} subwords" if size else "ids must not be negative"
            raise UserError(
                f"{path}: invalid token id {first_wrong} ({wrong} in total; {valid}); copy the file again, "
                "rebuild the dataset, or use the tokenizer that it was built with"
            )
        return f"{position:,}, " + (f"all below {size:,}" if size else "none negative")

    def _checksums(self) -> str | None:
        if self.manifest is None:
            self.report.not_checked.append(("checksums", "there is no manifest"))
            return None
        files = {with_suffix(self.prefix, ".idx"): self.manifest.idx_sha256}
        files |= {self.prefix.with_name(entry.file): entry.sha256 for entry in self.manifest.segments}
        if self.manifest.input_list is not None:
            files[self.prefix.with_name(self.manifest.input_list.file)] = self.manifest.input_list.sha256
        for path, expected in files.items():
            if expected is not None:
                for _ in self._read(path, expected):
                    pass
        return f"of {sum(map(bool, [*files.values(), self.manifest.bin_sha256]))} files"

    def _read(self, path: Path, expected: str | None) -> Iterator[memoryview]:
        """Yield a file block by block, and compare its checksum at the end."""
        if not path.is_file():
            raise UserError(f"{path}: no such file; copy it again, or rebuild the dataset")
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(BYTES_AT_ONCE))
        with open(path, "rb", buffering=0) as file:
            while size := file.readinto(buffer):
                yield buffer[:size]
                sha256.update(buffer[:size])
                self.progress(size)
        if expected not in (None, sha256.hexdigest()):
            self._problem(
                f"{path}: its SHA-256 is not the one in the manifest; copy it again, or rebuild the dataset"
            )


def _ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield consecutive ranges of at most ``size`` that together cover [0, count)."""
    for first in range(0, count, size):
        yield first, min(first + size, count)


def _bytes_to_read(prefix: Path, fast: bool) -> int:
    """Return the number of bytes that ``verify`` reads: the tables, and without ``fast`` all files again."""
    tables = [with_suffix(prefix, ".idx"), *segment_files(prefix)]
    files = (
        tables
        if fast
        else [*tables, *tables, with_suffix(prefix, ".bin"), with_suffix(prefix, INPUTS_SUFFIX)]
    )
    return sum(each.stat().st_size for each in files if each.is_file())
