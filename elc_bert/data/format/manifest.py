"""Manifest of a token dataset, ``<prefix>.json``: its contents and the inputs it was built from."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationError,
    model_serializer,
)

from elc_bert.utils.errors import UserError, limit_advice
from elc_bert.utils.files import atomic_write, read_regular

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]*[^./\x00][^/\x00]*$")]
"""File name without a directory, other than ``.`` and ``..``."""
LATER = frozenset(("unknown", "special_tokens", "tokenizer_fingerprint", "input_list"))
"""Fields of ``Manifest`` that early versions of this project do not write."""

MAX_INPUTS = 100
"""Maximum number of input files in a manifest. More are listed in a file of their own."""
INPUTS_SUFFIX = ".inputs.jsonl"
"""Suffix of the file that lists the input files, one JSON object per line."""


class ManifestModel(BaseModel):
    """Base of the manifest's models; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class InputFile(ManifestModel):
    """Input file that a dataset was built from."""

    path: str
    """Path as given on the command line, or as found below a given directory."""
    bytes: Count
    """Size on disk; for a compressed file, its compressed size."""
    sha256: Sha256
    """Checksum of the file on disk, in hexadecimal."""


class InputList(ManifestModel):
    """Manifest entry of the file that lists the input files."""

    file: FileName
    """Name of the file, which lies in the directory of the manifest."""
    count: Count
    """Number of input files."""
    bytes: Count
    """Sum of their sizes."""
    sha256: Sha256
    """Checksum of the file, in hexadecimal."""


class SegmentsEntry(ManifestModel):
    """Manifest entry of a segment index."""

    sequence_length: Count
    """Sequence length T; a segment has at most T - 2 tokens."""
    policy: str
    """Segment policy, a key of ``elc_bert.data.format.policies.POLICIES``."""
    file: FileName
    """Name of the file, which lies in the directory of the manifest."""
    count: Count
    """Number of segments."""
    tokens: Count
    """Sum of the segments' lengths; a token in two segments counts twice."""
    sha256: Sha256
    """Checksum of the file, in hexadecimal."""
    unread: Count | None = None
    """Number of tokens of the dataset that are in no segment. Early versions did not count them."""

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if value is not None}


class Manifest(ManifestModel):
    """Contents of ``<prefix>.json``. Values unknown for a dataset built elsewhere are None or empty."""

    format: Literal["elc-bert-dataset-2"] = "elc-bert-dataset-2"
    sequences: Count
    """Number of sentences."""
    documents: Count
    """Number of documents."""
    tokens: Count
    """Number of tokens."""
    words: Count | None = None
    """Number of words in the text, separated by white space."""
    unknown: Count | None = None
    """Number of tokens ``[UNK]``."""
    vocab_size: Count | None = None
    """Vocabulary size; every token id lies below it."""
    tokenizer_sha256: Sha256 | None = None
    """Checksum of the tokenizer file."""
    tokenizer_fingerprint: Sha256 | None = None
    """Checksum of the way in which the tokenizer encodes text (``tokenizer_identity``)."""
    special_tokens: dict[str, str | None] | None = None
    """Names of the tokenizer's special tokens by role, where they differ from the usual names."""
    bin_sha256: Sha256 | None = None
    """Checksum of ``.bin``."""
    idx_sha256: Sha256 | None = None
    """Checksum of ``.idx``."""
    versions: dict[str, str] = {}
    """Versions of this project and of the libraries that affect the contents, by name."""
    inputs: list[InputFile] = []
    """Input files, if there are at most ``MAX_INPUTS``; ``read_inputs`` returns them in any case."""
    input_list: InputList | None = None
    """File that lists the input files if there are more, so that opening the dataset does not take longer."""
    skipped: dict[str, Count] = {}
    """Number of inputs left out by ``--on-error skip``, by reason."""
    segments: list[SegmentsEntry] = []
    """Segment indexes, sorted by policy and sequence length."""
    manifest_sha256: Sha256 | None = None
    """Checksum of the manifest's bytes with null in this field, in hexadecimal; filled in by ``save``."""

    @staticmethod
    def path(prefix: Path) -> Path:
        """Return the path of the manifest of the dataset ``prefix``."""
        return prefix.with_name(prefix.name + ".json")

    @classmethod
    def load(cls, prefix: Path) -> "Manifest":
        """Read the manifest of the dataset ``prefix``.

        Raises:
            FileNotFoundError: There is no manifest.
            UserError: The file is unreadable or not a manifest.
        """
        path = cls.path(prefix)
        fix = "copy it again, or build the dataset again"
        try:
            return cls.model_validate_json(read_regular(path))
        except FileNotFoundError:
            raise
        except OSError as error:
            advice = limit_advice(error) or "check the file and its permissions"
            raise UserError(f"{path}: cannot read the manifest: {error.strerror}; {advice}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"]))
            message = f"{key}: {first['msg']}" if key else first["msg"]
            raise UserError(f"{path}: not a manifest of this version: {message}; {fix}") from None

    def save(self, prefix: Path) -> None:
        """Write the manifest of the dataset ``prefix`` atomically, after the list of its input files."""
        manifest = self
        if len(self.inputs) > MAX_INPUTS:
            path = prefix.with_name(prefix.name + INPUTS_SUFFIX)
            lines = "".join(each.model_dump_json() + "\n" for each in self.inputs)
            with atomic_write(path, "w") as file:
                file.write(lines)
            entry = InputList(
                file=path.name,
                count=len(self.inputs),
                bytes=sum(each.bytes for each in self.inputs),
                sha256=hashlib.sha256(lines.encode()).hexdigest(),
            )
            manifest = self.model_copy(update={"inputs": [], "input_list": entry})
        with atomic_write(self.path(prefix), "w") as file:
            file.write(manifest.to_json())

    def read_inputs(self, prefix: Path) -> list[InputFile]:
        """Return all input files of the dataset ``prefix``, to which this manifest belongs.

        Raises:
            UserError: The file that lists them is missing or damaged.
        """
        if self.input_list is None:
            return self.inputs
        path = prefix.with_name(self.input_list.file)
        try:
            content = read_regular(path)
        except OSError as error:
            advice = limit_advice(error) or "copy it again"
            raise UserError(f"{path}: cannot read the input files: {error.strerror}; {advice}") from None
        if hashlib.sha256(content).hexdigest() != self.input_list.sha256:
            raise UserError(f"{path}: its SHA-256 is not the one in the manifest; copy it again")
        return [InputFile.model_validate_json(line) for line in content.splitlines()]

    def to_json(self) -> str:
        """Return the text that ``save`` writes, with ``manifest_sha256`` filled in.

        Each byte is determined by the other fields, so any change to the file can be detected.
        """
        unsigned = self.model_copy(update={"manifest_sha256": None}).model_dump_json(indent=2) + "\n"
        checksum = hashlib.sha256(unsigned.encode()).hexdigest()
        return self.model_copy(update={"manifest_sha256": checksum}).model_dump_json(indent=2) + "\n"

    @model_serializer(mode="wrap")
    def _leave_out_later_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out later fields where they are unknown, so that old manifests keep their bytes."""
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if value is not None or name not in LATER}

    def find_segments(self, sequence_length: int, policy: str) -> SegmentsEntry | None:
        """Return the entry for a sequence length and policy, or None if there is none."""
        for entry in self.segments:
            if (entry.sequence_length, entry.policy) == (sequence_length, policy):
                return entry
        return None

    def with_segments(self, entry: SegmentsEntry) -> "Manifest":
        """Return a copy of this manifest in which one segment index is added or replaced."""
        by_key = {(each.policy, each.sequence_length): each for each in (*self.segments, entry)}
        return self.model_copy(update={"segments": [by_key[key] for key in sorted(by_key)]})


@contextlib.contextmanager
def manifest_lock(prefix: Path) -> Iterator[None]:
    """Hold an exclusive lock while a manifest is read, changed and saved.

    Without it, two processes that change the same manifest could overwrite each other's changes. The lock
    is on the directory, because ``save`` replaces the manifest and a lock file would be left behind. On a
    file system without locks, this has no effect.
    """
    descriptor = os.open(prefix.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
