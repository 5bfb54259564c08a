"""The command of ``launch/report.py``."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from elc_bert.report.page import render_page
from elc_bert.report.runs import read_runs
from elc_bert.report.text import summary_text
from elc_bert.utils.files import atomic_write


def report(folders: Sequence[Path], output: Path) -> None:
    """Print a summary of each run and write one page about all of them.

    Args:
        folders: Folders of the runs; see ``read_runs``.
        output: File of the page; an existing file is replaced.

    Raises:
        UserError: A run cannot be read; see ``read_runs``.
    """
    runs = read_runs(folders)
    for run in runs:
        print(f"{summary_text(run)}\n", flush=True)
    page = render_page(runs, datetime.now().astimezone())
    with atomic_write(output, "w") as file:
        file.write(page)
    print(f"Report: {output} ({len(page) / 1e6:.1f} MB); open it in a browser")
