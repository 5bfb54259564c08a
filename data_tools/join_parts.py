"""Last step of ``build``: make one dataset of the parts that the workers have encoded."""

from collections.abc import Container
from pathlib import Path

import numpy as np

from data_tools.build_tasks import Task, tool_versions
from data_tools.encode_worker import Encoding, Part, PartSummary
from data_tools.input_files import Skipped
from data_tools.progress import progress_bar
from data_tools.text_reader import UNREADABLE_FILE
from elc_bert.data.format.indexed import IndexedDataset
from elc_bert.data.format.manifest import InputFile, Manifest
from elc_bert.data.format.segments import build_segments
from elc_bert.data.format.tokenizer_identity import tokenizer_fingerprint, tokenizer_sha256
from elc_bert.data.format.vocabulary import load_tokenizer
from elc_bert.data.format.writer import IndexedDatasetWriter
from elc_bert.utils.errors import UserError
from elc_bert.utils.text import printable


def join_parts(
    tasks: list[Task], encoding: Encoding, staged: Path, lengths: list[int], skipped: Skipped
) -> tuple[Manifest, Skipped]:
    """Concatenate the parts to the dataset ``staged``, and write its manifest and segment indexes.

    Args:
        tasks: Finished tasks, in the order of the input.
        encoding: Settings that decided how text became tokens.
        staged: Path of the dataset to write, without ``.bin``.
        lengths: Sequence lengths to create segment indexes for.
        skipped: Input that was skipped before the tasks were planned.

    Returns:
        The manifest of the dataset, and all input that was skipped.

    Raises:
        UserError: Nothing is left of the input.
    """
    summaries = [task.part.summary() for task in tasks]
    pieces = [piece for summary in summaries if summary is not None for piece in summary.pieces]
    unreadable = {piece.path: piece for piece in reversed(pieces) if UNREADABLE_FILE in piece.skipped.counts}
    with (
        progress_bar(len(tasks), "part", "joining parts", leave=False) as bar,
        IndexedDatasetWriter(staged, np.dtype(encoding.dtype)) as writer,
    ):
        for task, found in zip(tasks, summaries, strict=True):
            assert found is not None
            _add_part(writer, task.part, found, encoding.dtype, unreadable)
            bar.update()
    words = unknown = 0
    origins: list[InputFile] = []
    for piece in pieces:
        if piece.path not in unreadable:
            words += piece.counts["words"]
            unknown += piece.counts["unknown"]
            skipped.update(piece.skipped)
            if piece.sha256 is not None:
                size = Path(piece.path).stat().st_size
                origins.append(InputFile(path=printable(piece.path), bytes=size, sha256=piece.sha256))
    for piece in unreadable.values():
        skipped.add(UNREADABLE_FILE, piece.skipped.first[UNREADABLE_FILE])
    written = writer.written
    if written.tokens == 0:
        raise UserError("--input: holds no text that can be used, nothing was written; check the input files")
    Manifest(
        sequences=written.sequences,
        documents=written.documents,
        tokens=written.tokens,
        words=words,
        unknown=unknown,
        special_tokens=encoding.special_names.changes() or None,
        vocab_size=load_tokenizer(encoding.tokenizer, None).get_vocab_size(),
        tokenizer_sha256=tokenizer_sha256(encoding.tokenizer),
        tokenizer_fingerprint=tokenizer_fingerprint(encoding.tokenizer),
        bin_sha256=written.bin_sha256,
        idx_sha256=written.idx_sha256,
        versions=tool_versions(encoding),
        inputs=origins,
        skipped=skipped.counts,
    ).save(staged)
    dataset = IndexedDataset(staged)
    for length in lengths:
        with progress_bar(dataset.num_tokens, "token", f"segments of {length}", leave=False) as bar:
            build_segments(dataset, length, progress=bar.update)
    return dataset.manifest, skipped


def _add_part(
    writer: IndexedDatasetWriter,
    part: Part,
    summary: PartSummary,
    dtype: str,
    unreadable: Container[str],
) -> None:
    """Append a part to the dataset, without the pieces of files that are unreadable somewhere."""
    tokens, lengths, ends = (
        part.array("tokens", dtype),
        part.array("lengths", "<i4"),
        part.array("ends", "<i8"),
    )
    if not any(piece.path in unreadable for piece in summary.pieces):
        writer.add(tokens, lengths, ends)
        return
    token = sentence = document = 0
    for piece in summary.pieces:
        next_token = token + piece.counts["tokens"]
        next_sentence = sentence + piece.counts["sequences"]
        next_document = document + piece.counts["documents"]
        if piece.path not in unreadable:
            writer.add(
                tokens[token:next_token],
                lengths[sentence:next_sentence],
                ends[document:next_document] - sentence,
            )
        token, sentence, document = next_token, next_sentence, next_document
