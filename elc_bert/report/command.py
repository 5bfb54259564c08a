"""The command launch/report.py."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from elc_bert.report.page import page_of
from elc_bert.report.runs import read_runs
from elc_bert.report.text import text_of
from elc_bert.utils.files import atomic_write


def report(folders: Sequence[Path], output: Path) -> None:
    """Print what each run has learned and write the page about all of them.

    Args:
        folders: see ``read_runs``.
        output: the page; replaced if it is there.

    Raises:
        UserError: see ``read_runs``.
    """
    runs = read_runs(folders)
    for run in runs:
        print(f"{text_of(run)}\n", flush=True)
    page = page_of(runs, datetime.now().astimezone())
    with atomic_write(output, "w") as file:
        file.write(page)
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB), to open in a browser")
