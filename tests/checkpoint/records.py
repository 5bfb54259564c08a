"""Identity and progress of the checkpoint that ``conftest`` makes, and changes of its record."""

from pathlib import Path
from typing import Any

from elc_bert.checkpoint.files import read_record, with_checksum

DATA = {"train": "1f", "dev": "2e", "tokenizer": "3d"}
PROGRESS = {"step": 4, "tokens_seen": 1000, "since_log": None}


def rewrite_record(directory: Path, **changes: Any) -> None:
    """Change fields of ``run.json`` and update its checksum."""
    path = directory / "run.json"
    record = read_record(directory) if path.exists() else {}
    path.write_text(with_checksum({**record, **changes}))
