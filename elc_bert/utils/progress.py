"""Progress bars of long work."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(total: int, unit: str, *, done: int = 0, title: str = "", shown: bool = True) -> Any:
    """A tqdm bar; in a log file (no terminal) a line now and then instead of a flicker.

    Args:
        total: amount of work.
        unit: of it.
        done: what an earlier try has done.
        title: what is being done.
        shown: False on all processes but one.
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
