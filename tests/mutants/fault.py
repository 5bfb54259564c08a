"""Small faults that tests must notice, read from the TOML files in ``faults/``, one file per package.

An entry looks like this::

    [[fault]]
    name = "keep-probability-ignored"
    path = "elc_bert/data/sampling/from_config.py"
    old = "keep_p=data.keep_probability,"
    new = "keep_p=0.1,"
    tests = ["tests/data/sampling/test_from_config.py"]
    wrong = "elc_bert.data.keep_probability has no effect."
"""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).with_name("faults")


@dataclass(frozen=True)
class Fault:
    """A change of one place in the code that makes it wrong."""

    name: str
    """Short name, unique among all faults."""
    path: str
    """File to change, relative to the repository."""
    old: str
    """Text that occurs exactly once in the file."""
    new: str
    """Text that takes its place."""
    tests: tuple[str, ...]
    """Tests of which at least one must fail, as pytest takes them: files, classes or functions."""
    wrong: str
    """Description of what goes wrong."""

    def apply(self, root: Path) -> None:
        """Change the file in a copy of the repository.

        Raises:
            LookupError: The old text does not occur exactly once.
        """
        path = root / self.path
        path.write_text(self.changed(path.read_text(encoding="utf-8")), encoding="utf-8")

    def changed(self, code: str) -> str:
        """Return the content of the file with the fault.

        Raises:
            LookupError: The old text does not occur exactly once.
        """
        if (count := code.count(self.old)) != 1:
            raise LookupError(
                f"{self.name}: the old text occurs {count} times in {self.path}, not once; adapt the fault:\n"
                f"{self.old}"
            )
        return code.replace(self.old, self.new)


def read_faults(folder: Path = FOLDER) -> list[Fault]:
    """Return all faults, in the order of the files' names.

    Raises:
        ValueError: An entry has a missing or an unknown key, or two faults have the same name.
    """
    found: list[Fault] = []
    keys = {field.name for field in fields(Fault)}
    for path in sorted(folder.glob("*.toml")):
        for entry in tomllib.loads(path.read_text(encoding="utf-8"))["fault"]:
            if entry.keys() != keys:
                raise ValueError(f"{path}: {entry.get('name')}: keys {sorted(entry.keys() ^ keys)}")
            found.append(Fault(**{**entry, "tests": tuple(entry["tests"])}))
    names = [fault.name for fault in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{folder}: names given twice: {', '.join(twice)}")
    return found
