"""Progress of the commands: a bar on a terminal, and otherwise, as in the log of a job, a line at times."""

import io
import sys
from typing import TextIO

from tqdm import tqdm

LINE_SECONDS = 10.0
"""Interval between the lines where standard error is not a terminal. Short work prints none."""


class _LineFile(io.TextIOBase):
    """File that writes each state of a bar as a line, without the control characters for a terminal."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> int:
        if line := text.replace("\r", "").strip():
            self._file.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        self._file.flush()


def progress_bar(
    total: int,
    unit: str,
    title: str,
    *,
    scale: bool = True,
    leave: bool = True,
    delay: float = 0.0,
    shown: bool = True,
) -> tqdm:
    """Return a progress bar on standard error.

    Args:
        total: Total number of units of work.
        unit: Name of one unit, in the singular.
        title: Text in front of the bar.
        scale: Print numbers with the prefixes k, M, G and so on.
        leave: Keep the bar on a terminal when it is closed.
        delay: Number of seconds before the bar is shown on a terminal.
        shown: Show the bar; True in only one process.
    """
    unit = unit if unit == "B" else f" {unit}"
    common = {"total": total, "unit": unit, "desc": title, "unit_scale": scale, "disable": not shown}
    if sys.stderr is not None and sys.stderr.isatty():
        return tqdm(**common, leave=leave, delay=delay)
    return tqdm(
        **common,
        file=_LineFile(sys.stderr),
        bar_format="{desc}: {percentage:.0f} % ({n_fmt} of {total_fmt}{unit}) "
        "[{elapsed}<{remaining}, {rate_fmt}{postfix}]",
        mininterval=LINE_SECONDS,
        maxinterval=2 * LINE_SECONDS,
        miniters=0,
        delay=LINE_SECONDS,
    )
