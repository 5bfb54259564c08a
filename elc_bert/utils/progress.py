"""Progress bars for long-running work."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, *, done: int = 0, title: str = "", shown: bool = True) -> Any:
    """Return a tqdm bar that, if standard error is not a terminal, updates only every few seconds.

    Args:
        total: Total number of units of work.
        unit: Name of one unit, in the singular.
        done: Units that were finished before, by an earlier attempt.
        title: Description in front of the bar.
        shown: Whether to print the bar; True on only one process.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=total,
        initial=done,
        desc=title or None,
        unit=unit,
        mininterval=interval,
        maxinterval=interval,
        dynamic_ncols=sys.stderr.isatty(),
        disable=not shown,
    )
