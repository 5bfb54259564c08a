"""`<prefix>.json`: what a token dataset was built from and what it holds."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from elc_bert.errors import UserError
from elc_bert.files import atomic_write

FORMAT = "elc-bert-dataset-1"


@dataclass(frozen=True)
class SegmentsEntry:
    """One segment index of a dataset."""

    file: str
    """File name, in the directory of the manifest."""
    policy: str
    """How the token stream was cut; `"reference"`."""
    count: int
    """Number of segments."""
    tokens: int
    """Sum of the segments' lengths; tokens in two segments count twice."""
    sha256: str
    """Of the file, in hexadecimal."""


@dataclass(frozen=True)
class Manifest:
    """Contents of `<prefix>.json`. What is unknown of a dataset built elsewhere is None."""

    sequences: int
    """Number of sentences."""
    documents: int
    tokens: int
    words: int | None = None
    """Words of the text, separated by white space."""
    vocab_size: int | None = None
    tokenizer_sha256: str | None = None
    bin_sha256: str | None = None
    idx_sha256: str | None = None
    tool_version: str | None = None
    """Version of elc-bert that built the dataset."""
    segments: dict[int, SegmentsEntry] = field(default_factory=dict)
    """Segment indexes by sequence length."""

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
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot read the dataset's manifest: {error}; {mend}") from None
        if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
            raise UserError(f"{path}: not a manifest: its format is not {FORMAT!r}; {mend}")
        try:
            segments = {
                int(length): SegmentsEntry(**entry) for length, entry in values.pop("segments").items()
            }
            return cls(**values, segments=segments)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path}: not a manifest of this version: {error}; {mend}") from None

    def save(self, prefix: Path) -> None:
        """Writes the manifest of the dataset `prefix` atomically."""
        values: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        with atomic_write(self.path(prefix), "w") as file:
            json.dump(values, file, indent=2)
            file.write("\n")

    def with_segments(self, sequence_length: int, entry: SegmentsEntry) -> "Manifest":
        """This manifest with one segment index added or replaced."""
        segments = {**self.segments, sequence_length: entry}
        return dataclasses.replace(self, segments=dict(sorted(segments.items())))
