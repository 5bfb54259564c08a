"""Record of how the files in an output directory of ``clean`` were made."""

import json
from pathlib import Path
from typing import NamedTuple

from elc_bert.utils.errors import UserError
from elc_bert.utils.files import atomic_write

NAME = ".clean.json"
"""Name of the record in the output directory. It is hidden, so that no command reads it as text."""


class Origin(NamedTuple):
    """Source of a cleaned file, and the rules that were applied to it."""

    corpus: str
    """Corpus whose rules were applied, a key of ``RULES``."""
    size: int
    """Size of the source in bytes."""
    modified: int
    """Time of the last change of the source, in nanoseconds."""

    @classmethod
    def of(cls, source: Path, corpus: str) -> "Origin":
        """Return the origin of a file that is cleaned now."""
        status = source.stat()
        return cls(corpus, status.st_size, status.st_mtime_ns)


def load_record(output: Path) -> dict[str, Origin]:
    """Return the origins of cleaned files by their paths relative to the output directory.

    Raises:
        UserError: The record is damaged.
    """
    path = output / NAME
    try:
        return {name: Origin(*origin) for name, origin in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: damaged; choose another --output, or add --overwrite") from None


def save_record(output: Path, origins: dict[str, Origin]) -> None:
    """Write the record of an output directory, which is created."""
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / NAME, "w") as file:
        json.dump(origins, file, indent=1)
        file.write("\n")
