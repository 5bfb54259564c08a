"""Scalars of a run as CSV files, one for each name, in the form of DeepSpeed's ``csv_monitor``."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from elc_bert.utils.files import atomic_write

EARLIER = "earlier"
"""Prefix of the folders to which the files of an earlier run in the same folder are moved."""


class CsvLog:
    """CSV files with the columns ``step`` and the name of the value.

    DeepSpeed's own monitor (0.19.8) writes a second header when a run is resumed, and leaves the rows of the
    steps that the resumed run repeats.

    Args:
        folder: Folder of the files.
        start_step: Steps already taken. Rows of later steps are removed, since the run repeats them. If it is
            0, files of an earlier run are moved to a folder of their own.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(folder.glob("*.csv"))
        if start_step:
            for file in files:
                _keep_steps(file, start_step)
        elif files:
            number = 1
            while (earlier := folder / f"{EARLIER}-{number}").exists():
                number += 1
            earlier.mkdir()
            for file in files:
                file.rename(earlier / file.name)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row for each value.

        Raises:
            OSError: A file cannot be written.
        """
        for name, value in values.items():
            path = self._folder / f"{name.replace('/', '_').replace(' ', '_')}.csv"
            is_new = not path.exists()
            with open(path, "a", encoding="utf-8", newline="") as file:
                rows = csv.writer(file)
                if is_new:
                    rows.writerow(["step", name.rpartition("/")[2]])
                rows.writerow([step, value])


def _keep_steps(file: Path, last: int) -> None:
    """Remove the rows after a step, repeated rows, further headers and a row that was cut off."""
    text = file.read_bytes().decode("utf-8", "replace")
    header, *rows = list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))) or [[]]
    if not header:
        file.unlink()
        return
    kept: list[list[str]] = []
    first_after = last + 1
    for row in reversed(rows):
        if len(row) == 2 and row[0].isdecimal() and _is_number(row[1]) and int(row[0]) < first_after:
            kept.append(row)
            first_after = int(row[0])
    content = io.StringIO(newline="")
    csv.writer(content).writerows([header, *reversed(kept)])
    with atomic_write(file) as binary:
        binary.write(content.getvalue().encode())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
