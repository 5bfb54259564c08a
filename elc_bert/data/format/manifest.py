"""`<prefix>.json`: what a token dataset was built from and what it holds."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

Count = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[^/\x00]*[^./\x00][^/\x00]*$")]
"""Without a directory, and neither . nor .. ."""


class Part(BaseModel):
    """A part of a manifest; unknown keys and values of another type are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class InputFile(Part):
    """One file that a dataset was built from."""

    path: str
    """As it was given, or found below a directory that was given."""
    bytes: Count
    """On disk, so of a compressed file fewer than of its text."""
    sha256: Sha256
    """Of the file as it is on disk, in hexadecimal."""


class SegmentsEntry(Part):
    """One segment index of a dataset."""

    sequence_length: Count
    """`T`: a segment has at most T - 2 tokens."""
    policy: str
    """How the token stream was cut; see `elc_bert.data.policies.POLICIES`."""
    file: FileName
    """File name, in the directory of the manifest."""
    count: Count
    """Number of segments."""
    tokens: Count
    """Sum of the segments' lengths; tokens in two segments count twice."""
    sha256: Sha256
    """Of the file, in hexadecimal."""


class Manifest(Part):
    """Contents of `<prefix>.json`. What is unknown of a dataset built elsewhere is None or empty."""

    format: Literal["elc-bert-dataset-2"] = "elc-bert-dataset-2"
    sequences: Count
    """Number of sentences."""
    documents: Count
    tokens: Count
    words: Count | None = None
    """Words of the text, separated by white space."""
    vocab_size: Count | None = None
    """Every token id lies below it."""
    tokenizer_sha256: Sha256 | None = None
    bin_sha256: Sha256 | None = None
    idx_sha256: Sha256 | None = None
    versions: dict[str, str] = {}
    """Of this project and of the libraries that decided what the dataset holds."""
    inputs: list[InputFile] = []
    skipped: dict[str, Count] = {}
    """What `--on-error skip` left out: how often for each reason."""
    segments: list[SegmentsEntry] = []
    """Segment indexes, sorted by policy and sequence length."""
    manifest_sha256: Sha256 | None = None
    """Of this manifest as `save` writes it with null here, in hexadecimal; `save` fills it in."""

    @staticmethod
    def path(prefix: Path) -> Path:
        """Where the manifest of the dataset `prefix` lies."""
        return prefix.with_name(prefix.name + ".json")

    @classmethod
    def load(cls, prefix: Path) -> "Manifest":
        """Reads the manifest of the dataset `prefix`.

        Raises:
            FileNotFoundError: there is none.
            UserError: it is unreadable or not a manifest.
        """
        path = cls.path(prefix)
        mend = "build the dataset again, or remove the file to do without it"
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{path}: cannot read the dataset's manifest: {error.strerror}; {mend}") from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            message = f"{where}: {first['msg']}" if where else first["msg"]
            raise UserError(f"{path}: not a manifest of this version: {message}; {mend}") from None

    def save(self, prefix: Path) -> None:
        """Writes the manifest of the dataset `prefix` atomically."""
        with atomic_write(self.path(prefix), "w") as file:
            file.write(self.sealed())

    def sealed(self) -> str:
        """What `save` writes: to the byte a function of the other fields, so that any damage shows."""
        blank = self.model_copy(update={"manifest_sha256": None}).model_dump_json(indent=2) + "\n"
        seal = hashlib.sha256(blank.encode()).hexdigest()
        return self.model_copy(update={"manifest_sha256": seal}).model_dump_json(indent=2) + "\n"

    def find_segments(self, sequence_length: int, policy: str) -> SegmentsEntry | None:
        """The segment index of one sequence length and policy, None if there is none."""
        for entry in self.segments:
            if (entry.sequence_length, entry.policy) == (sequence_length, policy):
                return entry
        return None

    def with_segments(self, entry: SegmentsEntry) -> "Manifest":
        """This manifest with one segment index added or replaced."""
        by_key = {(each.policy, each.sequence_length): each for each in (*self.segments, entry)}
        return self.model_copy(update={"segments": [by_key[key] for key in sorted(by_key)]})


@contextlib.contextmanager
def locked(prefix: Path) -> Iterator[None]:
    """Waits until no other process is within it: a manifest read and saved here loses nobody's change.

    The lock is on the directory, since the manifest is replaced on saving and a lock file would stay
    behind. Where the file system cannot lock, this has no effect.
    """
    descriptor = os.open(prefix.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
